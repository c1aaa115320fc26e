"""The contract of methods, for networks that read prompts."""

from copy import deepcopy

import jaxtyping
import pytest
import torch

from fewstep import plugins, store
from fewstep.batching import Batches, ImageStream, Prompts
from fewstep.levels import EctLevels
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Task
from fewstep.optimizers import FitConfig
from fewstep.recording import Recording, record
from fewstep.streams import PairStream
from fewstep.text.captions import CaptionTable
from fewstep.trainer import Training
from prompted import CAPTIONS, ENCODER, SHAPE, prompted

METHODS = {
    "denoise": ("denoise", {"condition_dropout": 0.3}),
    "regress": ("regress", {}),
    "reflow": ("reflow", {}),
    "kstep": ("kstep", {}),
    "sfd": ("sfd", {}),
    "progressive": ("progressive", {"first": 4, "phases": (4, 1, 1)}),
    "consistency": ("consistency", {"levels": EctLevels(clock="flow", q=16.0)}),
    "scm": ("scm", {"sigma_data": 0.7, "warmup": 0.67}),
    "meanflow": ("meanflow", {"guidance": 2.0, "condition_dropout": 0.3}),
    "dmd": ("dmd", {}),
    "dmd-adversarial": ("dmd", {"adversarial": AdversarialConfig(weight=0.01)}),
    "sid": ("sid", {}),
}
QUICK = ("denoise", "regress", "consistency", "dmd")
"""Methods of `make test`; the others are tested by `make slow`."""
ALONE = ("circuit", "residual_sum", "autoencode")
"""Methods whose networks do not read prompts."""


@pytest.fixture(autouse=True, scope="module")
def unchecked_shapes():
    """Half of the time would go into them, and other tests check them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "p"
    for _ in record(teacher(), folder, Recording(24, 2, prompts=CAPTIONS), teacher="hash"):
        pass
    return store.Reader(folder)


def teacher():
    return prompted(std=0.1)


def training(name, pairs, **fit):
    method, settings = METHODS[name]
    kind = plugins.resolve("method", method)
    generator = teacher()
    task = Task(deepcopy(generator.denoiser), generator.spec, generator, 4)
    method = kind(kind.Config(**settings), task)
    table = CaptionTable(ENCODER, [(caption, caption[2:]) for caption in CAPTIONS])
    images = torch.rand(len(CAPTIONS), *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    streams = {
        "images": ImageStream(images, None, captions=table),
        "pairs": PairStream(pairs, encoder=ENCODER),
    }
    streams = {key: stream for key, stream in streams.items() if key in method.reads}
    config = FitConfig(**{"steps": 4, "batch": 6, "lr": 1e-3, "warmup": 1, **fit})
    batches = Batches(
        streams, generator.spec, batch=config.batch, seed=0, prompts=Prompts(table, None)
    )
    return Training(method, batches, config)


def test_every_method_is_tested():
    methods = {method for method, _ in METHODS.values()}
    assert methods == set(plugins.names("method")) - set(ALONE)


names = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in METHODS],
)


@names
def test_resume_is_bit_identical(name, pairs):
    whole, first = training(name, pairs), training(name, pairs)
    for _ in whole:
        pass
    for _ in range(2):
        first.advance()
    tensors, note = first.state()
    second = training(name, pairs)
    second.restore({key: value.clone() for key, value in tensors.items()}, note)
    for _ in second:
        pass
    expected, result = whole.state(), second.state()
    assert expected[1] == result[1] and expected[0].keys() == result[0].keys()
    assert all(value.equal(result[0][key]) for key, value in expected[0].items())
    # the student has learnt from prompts
    before = teacher().denoiser.backbone.text_transformer.state_dict()
    after = whole.generator().denoiser.backbone.text_transformer.state_dict()
    assert not after["token.weight"].equal(before["token.weight"])


@names
def test_micro_batches_give_the_gradients_of_one_batch(name, pairs):
    gradients = []
    for micro in (0, 4):
        run = training(name, pairs, micro_batch=micro, clip=0.0)
        run.advance()
        players = run.method.players.values()
        gradients.append([p.grad for player in players for p in player.parameters()])
    for one, parts in zip(*gradients, strict=True):
        assert (one is None) == (parts is None)
        if one is not None:
            torch.testing.assert_close(parts, one, rtol=1e-3, atol=1e-5)
