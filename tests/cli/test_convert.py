"""`fewstep convert`: a run or another project's checkpoint becomes one self-describing file."""

import pytest
import torch

import ddpm_folders
import fewstep
from fewstep import runs
from fewstep.cli import main
from fewstep.run_folder import Run
from pretrained import lucid, nvidia
from pretrained.snapshots import dump


def sample(address):
    generator = fewstep.load(address)
    noise = torch.randn(2, *generator.spec.shape, generator=torch.Generator().manual_seed(0))
    return generator(noise, steps=2)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    net = nvidia.snapshot(nvidia.EDMPrecond(nvidia.SongUNet, labels=3))
    (folder / "net.pkl").write_bytes(dump({"ema": net}))
    unet = {f"model.{k}": v for k, v in lucid.Unet(8, (1, 2)).state_dict().items()}
    ddpm_folders.saved(folder / "ddpm")
    torch.save({**lucid.buffers("cosine", "pred_v"), **unet}, folder / "unet.pt")
    return folder


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "edm:{}/net.pkl",
            "backbone edm-unet, process ve, parametrization edm, sampler heun, 3x8x8, 3 classes",
        ),
        ("diffusers:{}/ddpm", "backbone unet, process linear-betas, parametrization eps"),
        (
            "lucidrains:{}/unet.pt?image_size=8",
            "backbone lucidrains-unet, process table, parametrization v, ",
        ),
    ],
)
def test_a_checkpoint_becomes_one_file(checkpoints, tmp_path, capsys, source, message):
    address, out = source.format(checkpoints), tmp_path / "new" / "ours.safetensors"
    assert main(["convert", address, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "ours.safetensors: " in text and " parameters, " in text and message in text
    assert torch.equal(sample(out), sample(address))
    assert runs.describe(out)["recipe"] is None


def test_a_run_keeps_its_recipe(tmp_path, capsys):
    tiny = ["student.backbone.channels=[8]", "student.backbone.attention=[]", "fit.batch=4"]
    run, out = str(tmp_path / "run"), str(tmp_path / "run.safetensors")
    tiny += ["student.backbone.groups=4", "fit.steps=2"]
    assert main(["train", "digits-flow", *tiny, "--out", run]) == 0
    assert main(["convert", run, "-o", out, "--weights", "raw"]) == 0
    assert torch.equal(
        sample(out),
        runs.load(run, weights="raw")(
            torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), steps=2
        ),
    )
    assert main(["convert", run, "-o", out]) == 0
    assert torch.equal(sample(out), sample(run))
    assert runs.describe(out)["recipe"] == runs.describe(run)["recipe"]
    assert main(["sample", out, "-o", str(tmp_path / "grid.png"), "-n", "4"]) == 0


def test_mistakes_are_one_line(checkpoints, tmp_path, capsys):
    (tmp_path / "their.pt").write_bytes((checkpoints / "unet.pt").read_bytes())
    cases = [
        ([f"edm:{checkpoints}/net.pkl", "-o", "x.pt"], "must be the name of a .safetensors file"),
        ([tmp_path / "their.pt", "-o", "x.safetensors"], "load it as lucidrains:"),
        ([f"edm:{tmp_path}/their.pt", "-o", "x.safetensors"], "holds no network of NVIDIA's EDM"),
        ([f"edm:{tmp_path}/none.pkl", "-o", "x.safetensors"], "cannot read"),
        ([f"edm:{checkpoints}/net.pkl", "-o", "x.safetensors", "--score"], "fewstep evaluate"),
        (["emd:x", "-o", "x.safetensors"], "'emd' is not a known source"),
    ]
    for arguments, message in cases:
        assert main(["convert", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_named(checkpoints, tmp_path, capsys):
    folder, file = tmp_path / "folder.safetensors", tmp_path / "file"
    folder.mkdir()
    file.write_text("")
    for out in (folder, file / "x.safetensors"):
        assert main(["convert", f"diffusers:{checkpoints}/ddpm", "--out", str(out)]) == 2
        assert f"--out {out}" in capsys.readouterr().err


def test_a_run_or_the_source_is_never_overwritten(run, tmp_path, capsys):
    alone = tmp_path / "alone.safetensors"
    assert main(["convert", str(run), "-o", str(alone)]) == 0
    for source, out in (
        (run, run / "model.safetensors"),
        (alone, run / "best.safetensors"),
        (alone, alone),
        (alone, tmp_path / "." / ".." / tmp_path.name / alone.name),
    ):
        before = [path.read_bytes() for path in (alone, run / "model.safetensors")]
        assert main(["convert", str(source), "-o", str(out), "--dtype", "f16"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"--out {out}" in error
        assert before == [path.read_bytes() for path in (alone, run / "model.safetensors")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of digits with a score of its weights, and one of others."""
    tiny = ["student.backbone.channels=[8]", "student.backbone.attention=[]", "fit.batch=4"]
    path = tmp_path_factory.mktemp("run") / "run"
    tiny += ["student.backbone.groups=4", "fit.steps=2"]
    assert main(["train", "digits-flow", *tiny, "--out", str(path)]) == 0
    hash = runs.weights_hash(fewstep.load(path))[:16]
    for steps, weights in ((1, hash), (2, "0" * 16)):
        score = {"steps": steps, "extractor": "pixels", "samples": 9, "weights": weights}
        Run(path).append_score({"version": 1, "score": score})
    return path


def test_a_file_takes_licence_and_scores_of_its_weights_along(run, tmp_path):
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    assert main(["convert", str(run), "-o", str(out), "--license", "MIT"]) == 0
    assert main(["convert", str(out), "-o", str(again)]) == 0
    for path in (out, again):
        note = runs.describe(path)
        assert note["license"] == "MIT" and [s["steps"] for s in note["scores"]] == [1]
    assert out.read_bytes() == again.read_bytes()


@pytest.mark.slow
def test_f16_has_its_own_score(run, tmp_path, capsys):
    out, again = tmp_path / "half.safetensors", tmp_path / "again.safetensors"
    assert main(["convert", str(run), "-o", str(out), "--dtype", "f16"]) == 0
    assert "rounding to f16 changes images in [0, 1] by" in capsys.readouterr().out
    assert "scores" not in runs.describe(out)  # those of the run are of other weights
    words = ["--dtype", "f16", "--score", "--steps", "3"]
    assert main(["convert", str(run), "-o", str(out), *words]) == 0
    (score,) = runs.describe(out)["scores"]
    assert (score["steps"], score["extractor"], score["samples"]) == (3, "classifier", 2000)
    assert score["weights"] == runs.weights_hash(fewstep.load(out))[:16]
    assert main(["convert", str(out), "-o", str(again), "--dtype", "f16"]) == 0
    assert out.read_bytes() == again.read_bytes()
