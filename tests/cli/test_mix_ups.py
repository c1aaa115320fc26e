"""A path of one kind where a command needs another: one line says what it is and what to do."""

import json

import pytest
import torch
from PIL import Image

from fewstep import runs, store
from fewstep.backbones import UNetConfig
from fewstep.cli import main
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.paths import IMAGE_SUFFIXES, NAMES, check_kind, identify
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """One path of each kind, by its kind."""
    folder = tmp_path_factory.mktemp("kinds")
    paths = {kind: folder / kind for kind in ("run", "store", "diffusers", "images")}
    shape = (1, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNetConfig(channels=(4,), layers=1, attention=(), groups=2).build(shape=shape)
    generator = Generator(Denoiser(network, Flow(), Velocity()), SampleSpec(shape))
    runs.save_generator(paths["run"] / "model.safetensors", generator, None, {})
    (paths["run"] / "recipe.toml").write_text("[data]\n")
    (paths["run"] / "samples").mkdir()
    Image.new("L", (8, 8)).save(paths["run"] / "samples" / "step-0000001.png")
    schema = {"x0": store.U8(shape), "seed": store.Raw(torch.int64)}
    writer = store.Writer(paths["store"], schema=schema, count=2, provenance={})
    writer.write(0, {"x0": torch.zeros(2, *shape), "seed": torch.arange(2)})
    writer.finish()
    (paths["diffusers"] / "unet").mkdir(parents=True)
    index = json.dumps({"_class_name": "DDPMPipeline"})
    (paths["diffusers"] / "model_index.json").write_text(index)
    paths["images"].mkdir()
    Image.new("L", (8, 8)).save(paths["images"] / "a.PNG")
    paths["recipe"] = folder / "recipe.toml"
    paths["recipe"].write_text('[data]\nname = "digits"\n[method]\nname = "denoise"\n')
    return paths


def test_every_kind_is_identified(paths, tmp_path):
    assert {kind: identify(path) for kind, path in paths.items()} == {kind: kind for kind in paths}
    assert {*paths, "checkpoint"} == {*NAMES}
    assert identify(tmp_path) is None and identify(tmp_path / "nothing") is None
    (tmp_path / "manifest.json").write_text('{"name": "my web app"}')
    (tmp_path / "config.json").write_text("{}")
    assert identify(tmp_path) is None
    (tmp_path / "cat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "cat" / "a.png")
    assert identify(tmp_path) == "images"
    assert identify(tmp_path / ("x" * 5000)) is None  # the system refuses such a name
    unfinished = tmp_path / "unfinished"
    schema = {"x0": store.U8((1, 2, 2))}
    store.Writer(unfinished, schema=schema, count=2, provenance={})
    assert identify(unfinished) == "store"
    assert ".png" in IMAGE_SUFFIXES


def test_every_mix_up_has_a_message(paths):
    for expected in set(NAMES) - {"diffusers"}:
        for kind, path in paths.items():
            if kind == expected:
                check_kind(path, expected)
                continue
            with pytest.raises(ValueError, match=f"is {NAMES[kind]}, not {NAMES[expected]}: "):
                check_kind(path, expected)


RUN = {
    "store": "is a store of recorded pairs, not a run: students read it by pairs.load={path}",
    "diffusers": "is a checkpoint of diffusers, not a run: write diffusers:{path}",
    "images": "is a folder of images, not a run: write folder:{path} where a data set is named",
    "recipe": "is a recipe, not a run: train it with `fewstep train {path} --out DIR`, and give "
    "that DIR",
}
CHECKPOINT = {
    "run": "is a run, not a checkpoint of another project: write {path} alone",
    "store": "is a store of recorded pairs, not a checkpoint of another project: students read it "
    "by pairs.load={path}",
    "images": "is a folder of images, not a checkpoint of another project: write folder:{path} "
    "where a data set is named",
}
STORE = {
    "run": "is a run, not a store of recorded pairs: record pairs with `fewstep record {path} "
    "--out DIR`, and give that DIR",
    "diffusers": "is a checkpoint of diffusers, not a store of recorded pairs: record pairs with "
    "`fewstep record diffusers:{path} --out DIR`, and give that DIR",
    "images": "is a folder of images, not a store of recorded pairs: pairs of noise and image are "
    "recorded by `fewstep record RUN --out DIR`",
}
SET = {
    "run": "is a run, not a folder of images: give the folder of the images themselves",
    "store": "is a store of recorded pairs, not a folder of images: give the folder of the images "
    "themselves",
    "diffusers": "is a checkpoint of diffusers, not a folder of images: give the folder of the "
    "images themselves",
}
RECIPE = {
    "run": "is a run, not a recipe: its recipe is {path}/recipe.toml",
    "store": "is a store of recorded pairs, not a recipe: a recipe names it by pairs.load={path}",
    "diffusers": "is a checkpoint of diffusers, not a recipe: a recipe names it by "
    "teacher.load=diffusers:{path}",
    "images": "is a folder of images, not a recipe: a recipe names it by data.name=folder "
    "data.path={path}",
}
TAUGHT = ["distill", "digits-regress", "data.labels=false", "--out", "{out}"]
DOORS = [
    (RUN, ["sample", "{path}", "-o", "{out}.png"]),
    (RUN, ["evaluate", "{path}"]),
    (RUN, ["compare", "{path}", "--out", "{out}.html"]),
    (RUN, ["record", "{path}", "--out", "{out}"]),
    (RUN, ["progress", "{path}"]),
    (RUN, [*TAUGHT, "teacher.load={path}"]),
    (RUN, [*TAUGHT, "teacher.load={run}", "student.init={path}"]),
    (CHECKPOINT, ["sample", "diffusers:{path}", "-o", "{out}.png"]),
    (CHECKPOINT, ["evaluate", "edm:{path}", "--data", "digits"]),
    (CHECKPOINT, ["record", "lucidrains:{path}?image_size=8", "--out", "{out}"]),
    (CHECKPOINT, ["convert", "openai:{path}?image_size=8", "--out", "{out}.safetensors"]),
    (STORE, ["record", "--verify", "{path}"]),
    (STORE, ["record", "--info", "{path}"]),
    (STORE, [*TAUGHT, "teacher.load={run}", "pairs.load={path}"]),
    (SET, ["doctor", "folder:{path}"]),
    # runs are described too
    ({kind: SET[kind] for kind in SET if kind != "run"}, ["doctor", "{path}"]),
    (SET, ["evaluate", "{run}", "--data", "folder:{path}"]),
    (SET, ["compare", "{run}", "--data", "{path}", "--out", "{out}.html"]),
    (SET, ["train", "digits-flow", "data.name=folder", "data.path={path}", "--out", "{out}"]),
    (SET, ["train", "digits-flow", "data.name={path}", "--out", "{out}"]),
    (RECIPE, ["train", "{path}", "--out", "{out}"]),
    (RECIPE, ["distill", "{path}", "--out", "{out}"]),
]
CASES = [(kind, message, argv) for door, argv in DOORS for kind, message in door.items()]


@pytest.mark.parametrize(
    ("kind", "message", "argv"), CASES, ids=[" ".join([kind, *argv[:3]]) for kind, _, argv in CASES]
)
def test_a_path_of_another_kind_is_told_apart(kind, message, argv, paths, tmp_path, capsys):
    path, out = paths[kind], tmp_path / "out"
    words = [word.format(path=path, run=paths["run"], out=out) for word in argv]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error == f"fewstep: {path} {message.format(path=path)}\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["train", "digits-flow", "data.name={images}"],
            "{images} is a folder: in a recipe, set data.name=folder data.path={images}; in "
            'Python, load("folder", path="{images}")',
        ),
        (
            ["train", "digits-flow", "data.name=folder:{images}"],
            "folder:{images} is a name with a path: in a recipe, set data.name=folder "
            'data.path={images}; in Python, load("folder", path="{images}")',
        ),
        (
            ["sample", "digits-flow", "-o", "x.png"],
            "digits-flow does not exist: it is a recipe's name; train it, `fewstep train "
            "digits-flow --out DIR`, for a run",
        ),
        (
            ["sample", "{run}x", "-o", "x.png"],
            "{run}x does not exist: give a run folder or a weights file, or another project's "
            "checkpoint as diffusers:PATH, ",
        ),
        (
            [*TAUGHT[:2], "teacher.load={run}", "data.name=folder", "data.path={images}"],
            "the teacher {run} generates images of shape (1, 8, 8) with 0 classes, but those of "
            "data.name=folder have shape (3, 8, 8) and 0 classes",
        ),
        (
            [*TAUGHT[:2], "teacher.load={run}", "data.size=16"],
            "the teacher {run} generates images of shape (1, 8, 8) with 0 classes, but those of "
            "data.name=digits have shape (1, 16, 16) and 10 classes; data.size=8 resizes the "
            "images and data.labels=false trains without classes",
        ),
        (
            [*TAUGHT[:3], "teacher.load={run}", "data.size=16"],
            "the teacher {run} generates images of shape (1, 8, 8) with 0 classes, but those of "
            "data.name=digits have shape (1, 16, 16) and 0 classes; data.size=8 resizes the images",
        ),
    ],
)
def test_what_is_meant_is_told(argv, message, paths, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([word.format(**paths) for word in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fewstep: {message.format(**paths)}") and error.count("\n") == 1
