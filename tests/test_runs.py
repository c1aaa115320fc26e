import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import fewstep
from analytic import exact
from fewstep import recipe, runs
from fewstep.backbones import UNetConfig
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.parametrization import EDM, V, Velocity
from fewstep.process import VE, Flow
from fewstep.run_folder import Run
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Heun
from fewstep.times import FixedGrid, KarrasGrid, UniformGrid
from fewstep.weights_file import write_weights_file

SMALL = UNetConfig(channels=(8, 16), layers=1, groups=4, attention=(4,))
SPEC = SampleSpec((1, 8, 8), 3, ("a", "b", "c"))


def small(seed=0, process=None, parametrization=None):
    torch.manual_seed(seed)
    backbone = SMALL.build(shape=(1, 8, 8), classes=3)
    with torch.no_grad():  # a fresh network may say zero: give every weight something to lose
        for p in backbone.parameters():
            p.add_(0.02 * torch.randn_like(p))
    denoiser = Denoiser(backbone, process or Flow(), parametrization or Velocity())
    return Generator(denoiser, SPEC).eval()


def digits(*overrides):
    return recipe.read("digits-flow", overrides)


def test_weights_describe_themselves(tmp_path):
    made = small(process=VE(80.0), parametrization=EDM(0.5)).with_sampler(
        grid=KarrasGrid(), step=Heun()
    )
    runs.save_generator(tmp_path / "m.safetensors", made, digits().table(), {"data": "x"})
    read = fewstep.load(tmp_path / "m.safetensors")
    noise = torch.randn(4, 1, 8, 8)
    assert read.spec == SPEC and read.grid == KarrasGrid() and read.step == Heun()
    assert torch.equal(read(noise, steps=3), made(noise, steps=3))
    told = runs.describe(tmp_path / "m.safetensors")
    assert recipe.parse(told["recipe"]) == digits() and told["pins"] == {"data": "x"}


def test_a_guided_generator_is_read_back_guided(tmp_path):
    runs.save_generator(tmp_path / "m.safetensors", small().with_guidance(2.0), None, {})
    assert runs.load(tmp_path / "m.safetensors").denoiser.backbone.weight == 2.0


def test_equal_weights_give_equal_files_with_one_metadata_key(tmp_path):
    for name in ("a", "b"):
        runs.save_generator(
            tmp_path / f"{name}.safetensors", small(), digits().table(), {"z": "1", "a": "2"}
        )
    a, b = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "ab")
    assert a == b
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["fewstep"]
        text = file.metadata()["fewstep"]
    assert text == json.dumps(json.loads(text), sort_keys=True)


def test_the_hash_is_of_weights_and_description():
    assert runs.weights_hash(small()) == runs.weights_hash(small())
    assert runs.weights_hash(small()) != runs.weights_hash(small(seed=1))
    assert runs.weights_hash(small()) != runs.weights_hash(small().with_guidance(2.0))


def test_the_hash_of_a_network_does_not_depend_on_how_it_is_sampled():
    digest = runs.network_hash(small())
    assert digest == runs.network_hash(small().with_guidance(2.0))
    assert digest == runs.network_hash(small().with_sampler(step=Heun(), grid=UniformGrid()))
    assert digest != runs.network_hash(small(seed=1))
    other = small()
    other.denoiser = other.denoiser.replace(parametrization=V(Flow()))
    assert digest != runs.network_hash(other)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 3000, -1])
def test_truncated_weights_are_named_in_one_line(tmp_path, kept):
    path = tmp_path / "m.safetensors"
    runs.save_generator(path, small(), None, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="m.safetensors is damaged"):
        runs.load(path)


def test_foreign_safetensors_are_refused(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    with pytest.raises(InputError, match="was not written by fewstep"):
        runs.load(tmp_path / "theirs.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="neither a safetensors file, nor one of PyTorch"):
        runs.load(tmp_path / "notes.txt")


def test_weights_that_do_not_fit_their_description(tmp_path):
    made = small()
    note = {"description": {**made.describe(), "spec": {"shape": [2, 8, 8], "classes": 3}}}
    write_weights_file(tmp_path / "m.safetensors", made.state_dict(), note)
    with pytest.raises(InputError, match="do not fit"):
        runs.load(tmp_path / "m.safetensors")


def test_addresses_that_lead_nowhere(tmp_path):
    for address, message in (
        ("nowhere", "nowhere does not exist: give a run folder"),
        (str(tmp_path), "has no model.safetensors"),
        ("gopher:some/model", ".gopher. is not a known source"),
    ):
        with pytest.raises(InputError, match=message):
            runs.load(address)
    with pytest.raises(InputError, match="no state/"):
        runs.load(tmp_path, weights="raw")


def test_a_line_cut_by_a_crash_is_left_out_and_rewound(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step})
    with run.progress_file.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in run.progress()] == [1, 2, 3]
    run.rewind(2)
    assert [line["step"] for line in run.progress()] == [1, 2]
    run.log({"step": 3})
    assert [line["step"] for line in run.progress()] == [1, 2, 3]


def test_an_exact_network_has_no_recipe_to_fall_back_on():
    assert runs.weights_hash(Generator(exact(Flow(), Velocity()), SampleSpec((2,))))


def test_others_may_read_weights_as_they_may_other_files(tmp_path):
    generator = small()
    runs.save_generator(tmp_path / "weights.safetensors", generator, None, {})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_the_default_number_of_steps():
    free, fixed = small(), small().with_sampler(grid=FixedGrid(((1.0,), (1.0, 0.5))))
    cases = {"denoise": (16,), "consistency": (1, 2, 4), "meanflow": (1, 2, 4), "dmd": (1, 2, 4)}
    for method, steps in cases.items():
        table = {"method": {"name": method}}
        assert runs.default_steps(free, table) == steps
        assert runs.default_steps(fixed, table) == (1, 2)
    assert runs.default_steps(free, None) == (16,)
