"""Two processes of `torchrun` work as one; if they disagree, one line says so first."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fewstep import runs
from fewstep.autoencoder_files import save_autoencoder
from fewstep.cli import main
from fewstep.data.folder import read_folder
from fewstep.evaluation import Evaluator
from fewstep.metrics import EvalProtocol
from fewstep.run_folder import Run
from prompted import RECIPE, captioned_folder
from stripes import autoencoder

SCRIPT = """
import contextlib, io, json, os, sys
import torch
torch.set_num_threads(1)
from fewstep.cli import main
from fewstep.distributed import exit_process
rank, results = int(os.environ["RANK"]), []
for commands in json.loads(sys.argv[1]):
    errors, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        code = main(commands[rank])
    results.append([code, errors.getvalue(), output.getvalue()])
print(json.dumps(results))
exit_process(0)
"""
SMALL = (
    "student.backbone.channels=[8] student.backbone.attention=[] student.backbone.groups=4 "
    "fit.steps=2 fit.batch=8 fit.lr=1e-3"
)


def run_ranks(*commands):
    """[exit code, stderr, stdout] of each rank, for pairs of commands that two processes run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = json.dumps([[command.split() for command in pair] for pair in commands])
    processes = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", SCRIPT, words],
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return list(zip(*map(json.loads, outputs), strict=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Everything at once: starting two processes takes longer than all of their commands."""
    home = tmp_path_factory.mktemp("ranks")
    train = f"train digits-flow {SMALL}"
    run = f"{home}/run"
    assert main(f"{train} --out {run}".split()) == 0
    two = f"{train} fit.save_every=1 --out {home}"
    folder = home / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(9):
            Image.new("L", (8, 8), i + 9 * (name == "b")).save(folder / name / f"{i}.png")
    images = f"train digits-flow {SMALL} data.name=folder data.path"
    evaluate = f"evaluate {run} --extractor pixels --samples 1100 --steps 1"
    record = f"record {run} --out {home}/pairs --steps 2 -n 4"
    scores = "evaluate={every=4, steps=[1], samples=600, extractor='pixels'}"
    together = f"{train} fit.steps=4 fit.batch=10 {scores.replace(' ', '')} --out {home}"
    assert main(f"{together}/one".split()) == 0
    save_autoencoder(home / "ae.safetensors", autoencoder(), None, {})
    latents = f"{train} fit.steps=3 data.flip=true data.autoencoder={home}/ae.safetensors"
    assert main(f"{latents} --out {home}/latents-of-one".split()) == 0
    recorded = f"record {run} --steps 1 -n 1100 --allow-out-of-range --out {home}"
    assert main(f"{recorded}/store-of-one".split()) == 0
    pairs = {
        "train": (f"{together}/two",) * 2,
        "record": (f"{recorded}/store-of-two",) * 2,
        "latents": (f"{latents} --out {home}/latents-of-two",) * 2,
        "seed": (f"{two}/seed fit.seed=1", f"{two}/seed fit.seed=2"),
        "lr": (f"{two}/lr", f"{two}/lr fit.lr=0.002"),
        "missing data": (f"{images}={folder} --out {home}/d", f"{images}={home}/no --out {home}/d"),
        "other data": (f"{images}={folder} --out {home}/d", f"{images}={folder}/a --out {home}/d"),
        "batch": (f"{two}/batch fit.batch=1",) * 2,
        "value": (f"{two}/value fit.lr=-1",) * 2,
        "loss": (f"{two}/diverged fit.lr=1e30 fit.clip=0 fit.warmup=0 fit.save_every=9",) * 2,
        "folder": (f"{train} fit.steps=3 --out {home}/x", f"{train} fit.steps=3 --out {run}"),
        "recording": (f"{record} --seed 3", f"{record} --seed 4"),
        "samples": (f"{evaluate} --seed 5", f"{evaluate} --seed 6"),
        "absent run": (evaluate, evaluate.replace(run, f"{home}/none")),
        "sample": (f"sample {run} -o {home}/x.png",) * 2,
        "evaluate": (f"{evaluate} --json",) * 2,
        "again": (evaluate,) * 2,
    }
    return home, dict(zip(pairs, run_ranks(*pairs.values()), strict=True))


def test_two_ranks_give_the_weights_and_scores_of_one(results):
    home, outcomes = results
    assert [code for code, *_ in outcomes["train"]] == [0, 0]
    one, two = (load_file(home / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)
    lines = [Run(home / name).progress() for name in ("one", "two")]
    assert [[*line] for line in lines[0]] == [[*line] for line in lines[1]]
    scores = [line["score"]["frechet"] for log in lines for line in log if "score" in line]
    assert scores[1] == pytest.approx(scores[0], rel=1e-3) and len(scores) == 2


def test_two_ranks_train_on_latents_as_one_does(results):
    home, outcomes = results
    assert [code for code, *_ in outcomes["latents"]] == [0, 0]
    one, two = (runs.load(home / name) for name in ("latents-of-one", "latents-of-two"))
    assert one.decoder.autoencoder == two.decoder.autoencoder and one.spec.shape == (2, 2, 2)
    for name, value in one.denoiser.state_dict().items():
        torch.testing.assert_close(two.denoiser.state_dict()[name], value, rtol=1e-3, atol=2e-5)


def test_two_ranks_record_the_store_of_one(results):
    home, outcomes = results
    assert [code for code, *_ in outcomes["record"]] == [0, 0]
    assert sum(output.count("1100 pairs") for _, _, output in outcomes["record"]) == 1
    one, two = (
        {path.name: path.read_bytes() for path in (home / name).iterdir()}
        for name in ("store-of-one", "store-of-two")
    )
    assert one == two and len(one) > 2


@pytest.mark.parametrize(
    ("case", "message"),
    {
        "seed": "fit.seed is 1 in process 0 and 2 in process 1",
        "lr": "fit.lr is 0.001 in process 0 and 0.002 in process 1",
        "missing data": "process 1 of 2: the folder",
        "other data": "the hash of data is",
        "batch": "fit.batch is 1, too few for 2 processes",
        "value": "fit.lr is -1; it must be a number above 0",
        "recording": "seed is 3 in process 0 and 4 in process 1",
        "samples": "seed is 5 in process 0 and 6 in process 1",
        "absent run": "process 1 of 2: ",
    }.items(),
)
def test_the_first_process_says_what_differs(results, case, message):
    home, outcomes = results
    (code, errors, _), (other_code, other_errors, _) = outcomes[case]
    assert (code, other_code, other_errors) == (2, 2, "")
    assert errors.startswith("fewstep: ") and errors.count("\n") == 1 and message in errors
    assert not (home / case).exists() and not (home / "pairs").exists()


def test_the_first_process_says_that_a_loss_is_infinite(results):
    (code, errors, _), (other_code, other_errors, _) = results[1]["loss"]
    assert (code, other_code, other_errors) == (2, 2, "")
    (line,) = [line for line in errors.splitlines() if line.startswith("fewstep: ")]
    assert "run the same command with a lower fit.lr (now 1e+30)" in line


def test_a_view_of_the_run_folder_that_differs(results):
    (code, errors, _), (other_code, *_) = results[1]["folder"]
    assert (code, other_code) == (2, 2) and errors.count("\n") == 1


def test_the_work_of_one_process_is_refused(results):
    for code, errors, _ in results[1]["sample"]:
        assert code == 2 and "fewstep sample is the work of one process" in errors


def test_processes_share_an_evaluation_and_keep_one_score(results, capsys):
    home, outcomes = results
    (code, _, output), (other_code, _, other_output) = outcomes["evaluate"]
    assert (code, other_code, other_output) == (0, 0, "")
    assert len(Run(home / "run").scores()) == 1  # two evaluations, the second from the first
    (score,) = json.loads(output)
    evaluate = f"evaluate {home}/run --extractor pixels --samples 1100 --steps 1 --json"
    (home / "run" / "scores.jsonl").unlink()
    assert main(evaluate.split()) == 0
    (alone,) = json.loads(capsys.readouterr().out)
    for varying in ("seconds_per_image", "device"):
        del score[varying], alone[varying]
    assert score == alone


@pytest.mark.slow
def test_two_ranks_that_read_prompts_give_the_weights_pairs_and_scores_of_one(tmp_path):
    images = captioned_folder(tmp_path / "images")
    (tmp_path / "text.toml").write_text(RECIPE.format(images=images), encoding="utf-8")
    run, pairs = f"{tmp_path}/one", f"--steps 2 -n 1100 --allow-out-of-range --out {tmp_path}"
    train = f"train {tmp_path}/text.toml fit.steps=4 --out {tmp_path}"
    assert main(f"{train}/one".split()) == 0
    assert main(f"record {run} {pairs}/pairs-one".split()) == 0
    (tmp_path / "dmd.toml").write_text(
        f"data={{name='folder', path='{images}', labels=false}}\n"
        f"teacher={{load='{run}'}}\npairs={{load='{tmp_path}/pairs-one'}}\n"
        "method={name='dmd', regression=1.0}\nfit={steps=2, batch=4}\n"
    )
    student = f"train {tmp_path}/dmd.toml --out {tmp_path}"
    assert main(f"{student}/dmd-one".split()) == 0
    evaluate = f"evaluate {run} --extractor pixels --samples 600 --steps 1 --json"
    commands = [f"{train}/two", f"record {run} {pairs}/pairs-two", f"{student}/dmd-two", evaluate]
    outcomes = run_ranks(*((command, command) for command in commands))
    assert [code for outcome in outcomes for code, *_ in outcome] == [0] * 8, outcomes
    for kind in ("", "dmd-"):
        one, two = (
            load_file(tmp_path / f"{kind}{n}" / "model.safetensors") for n in ("one", "two")
        )
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / f"pairs-{n}").iterdir()}
        for n in ("one", "two")
    )
    assert one == two and len(one) > 2
    (score,) = json.loads(outcomes[3][0][2])
    evaluator = Evaluator(read_folder("train", path=images), EvalProtocol(600, "pixels"))
    alone = evaluator.score(runs.load(run), steps=1)
    assert score["frechet"] == pytest.approx(alone.frechet, rel=1e-6)
    assert score["prompts"] == "captions of the set"
