"""Small generators with random weights for tests of exports."""

from dataclasses import dataclass

import torch

from fewstep.backbones import MLPConfig, UNetConfig
from fewstep.condition import Text, TextInput
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec
from fewstep.text.base import TextEncoder
from fewstep.text.learned import LearnedText

CAPTIONS = ("a smiling cat with heart-eyes", "a red heart", "the person's hat", "猫")
UNET = UNetConfig(channels=(8, 16), layers=1, attention=(4,), groups=4, pace=0.03)
TEXT_UNET = UNetConfig(
    channels=(8, 16), layers=1, attention=(4,), cross_attention=(8, 4), text_width=16, groups=4
)
TEXT_TINY = UNetConfig(
    channels=(8,), layers=1, attention=(), cross_attention=(8,), text_width=8, text_layers=1,
    groups=4, middle_attention=False,
)  # fmt: skip


@dataclass(frozen=True)
class OtherText(TextEncoder):
    """An encoder of features, as frozen networks are."""

    length: int = 4

    @property
    def input(self):
        return TextInput(self.length, features=3)

    def encode(self, prompts):
        return Text(torch.ones(len(prompts), 4, 3), torch.ones(len(prompts), 4, dtype=torch.bool))

    def unknown_words(self, prompt):
        return []


def unet_generator(
    *, step=None, grid=None, classes=3, shape=(1, 8, 8), flow_map=False, process=None,
    parametrization=None, seed=0, config=UNET,
):  # fmt: skip
    """A class-conditional generator of images, none of whose weights are zero."""
    names = ("zero", "one", "<b>two</b>", *map(str, range(3, 10)))[:classes]
    spec = SampleSpec(shape, classes, names)
    return _generator(config, spec, step, grid, flow_map, process, parametrization, seed)


def text_generator(*, text=None, classes=0, step=None, flow_map=False, seed=0, config=TEXT_UNET):
    """A generator of images from prompts, with cross-attention."""
    text = text or LearnedText(length=8, vocabulary=60).fit(CAPTIONS * 2)
    spec = SampleSpec((1, 8, 8), classes, text=text, prompts=CAPTIONS)
    return _generator(config, spec, step, None, flow_map, None, None, seed)


def point_generator(*, step=None, seed=0):
    """An unconditional generator of points in the plane."""
    config = MLPConfig(width=16, depth=1)
    return _generator(config, SampleSpec((2,)), step, None, False, None, None, seed)


def _generator(config, spec, step, grid, flow_map, process, parametrization, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = {"text": spec.text.input} if spec.text else {}
        backbone = config.build(shape=spec.shape, classes=spec.classes, **text)
        denoiser = Denoiser(backbone, process or Flow(), parametrization or Velocity())
        denoiser = denoiser.as_flow_map() if flow_map else denoiser
        for parameter in denoiser.parameters():
            if not parameter.any():  # the layers that training would begin from zero
                torch.nn.init.normal_(parameter, std=0.1)
    return Generator(denoiser.eval().requires_grad_(False), spec, grid=grid, step=step)
