"""`fewstep progress`: where a run stands, and its log as CSV."""

import csv
import io
import json
import math
import subprocess
import sys

import pytest

from fewstep.checksums import json_line
from fewstep.cli import main
from fewstep.run_folder import Run

TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=8",
    "fit.steps=25",
    "evaluate.every=10",
    "evaluate.samples=10",
    "evaluate.steps=[1,2]",
    "evaluate.extractor='pixels'",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("progress") / "x"
    assert main(["train", "digits-flow", *TINY, "--out", str(out)]) == 0
    return Run(out)


def wanted_of(line):
    """A line's cells, flattened by hand."""
    cells = {key: value for key, value in line.items() if key != "score"}
    score = dict(line.get("score", {}))
    steps = score.pop("steps", None)
    return cells | {f"score/{steps}-step/{key}": value for key, value in score.items()}


def same(cell, value):
    if value is None:
        return cell == ""
    if isinstance(value, list | dict | bool):
        return json.loads(cell) == value
    if isinstance(value, float) and math.isnan(value):
        return math.isnan(float(cell))
    return cell == value if isinstance(value, str) else type(value)(cell) == value


def check(text, lines):
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(lines)
    columns = list(dict.fromkeys(key for line in lines for key in wanted_of(line)))
    assert list(rows[0]) == columns
    for row, line in zip(rows, lines, strict=True):
        wanted = wanted_of(line)
        for column in columns:
            assert same(row[column], wanted.get(column)), (column, row[column])


def test_the_csv_holds_every_value_of_the_log(run, tmp_path, capsys):
    lines = run.progress()
    assert sum("score" in line for line in lines) == 4
    capsys.readouterr()
    assert main(["progress", str(run.folder), "--csv"]) == 0
    text = capsys.readouterr().out
    check(text, lines)
    assert "score/1-step/extractor" in text and "pixels" in text
    out = tmp_path / "log.csv"
    assert main(["progress", str(run.folder), "-o", str(out)]) == 0
    assert out.read_bytes() == text.encode()


def test_pandas_reads_the_csv(run, tmp_path):
    pandas = pytest.importorskip("pandas")
    out = tmp_path / "log.csv"
    assert main(["progress", str(run.folder), "--csv", "-o", str(out)]) == 0
    frame, lines = pandas.read_csv(out), run.progress()
    assert frame["step"].tolist() == [line["step"] for line in lines]
    losses = [line["student/loss"] for line in lines if "student/loss" in line]
    assert frame["student/loss"].dropna().tolist() == pytest.approx(losses)
    scores = [s["frechet"] for line in lines if (s := line.get("score")) and s["steps"] == 2]
    assert frame["score/2-step/frechet"].dropna().tolist() == pytest.approx(scores)


def test_odd_values_survive(tmp_path, capsys):
    run = Run(tmp_path)
    run.log({"step": 0, "hardware": 'a "GPU", two of them\nin all'})
    run.log({"step": 1, "loss": math.nan, "big": 1e300, "third": 1 / 3, "list": [1, "a"]})
    run.log({"step": 1, "flag": True, "score": {"steps": 4, "nothing": None, "name": "é"}})
    assert main(["progress", str(tmp_path), "--csv"]) == 0
    check(capsys.readouterr().out, run.progress())
    assert main(["progress", str(tmp_path)]) == 0


def test_the_table_says_where_the_run_stands(run, capsys):
    capsys.readouterr()
    assert main(["progress", str(run.folder)]) == 0
    told = capsys.readouterr().out
    assert "25 of 25 (100 %)" in told and "200" in told and "steps/s" in told
    lines = run.progress()
    losses = [line["student/loss"] for line in lines if "student/loss" in line]
    assert f"{sum(losses) / len(losses):.4g}" in told
    for line in lines[-3:]:
        if score := line.get("score"):
            assert f"Fréchet {score['frechet']:.2f} (pixels, step 20)" in told


def test_the_time_is_that_of_all_sessions(tmp_path, capsys):
    run = Run(tmp_path)
    for step, seconds in ((10, 40), (20, 80), (30, 30), (40, 50), (50, 70)):
        run.log({"step": step, "images": 8 * step, "seconds": seconds, "memory": 1000 + step})
    assert main(["progress", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "0:02:30, 0.5 steps/s" in told and "400" in told
    assert "1,050 MiB at most" in told


def test_a_folder_without_a_log_is_told_in_one_line(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        assert main(["progress", str(tmp_path / name)]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("fewstep: ") and name in line and "\n" not in line
    (tmp_path / "file").touch()
    assert main(["progress", str(run.folder), "-o", str(tmp_path / "file" / "x.csv")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_a_reader_may_leave_early(tmp_path):
    run = Run(tmp_path)
    lines = (json_line({"step": step, "loss": 0.5}) for step in range(50_000))
    run.progress_file.write_bytes(b"".join(lines))
    command = [sys.executable, "-m", "fewstep", "progress", str(tmp_path), "--csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "step,loss\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() in (0, 120)  # 120: Python's own, where the flush at its exit fails
