"""A small generator that reads prompts, and the captioned images that its run names."""

import numpy as np
import torch
from PIL import Image

from fewstep import runs
from fewstep.backbones import UNetConfig
from fewstep.data.folder import read_folder
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.recipe import parse
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Heun
from fewstep.text.learned import LearnedText

SHAPE = (3, 8, 8)
CAPTIONS = ("a red cat", "a blue dog", "a red dog", "a blue cat", "one small red cat")
ENCODER = LearnedText(length=6, vocabulary=40).fit(CAPTIONS)
RECIPE = """
[data]
name = "folder"
path = "{images}"
labels = false

[text]
name = "learned"
length = 6

[method]
name = "denoise"
condition_dropout = 0.1

[student]
init = "scratch"
process = "flow"
parametrization = "velocity"

[student.backbone]
name = "unet"
channels = [8]
layers = 1
attention = []
groups = 4
cross_attention = [8]
text_width = 16

[fit]
steps = 2
batch = 4

[evaluate]
steps = [2]
"""
"""A small run on a folder of images with captions."""


def prompted(classes=0, *, encoder=ENCODER, seed=0, std=0.5):
    """Random weights, none of them zero, so that every prompt has images of its own."""
    spec = SampleSpec(SHAPE, classes, text=encoder, prompts=CAPTIONS[:3])
    config = UNetConfig(
        channels=(8,), layers=1, attention=(), groups=4, cross_attention=(8,), text_width=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = config.build(shape=SHAPE, classes=classes, text=encoder and encoder.input)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=std)
    denoiser = Denoiser(network.eval(), Flow(), Velocity())
    return Generator(denoiser, spec, step=Heun())


def captioned_folder(folder, captions=CAPTIONS):
    """Images of random pixels in a folder for each class, with a caption beside each of them."""
    generator = np.random.default_rng(0)
    for number, caption in enumerate(captions):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


def prompted_run(path, images, **settings):
    """A weights file of `prompted`, whose recipe names the folder `images`."""
    method = {"name": "denoise", "condition_dropout": 0.1}
    data = {"name": "folder", "path": str(images), "labels": bool(settings.get("classes"))}
    table = parse({"data": data, "method": method}).table()
    pins = {"data": read_folder("train", path=images).fingerprint}
    runs.save_generator(path, prompted(**settings), table, pins)
    return str(path)
