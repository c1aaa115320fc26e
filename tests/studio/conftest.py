"""A folder with small runs, a store and a report, as the studio opens it."""

import pytest
import torch

from fewstep import runs, store
from fewstep.backbones import MLPConfig, UNetConfig
from fewstep.checksums import json_line
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec
from fewstep.times import FixedGrid

SHAPE = (1, 8, 8)
NAMES = ("zero", "<b>one</b>", "![two](http://example.org/x.png)")
UNET = UNetConfig(channels=(8,), layers=1, attention=(), middle_attention=False, groups=4)


def save_run(folder, method, *, seed, config=UNET, spec=None, grid=None, condition_dropout=0.0):
    """A run folder with random weights that says it was trained by `method`."""
    spec = spec or SampleSpec(SHAPE, len(NAMES), NAMES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = config.build(shape=spec.shape, classes=spec.classes)
        for weights in network.parameters():
            weights.data.normal_(std=0.15)
    generator = Generator(Denoiser(network, Flow(), Velocity()), spec, grid=grid)
    recipe = {
        "method": {"name": method, "condition_dropout": condition_dropout},
        "fit": {"steps": 200},
    }
    runs.save_generator(folder / "model.safetensors", generator, recipe, {})
    (folder / "recipe.toml").write_text("[fit]\nsteps = 200\n")
    return generator


@pytest.fixture(name="save_run")
def save_run_fixture():
    """The function `save_run`, for tests with runs of their own."""
    return save_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Runs `teacher`, `one-step`, `cm` of one kind, `toy` of points, and `new` without weights."""
    folder = tmp_path_factory.mktemp("studio") / "runs"
    save_run(folder / "teacher", "denoise", seed=0, condition_dropout=0.1)
    save_run(folder / "one-step", "dmd", seed=1, grid=FixedGrid(((1.0,),)))
    save_run(folder / "cm", "consistency", seed=2)
    save_run(folder / "toy", "denoise", seed=3, config=MLPConfig(width=16), spec=SampleSpec((2,)))
    (folder / "new").mkdir()
    (folder / "new" / "recipe.toml").write_text("[fit]\nsteps = 200\n")
    lines = [{"step": s, "images": s, "seconds": s / 10, "student/loss": 1 / s} for s in (10, 20)]
    (folder / "new" / "progress.jsonl").write_bytes(b"".join(map(json_line, lines)))
    schema = {
        "x0": store.U8(SHAPE),
        "label": store.Raw(torch.int64),
        "seed": store.Raw(torch.int64),
    }
    writer = store.Writer(folder / "pairs", schema=schema, count=40, provenance={"seed": 5})
    labels = torch.arange(40) % 3
    x0 = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    writer.write(0, {"x0": x0, "label": labels, "seed": torch.arange(40) + 2**62})
    writer.finish()
    (folder / "report.html").write_text("<!doctype html><title>a</title><p>scores</p>")
    return folder
