"""A generator that paints the colour its prompt names, and a set of such images."""

import torch

from analytic import Exact
from fewstep.data import ImageSet
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec
from fewstep.text.learned import LearnedText
from prompted import SHAPE


def colours(captions=("red", "green", "blue"), count=60):
    """Images of one colour each, whose caption names it, twice as many red ones as others."""
    names = [captions[i] for i in (0, 0, 1, 2)]
    numbers = torch.arange(count) % 4
    rgb = torch.eye(3)[torch.tensor([0, 0, 1, 2])[numbers]] * 255
    images = rgb.to(torch.uint8)[..., None, None].expand(-1, -1, 8, 8).contiguous()
    texts = tuple((names[i], "never asked for") for i in numbers.tolist())
    labels = torch.tensor([0, 0, 1, 2])[numbers]
    return ImageSet("colours", images, labels, ("r", "g", "b"), captions=texts)


class Painter(Exact):
    """Paints the colour that the first token of the prompt names; white without a prompt."""

    def __init__(self, encoder):
        super().__init__(Velocity(Flow()), SHAPE)
        tokens = encoder.encode(["red", "green", "blue"]).tokens[:, 0].tolist()
        self.numbers = {token: number for number, token in enumerate(tokens)}
        self.text = encoder.input

    def forward(self, x, level, *, level_s=None, cond=None):
        rows = zip(cond.text.tokens[:, 0].tolist(), cond.text.mask[:, 0].tolist(), strict=True)
        palette = [
            torch.eye(3)[self.numbers[token]] if here else torch.ones(3) for token, here in rows
        ]
        x0 = (2 * torch.stack(palette) - 1)[..., None, None].expand_as(x)
        return (x - x0) / (level / 1000).view(-1, 1, 1, 1)


def painter():
    encoder = LearnedText(length=3, vocabulary=60).fit(["red", "green", "blue"])
    model = Painter(encoder)
    spec = SampleSpec(SHAPE, text=encoder, prompts=("red", "green"))
    return Generator(Denoiser(model, Flow(), Velocity()), spec)
