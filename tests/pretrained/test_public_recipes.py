"""Two steps of each preset that distils the public DDPM, on its real configuration.

Its weights are random. The images are those of CIFAR-10, without which the tests are skipped.
"""

import functools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from conftest import real_home
from fewstep import recipe, runner, runs
from fewstep.cli import main
from fewstep.pretrained.hub import EMA
from fewstep.run_folder import Run
from fewstep.schema import preset_names, read_table
from pretrained.test_published import NAME, NETWORK, PARAMETERS, SCHEDULER

pytestmark = pytest.mark.slow

ADDRESS = f"diffusers:{NAME}"
PRESETS = [
    name
    for name in preset_names()
    if name.startswith(("cifar10-", "ddpm-"))
    and read_table(name).get("teacher", {}).get("load", "").startswith(ADDRESS)
]
SHORT = ["fit.steps=2", "fit.batch=2", "fit.warmup=0", "fit.adapt=1", "fit.precision=f32"]
SHORT += ["fit.compile=false", "evaluate.steps=[1]"]
PHASES = {
    "circuit": ["method.phases=[1, 1]"],
    "progressive": ["method.first=2", "method.phases=[1, 1]"],
}
"""Two phases of one step."""


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A $FEWSTEP_HOME with the network of the hub, and the images and weights of the real one."""
    from diffusers import UNet2DModel

    real, home = Path(real_home()), tmp_path_factory.mktemp("public")
    if not (real / "data" / "cifar-10-batches-bin").is_dir():
        pytest.skip("CIFAR-10 is not on this machine")
    (home / "data").symlink_to(real / "data")
    folder = home / "weights" / NAME
    torch.manual_seed(0)
    UNet2DModel.from_config(NETWORK).save_pretrained(folder)
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    for file in (real / "weights").glob("*.*"):
        (home / "weights" / file.name).symlink_to(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def pairs(public):
    """Pairs that the network recorded, as the presets say."""
    folder = public / "pairs"
    words = f"record {ADDRESS}?timestep_spacing=trailing --sampler multistep --steps 2 -n 4"
    assert main([*words.split(), "--out", str(folder)]) == 0
    return folder


def train(name, folder, *overrides):
    """Train a preset for two steps; returns what each step logged, and the student."""
    method = read_table(name)["method"]
    changes = [*SHORT, *PHASES.get(method["name"], [])]
    if method.get("loss", {}).get("name") == "lpips" and not any(
        Path(real_home(), "weights").glob("vgg16*")
    ):
        changes.append('method.loss={ name = "mse" }')
    settings = recipe.parse(read_table(name, [*changes, *overrides]))
    steps = list(runner.run_recipe(settings, folder, device=torch.device("cpu"), log_every=1))
    return steps, runs.load(folder)


@pytest.fixture
def few_samples(monkeypatch):
    """Grids of two images; sixteen take a minute at this size."""
    draw = functools.partial(few, runner.generate)
    monkeypatch.setattr(runner, "generate", draw)


def few(generate, generator, count, *, steps):
    return generate(generator, min(count, 2), steps=steps)


@pytest.mark.parametrize("name", PRESETS)
def test_two_steps_of_each_preset(name, public, few_samples, tmp_path, request):
    overrides = []
    if "pairs" in read_table(name):
        overrides = [f"pairs.load={request.getfixturevalue('pairs')}"]
    steps, student = train(name, tmp_path / "run", *overrides)
    adapts = "parametrization" in read_table(name).get("student", {}) and "circuit" not in name
    assert steps[-1].step == steps[-1].total == (3 if adapts else 2)
    assert all(math.isfinite(value) for step in steps for value in step.numbers.values())
    assert student.spec.shape == (3, 32, 32) and not student.spec.classes
    if name != "cifar10-circuit":
        assert sum(p.numel() for p in student.parameters()) == PARAMETERS
    shutil.rmtree(tmp_path / "run")


def test_a_circuit_prefers_the_averaged_weights(public, few_samples, tmp_path, capsys):
    """The local folder of averaged weights first, then the hub, as in Denoising Circuits."""
    from diffusers import UNet2DModel

    averaged = public / "weights" / EMA
    network = UNet2DModel.from_pretrained(public / "weights" / NAME)
    with torch.no_grad():
        network.conv_in.bias += 1
    network.save_pretrained(averaged / "unet")  # the release has no scheduler
    try:
        train("cifar10-circuit", tmp_path / "averaged")
        assert f"using the averaged weights in {averaged}" in capsys.readouterr().err
        _, note = Run(tmp_path / "averaged").state()
        assert note["pins"]["teacher"] == runs.weights_hash(runs.load(f"diffusers:{EMA}"))
    finally:
        shutil.rmtree(averaged)
    capsys.readouterr()
    train("cifar10-circuit", tmp_path / "hub")
    assert "averaged" not in capsys.readouterr().err
    _, fallback = Run(tmp_path / "hub").state()
    assert fallback["pins"]["teacher"] != note["pins"]["teacher"]
