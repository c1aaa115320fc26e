"""An image from a prompt with onnxruntime, NumPy and Pillow: no PyTorch, no fewstep.

fewstep export fewstep:emoji --to onnx --out out
python examples/export/prompt_alone.py out/model-1.onnx "a smiling cat" cat.png [SEED]
"""

import json
import re
import sys
from pathlib import Path
from unicodedata import normalize

import numpy as np
import onnxruntime
from PIL import Image

model, prompt, out, *seed = sys.argv[1:]
table = json.loads(Path(model).with_name("tokenizer.json").read_text(encoding="utf-8"))
ids = {piece: 256 + i for i, piece in enumerate(table["pieces"])}  # after those of bytes


def lower(text: str) -> str:
    return normalize("NFKC", normalize("NFKC", text).lower().replace("ς", "σ"))


def tokens(prompt: str) -> list[int]:
    text = prompt[: table["longest_prompt"]]
    text = re.sub(f"[{table['normalized']}]+", lambda run: lower(run[0]), text)
    found: list[int] = []
    for word in re.findall("[a-z0-9\x80-\U0010ffff]+|[^ \t\n\r\f\v]", text):
        rest = table["start"] + word
        while rest not in ("", table["start"]):
            size = next((n for n in range(len(rest), 0, -1) if rest[:n] in ids), 0)
            if not size:  # bytes, of a character that no piece has
                rest = rest.removeprefix(table["start"])
            found += [ids[rest[:size]]] if size else rest[0].encode("utf-8", "replace")
            rest = rest[size or 1 :]
    return found[: table["length"]]


session = onnxruntime.InferenceSession(model)
shapes = {entry.name: entry.shape for entry in session.get_inputs()}
key = int(seed[0]) * 2**32 if seed else 0
philox = np.random.Generator(np.random.Philox(key=np.array([key, 0], dtype=np.uint64)))
row = np.zeros((1, table["length"]), dtype=np.int64)  # zeros and no mask: no prompt
used = tokens(prompt)
row[0, : len(used)] = used
feed = {
    "noise": philox.standard_normal((1, *shapes["noise"][1:]), dtype=np.float32),
    "tokens": row,
    "token_mask": np.arange(table["length"])[None] < len(used),
}
(image,) = session.run(["image"], feed)[0]  # (channels, height, width) in [0, 1]
pixels = (255 * image + 0.5).astype(np.uint8).transpose(1, 2, 0)
Image.fromarray(pixels.squeeze()).resize((256, 256), Image.Resampling.NEAREST).save(out)
