"""`fewstep compare` and the protocols of `evaluate`, as a person meets them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fewstep import data, runs
from fewstep.cli import main
from fewstep.export.source import load_source

TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=16",
    "fit.warmup=0",
    "fit.steps=3",
]
QUICK = ["--extractor", "pixels", "--samples", "90", "--steps", "1,2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


def trained(out, *argv):
    assert main([*argv, "--out", str(out)]) == 0
    return str(out)


@pytest.fixture(scope="module")
def teacher(folder):
    return trained(folder / "teacher", "train", "digits-flow", *TINY)


@pytest.fixture(scope="module")
def student(folder, teacher):
    pairs = trained(folder / "pairs", "record", teacher, "-n", "20", "--steps", "2",
                    "--allow-out-of-range")  # fmt: skip
    told = [f"teacher.load={teacher}", f"pairs.load={pairs}", "fit.steps=2", "fit.batch=8"]
    return trained(folder / "student", "distill", "digits-regress", *told)


def compared(capsys, *argv):
    capsys.readouterr()
    assert main(["compare", *argv, *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, *argv):
    capsys.readouterr()
    assert main(list(argv)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("fewstep: ")
    return line


def test_runs_are_measured_by_one_protocol_into_one_report(teacher, student, tmp_path, capsys):
    out = tmp_path / "deep" / "report.html"
    told = compared(capsys, teacher, student, "--out", str(out))
    assert list(told) == ["teacher", "student"]
    assert [s["steps"] for s in told["teacher"]] == [1, 2]
    assert [s["steps"] for s in told["student"]] == [1]  # made for one step
    every = told["teacher"] + told["student"]
    assert (
        len({(s["samples"], s["extractor_hash"], s["reference"], s["resize"]) for s in every}) == 1
    )
    html = out.read_text()
    assert "teacher" in html and "student" in html and "<script" not in html


def test_what_was_measured_is_not_measured_again(teacher, student, tmp_path, capsys, monkeypatch):
    out = ("--out", str(tmp_path / "a.html"))
    first = compared(capsys, teacher, student, *out)

    def never(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("fewstep.evaluation.Evaluator.iter_score", never)
    again = compared(capsys, teacher, student, *out)
    assert main(["evaluate", student, "--json", *QUICK, "--steps", "1"]) == 0
    for name in first:
        for one, other in zip(first[name], again[name], strict=True):
            assert one | {"seconds_per_image": 0} == other | {"seconds_per_image": 0}


def test_guidance_is_for_the_runs_that_were_trained_for_it(teacher, student, tmp_path, capsys):
    out = ("--out", str(tmp_path / "a.html"))
    plain = compared(capsys, teacher, student, *out)
    scores = compared(capsys, teacher, student, *out, "--guidance", "3")
    assert [score["guidance"] for score in scores["teacher"]] == [3.0, 3.0]
    assert [score["guidance"] for score in scores["student"]] == [1.0]
    assert scores["teacher"][0]["frechet"] != plain["teacher"][0]["frechet"]
    assert scores["student"][0]["frechet"] == plain["student"][0]["frechet"]
    assert [score["evaluations"] for score in scores["teacher"]] == [2, 4]
    capsys.readouterr()
    assert main(["evaluate", teacher, "--guidance", "3", "--json", *QUICK]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert [s["frechet"] for s in alone] == [s["frechet"] for s in scores["teacher"]]
    limits = ("--guidance-interval", "0.4,0.6")
    inside = compared(capsys, teacher, "--out", str(tmp_path / "b"), "--guidance", "3", *limits)
    assert [score["evaluations"] for score in inside["teacher"]] == [1, 3]
    page = (tmp_path / "a.html").read_text()
    assert "transfer, guidance 3" in page
    assert "step of transfer, guidance 3" in page  # below its pictures


def test_runs_that_learned_guidance_are_not_guided_again(folder, teacher, tmp_path, capsys):
    words = [f"teacher.load={teacher}", "method.guidance=2.0", *TINY[3:]]
    meanflow = trained(folder / "mf", "distill", "digits-meanflow", *words)
    scores = compared(capsys, teacher, meanflow, "--out", str(tmp_path / "a.html"), "--guidance=3")
    assert {score["guidance"] for score in scores["teacher"]} == {3.0}
    assert {score["guidance"] for score in scores["mf"]} == {1.0}


@pytest.fixture(scope="module")
def circuit(folder):
    tiny = [word.replace("backbone.", "backbone.network.") for word in TINY]
    words = ["method.condition_dropout=0.1", "student.backbone.blocks=0", "method.steps=4"]
    words += ["method.strides=[2]", "method.guidance=2.0"]
    return trained(folder / "circuit", "train", "digits-circuit", *tiny, *words)


def test_a_ring_stays_as_it_is_and_an_ordinary_sampler_is_guided(
    circuit, teacher, tmp_path, capsys
):
    out = ("--out", str(tmp_path / "a.html"))
    scores = compared(capsys, teacher, circuit, *out, "--guidance", "3")
    assert {score["guidance"] for score in scores["circuit"]} == {1.0}
    bare = tmp_path / "bare.safetensors"
    runs.save_generator(bare, runs.load(circuit), None, {})  # of which nothing is known
    scores = compared(capsys, teacher, str(bare), *out, "--guidance", "3", "--data", "digits")
    assert {score["guidance"] for score in scores["bare.safetensors"]} == {1.0}
    guidance = ["--guidance", "2", "--sampler", "transfer"]
    picture = str(tmp_path / "a.png")
    assert main(["sample", circuit, "-o", picture, "-n", "2", "--steps", "2", *guidance]) == 0
    evaluate = ["evaluate", circuit, *QUICK[:-1], "2"]
    assert main([*evaluate, *guidance]) == 0
    source = load_source(circuit, guidance=2.0, sampler="transfer")
    assert source.generator.denoiser.backbone.weight == 2.0
    capsys.readouterr()
    line = fails(capsys, *evaluate, *guidance[:2])
    assert "the sampler ring has no guidance: set the weight" in line


def test_the_precision_of_a_comparison(teacher, student, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.precision.bf16_is_slow", lambda: False)
    out = ("--out", str(tmp_path / "a.html"))
    scores = compared(capsys, teacher, student, *out, "--precision", "bf16")
    assert {s["number_format"] for own in scores.values() for s in own} == {"bf16"}


def test_guidance_of_runs_without_it_is_refused(teacher, student, tmp_path, capsys):
    compare = ["compare", *QUICK, "--out", str(tmp_path / "a.html")]
    line = fails(capsys, *compare, student, "--guidance", "3")
    assert "no run can be guided (student: its method, regress, trained it with labels" in line
    line = fails(capsys, *compare, teacher, student, "--guidance-interval", "0.2,0.8")
    assert "no effect without guidance" in line


def test_retrained_weights_are_measured_again(folder, teacher, tmp_path, capsys):
    out = ("--out", str(tmp_path / "a.html"))
    run = folder / "retrained"
    trained(run, "train", "digits-flow", *TINY)
    first = compared(capsys, str(run), *out)["retrained"]
    kept = (run / "scores.jsonl").read_text()
    for file in ("model.safetensors", "recipe.toml", "progress.jsonl"):
        (run / file).unlink()
    for file in (run / "state").iterdir():
        file.unlink()
    (run / "scores.jsonl").rename(tmp_path / "scores.jsonl")
    for inside in sorted(run.rglob("*"), reverse=True):
        inside.rmdir() if inside.is_dir() else inside.unlink()
    trained(run, "train", "digits-flow", *TINY, "fit.seed=5")
    (run / "scores.jsonl").write_text(kept)
    again = compared(capsys, str(run), *out)["retrained"]
    assert again[0]["frechet"] != first[0]["frechet"]


def test_the_table_says_what_the_scores_depend_on(teacher, tmp_path, capsys):
    capsys.readouterr()
    assert main(["compare", teacher, *QUICK, "--out", str(tmp_path / "a.html")]) == 0
    told = capsys.readouterr().out
    assert "Fréchet distance (pixels)" in told and "90 samples, seed 0, against digits" in told
    assert "resize none" in told and "interval" in told and "report: " in told


def test_weights_files_are_compared_too(teacher, tmp_path, capsys):
    file = tmp_path / "mine.safetensors"
    file.write_bytes((Path(teacher) / "model.safetensors").read_bytes())
    told = compared(capsys, teacher, str(file), "--out", str(tmp_path / "a.html"))
    assert told["teacher"][0]["frechet"] == told["mine.safetensors"][0]["frechet"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "compare needs runs"),
        (["{teacher}", "{teacher}/"], "a run is named twice"),
        (["{teacher}", "--out", "{teacher}"], "is a folder; give the name of a file"),
        (["{teacher}", "--resize", "tf1-bilinear"], "classifier does not resize images"),
        (["{teacher}", "nowhere"], "nowhere does not exist: give a run folder or a weights file"),
        (["{teacher}", "--baseline", "teacha"], "--baseline teacha is not one of the runs"),
        (["{teacher}", "--protocol", "fid5k"], "unknown evaluation protocol 'fid5k'"),
        (["{teacher}", "--steps", "one"], "--steps one"),
        (["{teacher}", "--samples", "1"], "it must be an integer from 2"),
        (["{teacher}", "--weights", "best"], "has no best.safetensors"),
    ],
)
def test_bad_input_is_one_line(teacher, capsys, argv, told):
    assert told in fails(capsys, "compare", *(a.format(teacher=teacher) for a in argv))


@pytest.mark.slow
def test_the_best_weights_are_called_so(folder, teacher, tmp_path, capsys):
    told = ["evaluate.every=1", "evaluate.samples=40", 'evaluate.extractor="pixels"']
    run = trained(folder / "scored", "train", "digits-flow", *TINY, *told, "evaluate.steps=[1]")
    (folder / "scored" / "model.safetensors").rename(tmp_path / "elsewhere")  # not looked at
    found = compared(capsys, run, "--weights", "best", "--out", str(tmp_path / "a.html"))
    (name,) = found
    assert name.startswith("scored (best, step ") and name in (tmp_path / "a.html").read_text()


@pytest.mark.slow
def test_guidance_is_said(teacher, capsys):
    capsys.readouterr()
    assert main(["evaluate", teacher, *QUICK, "--guidance", "3"]) == 0
    assert "transfer, guidance 3" in capsys.readouterr().out
    assert main(["evaluate", teacher, *QUICK, "--guidance", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["guidance"] == 3.0
    limited = ["--guidance", "3", "--guidance-interval", "0.2,0.8", "--autoguidance", teacher]
    assert main(["evaluate", teacher, *QUICK, *limited]) == 0
    assert "transfer, autoguidance 3 at times 0.2 to 0.8" in capsys.readouterr().out
    assert main(["evaluate", teacher, *QUICK, *limited, "--json"]) == 0
    score = json.loads(capsys.readouterr().out)[0]
    assert (score["guidance_interval"], score["autoguidance"]) == ([0.2, 0.8], True)
    assert score["evaluations"] == 1  # of its one step, which is at time 1


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ('evaluate.protocol="fid5k"', "unknown evaluation protocol 'fid5k'"),
        ("evaluate.steps=[]", "evaluate.steps is []; it must be a list of at least 1"),
        ("evaluate.every=-5", "evaluate.every is -5"),
        ("evaluate.samples=1", "it must be an integer from 2"),
        ('evaluate.extractor="inception"', "weights-inception-2015-12-05-6726825d.pth"),
    ],
)
def test_a_mistake_in_measuring_is_told_before_anything_is_trained(
    tmp_path, capsys, monkeypatch, home, told, line
):
    def refused(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr("fewstep.download.urlopen", refused)
    out = tmp_path / "run"
    every = [] if "every" in told else ["evaluate.every=2"]
    found = fails(capsys, "train", "digits-flow", *TINY, *every, told, "--out", str(out))
    assert line in found and not out.exists()


def test_a_loss_that_cannot_see_the_images_is_told_before_anything_is_trained(
    student, folder, tmp_path, capsys, home
):
    told = [f"teacher.load={folder / 'teacher'}", f"pairs.load={folder / 'pairs'}"]
    loss = 'method.loss={name="features", extractor="pixel"}'
    out = tmp_path / "run"
    line = fails(capsys, "distill", "digits-regress", *told, loss, "--out", str(out))
    assert "unknown extractor 'pixel'" in line and not out.exists()


def test_missing_inception_weights_are_told_before_any_sampling(teacher, capsys, monkeypatch, home):
    def refused(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr("fewstep.download.urlopen", refused)
    line = fails(capsys, "evaluate", teacher, "--protocol", "fid50k")
    assert "weights-inception-2015-12-05-6726825d.pth" in line and str(home / "weights") in line


def test_runs_of_other_images_are_refused(folder, teacher, capsys):
    other = trained(folder / "large", "train", "digits-flow", *TINY, "data.size=16")
    line = fails(capsys, "compare", teacher, other, *QUICK)
    assert "generate images of different shapes or classes" in line


def test_runs_of_other_reference_sets_are_not_ranked_together(folder, tmp_path, capsys):
    digits, runs = data.load("digits").images, []
    for name, images in (("first", digits[:100]), ("second", digits[100:220])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(tmp_path / name / f"{i}.png")
        told = ['data.name="folder"', f'data.path="{tmp_path / name}"']
        runs.append(trained(folder / name, "train", "digits-flow", *TINY, *told))
    out = tmp_path / "a.html"
    found = compared(capsys, *runs, "--out", str(out))
    assert len({s["reference"] for own in found.values() for s in own}) == 2
    assert "numbers from different tables cannot be compared" in out.read_text()
