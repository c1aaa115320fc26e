"""A package of a user's own, as docs/extending.md shows it: one class of each kind."""

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fewstep
from fewstep import Denoiser, Generator, SampleSpec, Velocity, plugins, runs, store
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.run_folder import Run

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
KINDS = "process sampler grid backbone distance data extractor source exporter method".split()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.S | re.M)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The page's files, installed: importable, with a version and an entry point."""
    root = tmp_path_factory.mktemp("site")
    files = {b.split("\n")[0].removeprefix("# "): b for b in blocks("python")}
    assert sorted(files) == sorted(f"my_package/{kind}.py" for kind in KINDS)
    (root / "my_package").mkdir()
    (root / "my_package" / "__init__.py").touch()
    for name, text in files.items():
        (root / name).write_text(text)
    info = root / "my_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("my_package\n")
    (info / "entry_points.txt").write_text(blocks("ini")[0])
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    plugins._entry_points.cache_clear()
    yield root
    sys.path.remove(str(root))
    plugins._entry_points.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.fixture
def nothing_allowed(monkeypatch):
    """As in a new process: what a test before this one allowed is forgotten."""
    monkeypatch.setattr(plugins, "_allowed", set())


@pytest.fixture(scope="module")
def folder(package, tmp_path_factory):
    """The page's commands, in order; trainings are cut to a few steps."""
    folder = tmp_path_factory.mktemp("work")
    teacher, student = blocks("toml")
    (folder / "teacher.toml").write_text(teacher.replace("steps = 200", "steps = 20"))
    (folder / "student.toml").write_text(student.replace("steps = 200", "steps = 20"))
    source = importlib.import_module("my_package.backbone")
    torch.manual_seed(0)
    network = source.PlainConfig(width=8).build(shape=(1, 8, 8))
    torch.save(network.state_dict(), folder / "network.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (commands,) = blocks("sh")
        for line in commands.splitlines():
            patch.setattr(plugins, "_allowed", set())
            assert main(line.split()[1:]) == 0, line
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_takes_few_lines(kind):
    (text,) = (b for b in blocks("python") if b.startswith(f"# my_package/{kind}.py"))
    lines = [
        line
        for line in text.splitlines()
        if line.strip() and not line.startswith(("#", "from", "import"))
    ]
    assert len(lines) < 25 if kind in ("backbone", "method") else len(lines) < 20


def test_the_commands_leave_what_they_say(folder):
    assert (folder / "bars.png").exists() and (folder / "theirs.png").exists()
    assert (folder / "compare.html").exists()
    assert (folder / "exported" / "samples.npz").exists()
    provenance = store.Reader(folder / "runs" / "pairs").provenance
    assert provenance["sampler"] == {"name": "my_package.sampler:Midpoint"}
    scores = Run(folder / "runs" / "student").scores()
    assert {s["score"]["extractor"] for s in scores} == {"profiles"}


def test_weights_name_foreign_classes_with_their_version(folder):
    description = runs.describe(folder / "runs" / "teacher")["description"]
    assert description["process"] == {"name": "my_package.process:PowerFlow", "power": 1.5}
    assert description["grid"] == {"name": "my_package.grid:QuadraticGrid"}
    assert description["backbone"]["name"] == "my_package.backbone:PlainConfig"
    assert description["packages"] == {"my-package": "1.2"}


def test_loading_runs_no_code_that_is_not_allowed(folder, nothing_allowed, monkeypatch):
    address = folder / "runs" / "teacher"
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        monkeypatch.delitem(sys.modules, name)
    for allowed in ((), ("my_pack",), ("other",)):
        with pytest.raises(InputError, match="--allow-code my_package"):
            fewstep.load(address, allow_code=allowed)
    with pytest.raises(InputError, match="--allow-code my_package"):
        fewstep.load(address, weights="raw")
    assert not any(name.startswith("my_package") for name in sys.modules), "its code has run"
    for allowed in (
        ["my_package"],
        ["my_package.process", "my_package.backbone", "my_package.grid"],
    ):
        generator = fewstep.load(address, allow_code=allowed)
        assert type(generator.denoiser.process).__name__ == "PowerFlow"


@pytest.mark.parametrize(
    "verb",
    [
        "sample {} -o x.png",
        "evaluate {}",
        "compare {}",
        "record {} --out y",
        "export {} --to torch --out z",
    ],
)
def test_every_verb_refuses_in_one_line(folder, nothing_allowed, verb, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(verb.format("runs/teacher").split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--allow-code my_package" in error
    assert main(["sample", "runs/teacher", "-o", "x.png", "--allow-code"]) == 2


def test_the_samples_of_saved_weights_are_the_same(folder):
    generator = fewstep.load(folder / "runs" / "teacher", allow_code=["my_package"])
    runs.save_generator(folder / "again.safetensors", generator, None, {})
    again = fewstep.load(folder / "again.safetensors", allow_code=["my_package"])
    noise = fewstep.noise_from_seeds(range(3), (1, 8, 8))
    assert torch.equal(again(noise, steps=3), generator(noise, steps=3))


def test_saving_refuses_what_loading_could_not_build(package, tmp_path):
    process = importlib.import_module("my_package.process")
    backbone = importlib.import_module("my_package.backbone")

    @dataclass(frozen=True)
    class Hidden(process.PowerFlow):
        """Not importable: it is local to a function."""

    network = backbone.PlainConfig(width=8).build(shape=(1, 8, 8))
    hidden = Generator(Denoiser(network, Hidden(), Velocity()), SampleSpec((1, 8, 8)))
    with pytest.raises(
        InputError, match=r"the process .*test_extending:.*Hidden cannot be imported"
    ):
        runs.save_generator(tmp_path / "m.safetensors", hidden, None, {})
    network.conv_in = torch.nn.Conv2d(2, 4, 3)  # no field of the config says so
    other = Generator(Denoiser(network, process.PowerFlow(), Velocity()), SampleSpec((1, 8, 8)))
    with pytest.raises(InputError, match="builds another network from its config"):
        runs.save_generator(tmp_path / "m.safetensors", other, None, {})
    assert not (tmp_path / "m.safetensors").exists()


def test_a_class_without_its_decorator_is_named(package):
    """A subclass of a dataclass is one itself only with the decorator: its fields would be lost."""

    class Bare(importlib.import_module("my_package.process").PowerFlow):
        speed: float = 1.0

    backbone = importlib.import_module("my_package.backbone")
    network = backbone.PlainConfig(width=8).build(shape=(1, 8, 8))
    generator = Generator(Denoiser(network, Bare(), Velocity()), SampleSpec((1, 8, 8)))
    with pytest.raises(InputError, match="the process Bare is no dataclass: write @dataclass"):
        generator.describe()


def test_what_cannot_be_resolved_says_why(package):
    for noun, name, message in (
        ("grid", "my_package.grid:Missing", "cannot import the grid my_package.grid:Missing"),
        ("grid", "no_package:Grid", "cannot import the grid no_package:Grid: No module"),
        ("sampler", "huen", "unknown sampler 'huen'; did you mean heun"),
    ):
        with pytest.raises(InputError, match=message):
            plugins.resolve(noun, name)
    assert "bars" in plugins.names("source")
    assert plugins.name_of("grid", plugins.resolve("grid", "karras")) == "karras"


@pytest.mark.parametrize("noun", plugins.nouns())
def test_every_registered_name_is_there_and_found_again(noun):
    for name in plugins.REGISTRY[noun]:
        if noun in ("extractor", "tracker"):
            continue  # some need weights or extras
        kind = plugins.resolve(noun, name)
        assert not hasattr(kind, "__qualname__") or plugins.name_of(noun, kind) == name
