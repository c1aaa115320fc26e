"""`fewstep average`: averages of any length from the snapshots of a run."""

import math
import shutil
from contextlib import closing

import pytest
import torch

from fewstep import runs
from fewstep.averaging import Profile, combine, reconstruct
from fewstep.cli import main
from fewstep.ema import power_exponent
from fewstep.errors import InputError
from fewstep.optimizers import adapt_config
from fewstep.planning import plan_recipe
from fewstep.recipe import read
from fewstep.run_folder import Run
from fewstep.runner import run_recipe
from fewstep.weights_file import read_weights_file, write_weights_file

TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=8",
    "fit.steps=32",
    "fit.warmup=0",
    "fit.lr=1e-2",
    "fit.save_every=10",
]
LENGTHS = ["fit.ema_lengths=[0.05,0.1]", "fit.ema_snapshots=8"]


def trained(folder, *settings, until=None):
    with closing(run_recipe(read("digits-flow", [*TINY, *settings]), folder)) as steps:
        for progress in steps:
            if progress.step == until:
                break
    return Run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("averages") / "run", *LENGTHS)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_average_is_the_one_of_a_run_that_tracked_it(run, tmp_path, capsys):
    """The last snapshot of the second run has the average of length 0.08, step by step."""
    more = trained(tmp_path / "more", "fit.ema_lengths=[0.05,0.1,0.08]", "fit.ema_snapshots=8")
    capsys.readouterr()
    out = str(tmp_path / "a.safetensors")
    assert main(["average", str(run.folder), "--length", "0.08", "-o", out]) == 0
    assert "length 0.08, of 8 snapshots; its profile differs by 1.1%" in capsys.readouterr().out
    ours = dict(runs.load(out).named_parameters())
    tracked, ends = (dict(reconstruct(each, 0.08).weights) for each in (more, run))
    assert ours.keys() == tracked.keys() == ends.keys()
    raw = dict(runs.load(run.folder, weights="raw").named_parameters())
    errors, moves = [], []
    for name, value in ours.items():
        assert value.equal(ends[name])
        errors.append((value - tracked[name]).square().sum())
        moves.append((raw[name] - tracked[name]).square().sum())
    # how far it is from the last weights is known to 2 %
    assert sum(errors) < 0.02**2 * sum(moves)


def test_the_lengths_of_the_snapshots_are_exact(run):
    (*_, last), average = run.snapshots().values(), reconstruct(run, 0.1)

    tensors, _ = read_weights_file(last)
    for name, value in average.weights.items():
        torch.testing.assert_close(value, tensors[f"1.{name}"], rtol=1e-5, atol=1e-6)
    assert average.error < 1e-5


def test_averages_change_nothing_else(run, tmp_path):
    plain = trained(tmp_path / "plain")
    assert not plain.averages.exists()
    for weights in ("ema", "raw"):
        a, b = (runs.load(each.folder, weights=weights).state_dict() for each in (plain, run))
        assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("second", [0.05, 0.05 * (1 + 1e-9), 0.05 * (1 + 1e-6)])
def test_lengths_that_are_nearly_equal_do_not_magnify_rounding_errors(second):
    """Weights that grow as t² have the average (e + 1)/(e + 3); ours are stored in f32."""
    profiles = [
        Profile(power_exponent(length), step) for step in range(1, 17) for length in (0.05, second)
    ]
    target = Profile(power_exponent(0.08), 16)
    factors, error = combine(profiles, target)
    averages = [(p.exponent + 1) / (p.exponent + 3) * p.time**2 for p in profiles]
    stored = torch.tensor(averages, dtype=torch.float32).tolist()
    value = sum(map(math.prod, zip(stored, factors, strict=True)))
    truth = (target.exponent + 1) / (target.exponent + 3) * target.time**2
    assert value == pytest.approx(truth, rel=0.03) and error < 0.15


def test_a_number_of_snapshots_needs_lengths():
    with pytest.raises(InputError, match="ema_snapshots = 8 has no effect without fit.ema_lengths"):
        read("digits-flow", ["fit.ema_snapshots=8"])
    fit = read("digits-flow", LENGTHS).fit
    assert adapt_config(fit).ema_snapshots is None


@pytest.mark.parametrize("stop", [9, pytest.param(16, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_has_the_same_snapshots(run, tmp_path, stop):
    trained(tmp_path / "run", *LENGTHS, until=stop)
    assert [*Run(tmp_path / "run").snapshots()] == [*range(4, stop + 1, 4)]
    again = trained(tmp_path / "run", *LENGTHS)
    assert content(again.averages) == content(run.averages)
    assert again.state_file.read_bytes() == run.state_file.read_bytes()


@pytest.mark.slow
def test_snapshots_of_a_killed_run_after_its_last_checkpoint_are_written_again(run, tmp_path):
    trained(tmp_path / "run", *LENGTHS, until=10)
    state = Run(tmp_path / "run").state_file.read_bytes()
    again = trained(tmp_path / "run", *LENGTHS, until=19)
    again.state_file.write_bytes(state)  # a kill leaves the state of the last checkpoint
    again.snapshot_file(12).write_bytes(again.snapshot_file(16).read_bytes())
    trained(again.folder, *LENGTHS, until=11)
    assert [*again.snapshots()] == [4, 8]
    trained(again.folder, *LENGTHS)
    assert content(again.averages) == content(run.averages)


def test_a_run_with_snapshots_is_not_extended(run, tmp_path):
    longer = read("digits-flow", [*TINY, *LENGTHS, "fit.steps=64"])
    with (
        pytest.raises(InputError, match="fit.ema_lengths"),
        closing(run_recipe(longer, run.folder, extend=True)) as steps,
    ):
        next(steps)


def test_a_dry_run_counts_memory_and_disk():
    plain, plan = (plan_recipe(read("digits-flow", [*TINY, *more])) for more in ([], LENGTHS))
    one = plain.memory["averages"]
    assert plan.memory["averages"] == 3 * one
    assert (plain.snapshots, plan.snapshots) == (0, 2 * 8 * one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--length", "0.3"], "--length is 0.3; it must be a number from 0.001 to 0.28"),
        (["RUN", "--length", "nan"], "--length is nan"),
        (["PLAIN", "--length", "0.1"], "has no snapshots of averages: train with fit.ema_lengths"),
        (["FILE", "--length", "0.1"], "is no run folder"),
        (["RUN", "--length", "0.1", "-o", "x.png"], "must be the name of a .safetensors file"),
        (["RUN", "--length", "0.1", "-o", "RUN/model.safetensors"], "is the place of the run's"),
        (["RUN", "--length", "0.1", "-o", "RUN/../run/model.safetensors"], "the run's own files"),
        (["RUN", "--length", "0.1", "-o", "RUN/averages/x.safetensors"], "the run's own files"),
        (["fewstep:digits", "--length", "0.1"], "is no run folder"),
    ],
)
def test_wrong_words_are_one_line(run, tmp_path, capsys, words, message):
    places = {"RUN": str(run.folder), "PLAIN": str(tmp_path), "FILE": str(run.model_file)}
    shutil.copy(run.recipe_file, tmp_path)
    shutil.copy(run.model_file, tmp_path)
    for word, place in places.items():
        words = [text.replace(word, place) for text in words]
    before = content(run.averages)
    assert main(["average", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert content(run.averages) == before


def test_damaged_snapshots_are_refused(run, tmp_path, capsys):
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"))
    path = copy.snapshot_file(8)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(8))
    assert main(["average", str(copy.folder), "--length", "0.1"]) == 2
    assert "its tensors do not match" in capsys.readouterr().err
    assert main(["doctor", str(copy.folder)]) == 2
    assert f"{path} is damaged" in capsys.readouterr().out
    assert main(["doctor", str(copy.snapshot_file(4))]) == 0
    assert "SHA-256 matches; snapshot of averages, step 4" in capsys.readouterr().out
    shutil.copy(copy.model_file, path)
    assert main(["average", str(copy.folder), "--length", "0.1"]) == 2
    assert "is no snapshot of averages" in capsys.readouterr().err
    tensors, note = read_weights_file(copy.snapshot_file(4))
    write_weights_file(path, {name: value[:1] for name, value in tensors.items()}, note)
    assert main(["average", str(copy.folder), "--length", "0.1"]) == 2
    assert f"{path} is of another network" in capsys.readouterr().err
    path.write_bytes(whole)
    with pytest.raises(InputError, match="is a snapshot of averages, from which"):
        runs.load(path)
