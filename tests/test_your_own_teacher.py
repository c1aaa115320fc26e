"""Every command of docs/your-own-teacher.md, on files made on the spot."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli import main
from pretrained import lucid, nvidia
from pretrained.snapshots import dump

PAGE = Path(__file__).parent.parent / "docs" / "your-own-teacher.md"
SMALL = {"-n": "24", "--steps": "2"}
"""Values of options that cost time."""
TRAINING = ["fit.steps=4", "fit.batch=4", "fit.adapt=2", "evaluate.every=0"]


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def write_images(folder, count):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 20, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the page assumes: checkpoints of diffusers, lucidrains and EDM, folders of images."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("page")
    for name, classes in {"ddpm": None, "classes": 3}.items():
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            num_class_embeds=classes,
        )
        diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder / name)
    net, buffers = lucid.Unet(dim=8, mults=(1, 2)), lucid.buffers("cosine", "pred_v", steps=100)
    weights = {f"model.{name}": value for name, value in net.state_dict().items()}
    torch.save({"step": 1, "model": {**buffers, **weights}}, folder / "model-10.pt")
    net = nvidia.EDMPrecond(nvidia.SongUNet, size=16)
    (folder / "network-snapshot.pkl").write_bytes(dump({"ema": nvidia.snapshot(net)}))
    write_images(folder / "photos", 24)
    for label in "abc":
        write_images(folder / "sorted" / label, 8)
    return folder


def cheap(words):
    verb = words[1]
    for i, option in enumerate(words[:-1]):
        if option in SMALL:
            words = [*words[: i + 1], SMALL[option], *words[i + 2 :]]
    if verb == "distill":
        return [*words, *TRAINING]
    if verb in ("evaluate", "compare"):
        return [*words, "--samples", "20", "--extractor", "pixels"]
    return words


@pytest.mark.slow
def test_every_command_of_the_page_works(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    for words in commands():
        assert words[0] == "fewstep"
        code = main(cheap(words)[1:])
        assert code == 0, f"{shlex.join(words)}: {capsys.readouterr().err}"
    for image in ("grid.png", "student.png", "classes.png", "lucidrains.png"):
        with Image.open(files / image) as grid:
            assert grid.size[0] >= 16
    for run in ("student", "sid", "cd", "class-student"):
        assert (files / run / "report.html").exists()
