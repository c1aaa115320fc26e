"""Sample with onnxruntime, NumPy and Pillow alone: neither PyTorch nor fewstep is imported.

fewstep export fewstep:digits --to onnx --out out
python examples/export/onnx_alone.py out/model-1.onnx 3 three.png [SEED]
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

model, label, out, *seed = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
shapes = {entry.name: entry.shape for entry in session.get_inputs()}
key = int(seed[0]) * 2**32 if seed else 0  # of the first row; the key of row i is key + i


def noise(draw: int) -> np.ndarray:
    philox = np.random.Philox(key=np.array([key, draw], dtype=np.uint64))
    return np.random.Generator(philox).standard_normal(shapes["noise"][1:], dtype=np.float32)


feed = {"noise": noise(0)[None]}
if "label" in shapes:
    feed["label"] = np.array([int(label)])  # -1: no class
if "fresh_noise" in shapes:  # of samplers that draw noise in their steps
    feed["fresh_noise"] = np.stack([noise(k + 1) for k in range(shapes["fresh_noise"][1])])[None]
(image,) = session.run(["image"], feed)[0]  # (channels, height, width) in [0, 1]
pixels = (255 * image + 0.5).astype(np.uint8).transpose(1, 2, 0)
Image.fromarray(pixels.squeeze()).resize((256, 256), Image.Resampling.NEAREST).save(out)
