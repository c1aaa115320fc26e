"""NaN and infinite values of a network never become a picture, a recording or a score."""

import math

import pytest
import torch

from fewstep import Denoiser, Eps, Flow, Generator, SampleSpec, Velocity, runs
from fewstep.backbones import Backbone, UNetConfig
from fewstep.cli import main
from fewstep.condition import Condition
from fewstep.drawing import generate, generate_values
from fewstep.errors import InputError
from fewstep.evaluation import straightness
from fewstep.images import to_uint8
from fewstep.painting import paint
from fewstep.sampling import Ancestral, Heun, Multistep, Renoise, Transfer

SPEC = SampleSpec((3, 8, 8), classes=2, class_names=("cat", "dog"))


class Faulty(Backbone):
    """A network whose output is `value` where `level` is at most `below`, and for `label`."""

    def __init__(self, value=math.nan, *, below=math.inf, label=None):
        super().__init__()
        self.config, self.level_scale = None, 1.0
        self.shape, self.classes = SPEC.shape, SPEC.classes
        self.value, self.below, self.label = value, below, label

    def forward(self, x, level, *, level_s=None, cond=None):
        bad = level <= self.below
        if self.label is not None:
            bad = bad & (cond.label == self.label)
        return torch.where(bad.view(-1, 1, 1, 1), self.value, -x)

    def features(self, x, level, cond=None):
        raise NotImplementedError


def faulty(value=math.nan, *, step=None, **where):
    return Generator(Denoiser(Faulty(value, **where), Flow(), Velocity()), SPEC, step=step)


CASES = {
    "NaN": (faulty(), 2, "4 of 4 images (100.0 %) contain", "step 1 of 2 of the sampler transfer"),
    "infinite": (faulty(math.inf), 1, "4 of 4 images", "step 1 of 1"),
    "one class": (faulty(label=1), 2, "2 of 4 images (50.0 %) contain", "step 1 of 2"),
    "the last steps": (faulty(below=600), 4, "4 of 4 images", "step 3 of 4"),
    "behind a clip": (faulty(math.inf, step=Transfer(clip=1.0)), 3, "4 of 4", "step 1 of 3"),
    "minus infinity, Heun": (faulty(-math.inf, step=Heun(clip=1.0)), 2, "4 of 4", "sampler heun"),
    "fresh noise": (faulty(-math.inf, step=Renoise(clip=1.0)), 2, "4 of 4", "sampler renoise"),
    "ancestral": (faulty(math.inf, step=Ancestral(clip=1.0)), 3, "4 of 4", "step 1 of 3"),
    "two predictions": (faulty(math.inf, below=500, step=Multistep(clip=1.0)), 4, "4 of", "step 3"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draw", [generate, generate_values])
def test_images_are_refused_with_their_share_and_step(case, draw):
    generator, steps, share, step = CASES[case]
    with pytest.raises(InputError) as refusal:
        list(draw(generator, 4, steps=steps))
    message = str(refusal.value)
    assert message.startswith(share) and step in message and "NaN or infinite" in message


def test_sound_classes_of_a_faulty_network_are_drawn():
    assert sum(len(images) for _, images in generate(faulty(label=1), 4, steps=2, labels=[0])) == 4


def test_clipped_finite_values_are_those_of_a_clamp():
    x0 = torch.linspace(-3, 3, 7)
    step = Transfer(clip=1.0)
    generator = Generator(Denoiser(Faulty(below=-1), Flow(), Velocity()), SPEC, step=step)
    noise = 5 * torch.randn(2, *SPEC.shape)
    assert generator(noise, steps=1).equal((2 * noise).clamp(-1, 1)) and x0.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_pixel_hides_a_value_that_is_not_finite(value):
    images = torch.zeros(2, 1, 4, 4)
    images[1, 0, 3, 3] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        to_uint8(images)


def test_painting_and_straightness_refuse_them():
    noise = torch.randn(2, *SPEC.shape)
    cond = Condition(torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"1 of 2 images \(50.0 %\) contains NaN"):
        paint(faulty(label=1), noise, noise, freedom=0.5, steps=2, cond=cond)
    with pytest.raises(InputError, match=r"2 of 4 images \(50.0 %\) contain NaN .* step 3 of 4"):
        straightness(faulty(below=600, label=1), samples=4, steps=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A weights file with one NaN, as a damaged checkpoint has."""
    config = UNetConfig(channels=(8,), layers=1, attention=(), groups=4, middle_attention=False)
    net = config.build(shape=(1, 8, 8), classes=0)
    with torch.no_grad():
        next(net.parameters()).flatten()[0] = math.nan
    path = tmp_path_factory.mktemp("finite") / "net.safetensors"
    runs.save_generator(
        path, Generator(Denoiser(net, Flow(), Eps()), SampleSpec((1, 8, 8))), None, {}
    )
    return path


@pytest.mark.parametrize(
    "command",
    [
        "sample {run} --steps 2 -o {out}/x.png",
        "evaluate {run} --data digits --steps 1 --samples 20 --extractor pixels",
        "evaluate {run} --straightness --samples 20",
        "compare {run} --data digits --steps 1 --samples 20 --extractor pixels --out {out}/x.html",
        "record {run} --out {out}/pairs --count 4 --steps 2",
        # whose message of a loss would advise to lower the learning rate
        "distill digits-regress teacher.load={run} data.size=8 data.labels=false --out {out}/x",
    ],
)
def test_every_verb_says_so_in_one_line(run, command, tmp_path, capsys):
    assert main(command.format(run=run, out=tmp_path).split()) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "NaN or infinite" in line
    assert not any(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
