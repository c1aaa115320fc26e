import tomllib
from dataclasses import replace

import pytest
import torch

from fewstep import recipe
from fewstep.backbones import build_backbone
from fewstep.condition import TextInput
from fewstep.errors import InputError
from fewstep.methods.denoise import DenoiseConfig
from fewstep.methods.meanflow import Meanflow
from fewstep.optimizers import average_problems, warmup_problem
from fewstep.parametrization import Eps
from fewstep.paths import expand_home
from fewstep.process import Flow, LinearBetas
from fewstep.schema import preset_names
from fewstep.times import KarrasGrid, LogNormal

DIGITS = """
[data]
name = "digits"
[student]
init = "scratch"
process = { name = "flow" }
parametrization = { name = "velocity" }
[student.backbone]
name = "unet"
channels = [8, 16]
groups = 4
attention = [4]
[method]
name = "denoise"
density = { name = "lognormal", std = 2.0 }
[fit]
steps = 10
lr = 1
betas = [0.5, 0.9]
"""


def read(tmp_path, text=DIGITS, *overrides):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return recipe.read(str(path), overrides)


def test_toml_becomes_dataclasses(tmp_path):
    told = read(tmp_path)
    assert told.method_name == "denoise"
    assert told.method == DenoiseConfig(density=LogNormal(std=2.0))
    assert told.student.process == Flow()
    assert told.student.backbone.channels == (8, 16)
    assert (told.fit.steps, told.fit.lr, told.fit.betas) == (10, 1.0, (0.5, 0.9))


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_reads_and_writes_back_the_same(name):
    told = recipe.read(name)
    assert told.about.title and told.about.hardware and told.about.hours is not None
    assert recipe.parse(tomllib.loads(told.toml())) == told


# the ramp-up of an average in each paper's code: none, or EDM's 5 % of the images so far
NO_RAMPUP = {"ddpm", "flow", "cd", "ect", "ict", "meanflow", "dmd2", "circuit", "residual-sum"}
EDM_RAMPUP = {"edm", "sid", "sida", "scm"}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_the_average_and_warm_up_that_it_states(name):
    fit = recipe.read(name).fit
    assert average_problems(fit) == []
    assert warmup_problem(fit, "fit", fit.steps) is None
    method = name.removeprefix("cifar10-")
    if method in NO_RAMPUP | EDM_RAMPUP:
        assert fit.ema_rampup == (0 if method in NO_RAMPUP else 0.05)


SIDES = {"digits": (1, 8), "mnist": (1, 28), "fashion-mnist": (1, 28)}
SIDES |= {"cifar10": (3, 32), "emoji": (3, 32)}


@pytest.mark.parametrize("name", preset_names())
def test_every_presets_network_takes_its_images(name):
    told = recipe.read(name)
    if told.student.backbone is None:
        return  # it is the teacher's
    channels, side = SIDES.get(told.data.name, (3, 64))
    side = getattr(told.data, "size", None) or side
    with torch.device("meta"):
        text = TextInput(24, vocabulary=300) if told.text else None
        shape = channels, side, side
        if told.data.autoencoder:
            autoencoder = recipe.read(told.data.autoencoder.removeprefix("runs/"))
            shape = autoencoder.method.network.latent_shape(shape)
        net = build_backbone(told.student.backbone, shape=shape, classes=10, text=text)
        x, level = torch.zeros(2, *shape), torch.zeros(2)
        assert net(x, level).shape == x.shape


def test_overrides_are_toml(tmp_path):
    told = read(
        tmp_path,
        DIGITS,
        "fit.steps=100",
        "method.density.mean=0.5",
        "evaluate.steps=[1,2]",
        "teacher.load=runs/demo/teacher",
        'about.title="7"',
    )
    assert told.fit.steps == 100 and told.method.density.mean == 0.5
    assert told.evaluate.steps == (1, 2)
    assert told.teacher.load == "runs/demo/teacher" and told.about.title == "7"


@pytest.mark.parametrize(
    "address",
    ["lucidrains:a/b-1.pt?image_size=8&weights=raw", "~/my runs/a+b", "diffusers:o/n?size=8,16"],
)
def test_addresses_need_no_quotes(tmp_path, address):
    told = read(tmp_path, DIGITS, f"teacher.load={address}")
    assert told.teacher.load == expand_home(address)


def test_a_name_alone_stands_for_its_table(tmp_path):
    text = DIGITS.replace('{ name = "flow" }', '"linear-betas"')
    told = read(tmp_path, text.replace('{ name = "velocity" }', '"eps"'))
    assert told.student.process == LinearBetas() and told.student.parametrization == Eps()
    assert recipe.parse(tomllib.loads(told.toml())) == told
    with pytest.raises(InputError, match="unknown parametrization 'velocityy'; did you mean"):
        read(tmp_path, DIGITS.replace('{ name = "velocity" }', '"velocityy"'))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 10", "stepz = 10", r"fit\.stepz; did you mean fit\.steps\?"),
        ("[fit]", "[fitt]", "key fitt; did you mean fit"),
        ("std = 2.0", "sdt = 2.0", r"method\.density\.sdt; did you mean method\.density\.std\?"),
        (
            "channels",
            "chanels",
            r"student\.backbone\.chanels; did you mean student\.backbone\.channels\?",
        ),
        ('"denoise"', '"denoize"', "unknown method 'denoize'; did you mean denoise"),
        ('"lognormal"', '"lognormale"', "unknown density 'lognormale'; did you mean lognormal"),
        ("steps = 10", 'steps = "10"', "fit.steps is '10'.*integer"),
        ("steps = 10", "steps = 0", "fit.steps is 0"),
        ("groups = 4", "groups = [", "is not valid TOML"),
        ('[data]\nname = "digits"', "", r"has no \[data\] section"),
        (
            "lr = 1",
            "players.fake.lrr = 1.0",
            r"fit\.players\.fake\.lrr; did you mean fit\.players\.fake\.lr\?",
        ),
    ],
)
def test_mistakes_name_the_nearest_valid_thing(tmp_path, old, new, message):
    assert old in DIGITS
    with pytest.raises(InputError, match=message):
        read(tmp_path, DIGITS.replace(old, new))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.steps", "does not set a key of the recipe"),
        ("fit.steps=1e", "not valid TOML"),
        ("fit.steps.more=3", "steps is a value"),
        ("fit.stepps=3", "did you mean fit.steps"),
    ],
)
def test_mistaken_overrides_say_so(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, DIGITS, override)


def test_unknown_presets_and_files(tmp_path):
    with pytest.raises(InputError, match="'digits-flo'; did you mean digits-flow"):
        recipe.read("digits-flo")
    with pytest.raises(InputError, match="no such recipe file"):
        recipe.read(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key", ["method.c", "fit.lr", "fit.players.student.lr", "data.augment", "student.start.snr"]
)
def test_numbers_that_are_not_finite_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=rf"{key}.*must be a number"):
        recipe.read("digits-meanflow", [f"{key}={value}"])


@pytest.mark.parametrize("setting", ["method.c=0.0", "method.c=-1.0", "method.p=-0.5"])
def test_the_weight_of_meanflow_stays_finite(setting):
    with pytest.raises(InputError, match=r"method\.[cp] is .*must be a number (from|above) 0"):
        recipe.read("digits-meanflow", ["teacher.load=fewstep:digits", setting])


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("digits-flow", "student.backbone.channels=32", "backbone.channels is 32; .* a list"),
        ("digits-flow", "student.backbone.head_dim=0.5", "backbone.head_dim is 0.5; .* an integer"),
        ("digits-flow", 'student.backbone.name="mlp"', r"backbone.channels \(mlp has width, depth"),
        ("digits-flow", "student.process.sigma_max=2", r"sigma_max \(flow has no settings\)"),
        ("digits-flow", "student.process={name=3}", "process.name is 3; choose one of flow"),
        ("digits-flow", "student.process=3", "student.process is 3; it must be a table"),
        ("digits-flow", "student.backbone={channels=3}", "^student.backbone lacks a name; choose"),
        ("digits-flow", "data={name='folder', path=''}", "data.path is empty; it must be a path"),
        ("digits-flow", 'student.process="cosin"', "unknown process 'cosin'; did you mean cosine"),
        ("digits-flow", "method.sampler.clip=-1", "sampler.clip is -1; .* above 0"),
        ("digits-flow", "method.sampler.share=0.1", r"sampler.share \(transfer has clip\)"),
        (
            "digits-flow",
            'method.sampler={name="ancestral",eta=[1]}',
            r"sampler.eta is \[1\]; .* 1$",
        ),
        ("digits-flow", 'method.grid={name="karras",rho="7"}', "grid.rho is '7'; .* a number"),
        ("digits-dmd", "method.loss.c=0.1", r"loss.c \(mse has no settings\)"),
        ("digits-dmd", 'method.loss={name="lpips",trunk="vg"}', "trunk is 'vg'; .* squeeze, alex"),
        ("digits-dmd", "method.fake.density.high=2.0", "fake.density.high is 2.0; .* 0 to 1"),
        (
            "digits-flow",
            'student.parametrization={name="eps",native={name="ve",sigma_max="x"}}',
            "parametrization.native.sigma_max is 'x'; it must be a number",
        ),
        (
            "digits-flow",
            'student.parametrization={name="mixed",inputs="v",outputs={name="edm",sigma_data=-1}}',
            "parametrization.outputs.sigma_data is -1",
        ),
        ("digits-flow", 'method.name="os:path"', "'os:path', which is not a method"),
        ("digits-flow", 'method.density={name="..x:y"}', "no address of a density"),
        ("digits-flow", "about.expect={a=nan}", "about.expect has a value that is no text"),
    ],
)
def test_a_wrong_value_is_explained_by_the_kind_that_its_table_has(preset, override, message):
    with pytest.raises(InputError, match=message) as error:
        recipe.read(preset, [override])
    assert "Config" not in str(error.value)


def test_an_override_of_one_setting_keeps_the_others_of_the_default():
    config = recipe.read("digits-meanflow", ["method.grid.name=karras", "method.grid.rho=5.0"])
    assert config.method.grid == KarrasGrid(rho=5.0)
    defaults = Meanflow.Config().density
    table = recipe.read("digits-meanflow").table()
    table["method"]["density"] = {"std": 0.8}
    assert recipe.parse(table).method.density == replace(defaults, std=0.8)
