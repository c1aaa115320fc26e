"""What every method must keep to, found by its file: nobody has to write a test for a new one.

A method's defaults must work on the toy within 5 s of CPU; `SETTINGS` holds what differs.
"""

from copy import deepcopy

import pytest
import torch

import toy
from fewstep import plugins
from fewstep.couplings import MinibatchOT
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.levels import DiscreteLevels, EctLevels
from fewstep.loss_weights import Learned
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Task
from fewstep.optimizers import FitConfig, PlayerConfig
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.times import LogNormal
from fewstep.trainer import Training

# what a method is tried with on the toy, where it is not its defaults
SETTINGS = {
    "circuit": {"steps": toy.RING},
    # the toy's clock is Flow's, and its 2-D points have no spread of scales to cover
    "consistency": {"levels": EctLevels(clock="flow", q=16.0)},
    # the toy's own scale, and an r that has risen before the end of its training
    "scm": {"sigma_data": 0.7, "warmup": 0.67},
    # a phase ends within the six steps of a resumed run
    "progressive": {"first": 4, "phases": (4, 1, 1)},
}
# the same method under other settings: (method, settings)
VARIANTS = {
    "denoise-learned": ("denoise", {"weight": Learned()}),
    "denoise-ot": ("denoise", {"coupling": MinibatchOT()}),
    "consistency-distillation": (
        "consistency",
        {
            "source": "teacher",
            "levels": DiscreteLevels(growth="fixed", first=18),
            "density": LogNormal(mean=0.0, std=2.0),
            "weight": "none",
        },
    ),
    "consistency-ict": ("consistency", {"levels": DiscreteLevels(last=160)}),
    "scm-data": ("scm", {"source": "data"}),
    "meanflow-teacher": ("meanflow", {"source": "teacher"}),
    "dmd-regression": ("dmd", {"regression": 1.0}),
    "dmd-adversarial": (
        "dmd",
        {"every": 2, "steps": 2, "adversarial": AdversarialConfig(weight=0.01)},
    ),
    "sida": ("sid", {"alpha": 1.0, "adversarial": AdversarialConfig(weight=0.01)}),
    "sfd-two-counts": ("sfd", {"counts": (1, 2), "solver": "heun"}),
    # the second phase begins where a run resumes
    "circuit-phases": ("circuit", {"length": 4, "strides": (1, 2), "phases": (1, 1)}),
    "circuit-average": ("circuit", {"follow": "average", "decay": 0.9}),
}
# what has state that only a resumed run needs
STATEFUL = {
    "consistency-target": (
        "consistency",
        {"levels": EctLevels(clock="flow", q=16.0), "target_decay": 0.9},
    ),
}
# settings that hold where the toy is learnt alone
LEARNING = {
    "progressive": {"first": 8, "phases": (1, 1, 1, 2)},
    **dict.fromkeys(("meanflow", "meanflow-teacher"), {"distinct": 0.75}),
    # an average lags behind an encoder that moves
    "circuit-average": {"phases": (3, 2)},
}
# who starts from a network of its own and not from the teacher's
STUDENTS = {
    "denoise": (toy.fresh, toy.SPEC),
    "circuit": (toy.circuit, toy.PIXELS),
    "residual_sum": (toy.residuals, toy.PIXELS),
}
# methods that train the teachers of the others, and the fixtures that are their students
TEACHERS = {"denoise": "teacher", "circuit": "ring"}
# how the toy is learnt, where it is not as usual
TWO_PLAYERS = {"steps": 200, "lr": 1e-3, "betas": (0.0, 0.99)}  # who chase each other: no momentum
FIT = {
    **dict.fromkeys(("denoise", "denoise-learned", "denoise-ot"), toy.TEACHER),
    "circuit": toy.CIRCUIT,
    "consistency": {"steps": 400, "batch": 256, "lr": 2e-3},
    "consistency-distillation": {"lr": 5e-4},
    "consistency-ict": {"lr": 2e-3},
    **dict.fromkeys(("meanflow", "meanflow-teacher"), {"batch": 256, "lr": 2e-3}),
    # its tangent feeds on the student's own derivative in t: faster, and it runs away
    **dict.fromkeys(("scm", "scm-data"), {"lr": 3e-4}),
    **dict.fromkeys(("sfd", "sfd-two-counts"), {"steps": 200, "batch": 64, "lr": 1e-3}),
    **dict.fromkeys(("dmd", "dmd-regression", "dmd-adversarial", "sid", "sida"), TWO_PLAYERS),
    "progressive": {"steps": 500},
    "circuit-phases": {"steps": 300, "batch": 64, "lr": 2e-3, "warmup": 10},
    "circuit-average": {"steps": 250, "batch": 128, "warmup": 10},
    "residual_sum": {"steps": 150, "batch": 64},
}
USUAL = {"steps": 300, "batch": 128, "lr": 4e-3}
# sampling steps, and the distance to reach as a share of the teacher's one-step distance: the worst
# of three seeds and the kernels of three processors (benchmarks/toy.py), a third more, rounded up
# to 0.05. Fresh points of the data have 0.04, a Gaussian of their mean and variance 0.30
ONE_STEP = (1, 0.2)
BOUNDS = {
    **dict.fromkeys(("denoise", "denoise-learned", "denoise-ot"), (32, 0.15)),
    "kstep": (4, 0.15),
    **dict.fromkeys(("dmd", "consistency-ict"), (1, 0.25)),
    "dmd-adversarial": (2, 0.25),
    **dict.fromkeys(("consistency-distillation", "scm", "scm-data", "sfd"), (1, 0.3)),
    "sfd-two-counts": (1, 0.25),
    "meanflow": (1, 0.3),
    # the mean velocity; from data the adaptive weight learns a sharper one: docs/log.md
    "meanflow-teacher": (1, 0.5),
    **dict.fromkeys(("circuit", "circuit-phases"), (toy.RING, 0.3)),
    "residual_sum": (1, 0.3),
    "circuit-average": (toy.RING, 0.35),
}

# an autoencoder has a test of its own: it generates nothing
NAMES = [*(n for n in plugins.names("method") if n != "autoencode"), *VARIANTS]
every = pytest.mark.parametrize("name", NAMES)


def build(name, teacher, seed=0, steps=6, **more):
    """The method, untrained; `seed` is that of a network of its own."""
    method, settings = {**VARIANTS, **STATEFUL}.get(name, (name, {}))
    kind = plugins.resolve("method", method)
    config = kind.Config(**{**SETTINGS.get(method, {}), **settings, **more})
    fresh, spec = STUDENTS.get(method, (None, toy.SPEC))
    student = fresh(seed) if fresh else deepcopy(teacher.denoiser)
    spec = toy.PIXELS if teacher.spec == toy.PIXELS else spec
    return kind(config, Task(student, spec, deepcopy(teacher), steps))


def learn(name, teacher, folder, *, seed=0, longer=1):
    """The method's student after `longer` times the usual steps."""
    fit = {**USUAL, **FIT.get(name, {})}
    fit["steps"] *= longer
    method = build(name, teacher, seed, fit["steps"], **LEARNING.get(name, {}))
    return toy.train(method, folder, seed=seed, **fit)


def snapshot(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def training(method, pairs, **fit):
    config = FitConfig(**{"steps": 6, "batch": 12, "lr": 1e-3, "warmup": 2, **fit})
    return Training(method, toy.batches(method, pairs, batch=config.batch), config)


@every
def test_losses_are_finite_and_only_players_move(name, source, folder):
    method = build(name, source)
    before, run = snapshot(method), training(method, folder)
    for _ in range(3):
        numbers = run.advance().numbers
        assert all(torch.tensor(value).isfinite() for value in numbers.values()), numbers
    moved = {key for key, value in method.state_dict().items() if not value.equal(before[key])}
    theirs = {
        key
        for player in method.players.values()
        for key, value in method.state_dict(keep_vars=True).items()
        if any(value is p for p in player.parameters())
    }
    buffers = {key for key, _ in method.named_buffers()}
    average = {key for key in moved if name == "circuit-average" and key.startswith("target.")}
    assert moved - buffers - average <= theirs, "a network that is no player has moved"
    for player, module in method.players.items():
        owned = {id(p) for p in module.parameters()}
        keys = [k for k, v in method.state_dict(keep_vars=True).items() if id(v) in owned]
        assert any(key in moved for key in keys), f"{player} has not moved"


@every
def test_the_teacher_stays_bit_identical(name, source, folder):
    method = build(name, source)
    run = training(method, folder)
    for _ in range(3):
        run.advance()
    kept = method.teacher.state_dict()
    assert all(value.equal(kept[key]) for key, value in source.state_dict().items())
    assert all(p.grad is None for p in method.teacher.parameters())


@every
def test_resume_is_bit_identical(name, source, folder):
    whole = training(build(name, source), folder)
    first = training(build(name, source), folder)
    for _ in whole:
        pass
    for _ in range(3):
        first.advance()
    tensors, told = first.state()
    second = training(build(name, source), folder)
    second.restore({key: value.clone() for key, value in tensors.items()}, told)
    for _ in second:
        pass
    wanted, found = whole.state(), second.state()
    assert wanted[1] == found[1]
    assert wanted[0].keys() == found[0].keys()
    assert all(value.equal(found[0][key]) for key, value in wanted[0].items())


LAYOUTS = [
    ("consistency", {"optimizer": "muon", "weight_decay": 0.1}),
    ("consistency", {"optimizer": "adam", "precision": "bf16"}),
    ("consistency-target", {"optimizer": "radam"}),
    ("progressive", {"optimizer": "adamw", "weight_decay": 0.1}),
    ("dmd-adversarial", {"optimizer": "adamw", "players": {"fake": {"optimizer": "radam"}}}),
    ("sida", {"optimizer": "adam", "precision": "bf16"}),
    ("circuit-average", {"optimizer": "adamw", "players": {"student": {"optimizer": "adam"}}}),
]


def convolutional():
    """A teacher with 3x3 kernels, whose memory differs between the layouts."""
    network = toy.pixel_network()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # layers start at zero, and so would have no gradients
        for weight in network.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return Generator(Denoiser(network, Flow(), Velocity()), toy.PIXELS)


@pytest.mark.parametrize(("name", "settings"), LAYOUTS)
def test_resume_is_bit_identical_in_channels_last(name, settings):
    """Fused optimisers read moments in the memory order of their weight."""
    players = {key: PlayerConfig(**value) for key, value in settings.get("players", {}).items()}
    settings = {**settings, "players": players, "channels_last": True, "ema_halflife": (0.05, 0.5)}
    teacher = convolutional()

    def start():
        return training(build(name, teacher), None, **settings)

    whole, first, second = start(), start(), start()
    for _ in whole:
        pass
    for _ in range(3):
        first.advance()
    tensors, note = first.state()
    # as in a file, whose tensors are contiguous
    saved = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    second.restore(saved, note)
    formats = {key: value.stride() for key, value in second.state()[0].items()}
    assert formats == {key: value.stride() for key, value in tensors.items()}
    kernels = [value for value in tensors.values() if value.ndim == 4 and value.shape[-1] == 3]
    assert any(not value.is_contiguous() for value in kernels)
    for _ in second:
        pass
    wanted, found = whole.state(), second.state()
    assert wanted[1] == found[1]
    assert all(value.equal(found[0][key]) for key, value in wanted[0].items())


@every
def test_micro_batches_give_the_gradients_of_one_batch(name, source, folder):
    gradients = []
    for micro in (0, 5):
        method = build(name, source)
        run = training(method, folder, micro_batch=micro, clip=0.0)
        run.advance()
        gradients.append([p.grad for m in method.players.values() for p in m.parameters()])
    for one, parts in zip(*gradients, strict=True):
        assert (one is None) == (parts is None)
        if one is not None:
            torch.testing.assert_close(parts, one, rtol=1e-3, atol=1e-5)


DEAR = {"meanflow", "scm", "residual_sum", *VARIANTS}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in DEAR else []) for name in NAMES],
)
def test_the_toy_is_learnt(name, source, folder, start, request):
    steps, bound = BOUNDS.get(name, ONE_STEP)
    untrained = toy.distance(build(name, source).generator(), steps)
    assert untrained > bound * start, "the bound is met without training"
    fixture = TEACHERS.get(name)
    student = request.getfixturevalue(fixture) if fixture else learn(name, source, folder)
    distance = toy.distance(student, steps)
    assert distance < bound * start, f"{distance:.4f} of the teacher's one-step {start:.4f}"
