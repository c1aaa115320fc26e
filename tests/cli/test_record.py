"""`fewstep record` as a person meets it: processes, full disks, S3."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from fewstep import runs, store
from fewstep.backbones import UNetConfig
from fewstep.circuits import sample_files
from fewstep.cli import main
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec

WANTED = ["-n", "2100", "--steps", "2", "--sampler", "transfer", "--allow-out-of-range"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Random weights, none of them zero: a map from noise to images like any other."""
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UNetConfig(channels=(8,), layers=1, attention=(), groups=4)
        network = config.build(shape=(1, 8, 8), classes=3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    generator = Generator(Denoiser(network, Flow(), Velocity()), SampleSpec((1, 8, 8), 3))
    runs.save_generator(path, generator, None, {})
    return str(path)


@pytest.fixture(scope="module")
def recorded(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "p"
    assert main(["record", teacher, "--out", str(folder), *WANTED]) == 0
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(*argv, processes=1):
    """The words of a command line in a process of its own, or several under torchrun."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(launch if processes > 1 else []), "-m", "fewstep", "record", *argv]


@pytest.mark.slow
def test_two_processes_under_torchrun_record_the_store_of_one(teacher, recorded, tmp_path):
    out = tmp_path / "p"
    words = command(teacher, "--out", str(out), *WANTED, processes=2)
    told = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("2100 pairs") == 1  # one of them talks
    assert content(out) == content(recorded)


def test_images_out_of_range_are_refused_unless_allowed(teacher, tmp_path, capsys):
    out, few = tmp_path / "p", ["-n", "8", "--steps", "2"]
    assert main(["record", teacher, "--out", str(out), *few]) == 2
    line = capsys.readouterr().err
    share = re.fullmatch(
        r"fewstep: (.*) % of the values of the first 128 images are beyond ±1.5 \(largest \|x\| "
        rf"(.*)\) with 2 steps of heun, so {out} is not recorded: record with a clip \(--clip 1\), "
        r"another sampler or more steps, or allow it \(--allow-out-of-range\)\n",
        line,
    )
    assert share and float(share[1]) > 1 and float(share[2]) > 1.5 and not out.exists()
    assert main(["record", teacher, "--out", str(out), *few, "--clip", "1"]) == 0
    assert (
        f"{out}: 8 pairs; 0.00 % of the values of the images are beyond ±1.5 (largest |x| 1.00)"
        in capsys.readouterr().out
    )
    assert store.Reader(out).provenance["sampler"] == {"name": "heun", "clip": 1.0}
    bad = ["record", teacher, "--out", str(tmp_path / "q"), *few, "--clip"]
    assert main([*bad, "0"]) == 2
    assert "--clip is 0.0; it must be a number above 0" in capsys.readouterr().err


def test_sample_says_that_images_are_out_of_range(teacher, tmp_path, capsys):
    argv = ["sample", teacher, "-o", str(tmp_path / "x.png"), "-n", "8", "--steps", "2"]
    assert main(argv) == 0
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"fewstep: \d+\.\d % of the values of the images are beyond ±1\.5 \(largest \|x\| .*\), "
        r"which the picture cuts off at ±1\n",
        line,
    )


def test_resume_is_the_default_and_can_be_refused(teacher, recorded, capsys):
    before = content(recorded)
    assert main(["record", teacher, "--out", str(recorded), *WANTED]) == 0
    assert main(["record", teacher, "--out", str(recorded), *WANTED, "--resume"]) == 0
    assert main(["record", teacher, "--out", str(recorded), *WANTED, "--no-resume"]) == 2
    assert "is not empty, which --no-resume does not allow" in capsys.readouterr().err
    assert content(recorded) == before


def test_a_store_says_how_its_images_were_guided(teacher, tmp_path):
    guidance = ["--guidance", "50", "--guidance-interval", "0.2,0.8"]
    for name, more in (
        ("a", guidance),
        ("b", [*guidance, "--autoguidance", teacher]),
        ("c", []),
    ):
        out = ["--out", str(tmp_path / name), "-n", "3", *WANTED[2:]]
        assert main(["record", teacher, *out, *more]) == 0
    a, b = (store.Reader(tmp_path / name).provenance for name in "ab")
    assert (a["guidance"], a["guidance_interval"]) == (50.0, [0.2, 0.8])
    assert a["teacher"] == b["teacher"] == runs.network_hash(runs.load(teacher))
    assert (b["guidance"], b["autoguidance"]["weight"]) == (1.0, 50.0)
    # a network that is led away from itself draws as without guidance
    guided, away, plain = (store.Reader(tmp_path / name)[[0, 1, 2]]["x0"] for name in "abc")
    assert (plain - away).abs().max() < 0.01 < (plain - guided).abs().max()


@pytest.mark.filterwarnings("default:--precision is bf16")
def test_images_are_computed_in_the_precision(teacher, tmp_path, capsys, monkeypatch):
    few = ["-n", "8", *WANTED[2:]]
    folders = {precision: str(tmp_path / precision) for precision in ("f32", "bf16")}
    monkeypatch.setattr("fewstep.precision.bf16_is_slow", lambda: False)
    for precision, out in folders.items():
        assert main(["record", teacher, "--out", out, *few, "--precision", precision]) == 0
        assert store.Reader(out).provenance["precision"] == precision
    exact, rounded = (store.Reader(out)[range(8)]["x0"] for out in folders.values())
    assert 0 < (exact - rounded).square().mean().sqrt() < 0.02 * exact.std()
    monkeypatch.setattr("fewstep.precision.bf16_is_slow", lambda: True)
    assert main(["record", teacher, "--out", folders["bf16"], *few, "--precision", "f32"]) == 2
    assert "instructions" not in capsys.readouterr().err
    assert main(["record", teacher, "--out", folders["bf16"], *few, "--precision", "bf16"]) == 0
    assert "--precision is bf16, for which this CPU has no instructions" in capsys.readouterr().err


def test_an_unfinished_store_tells_how_far_it_is(teacher, recorded, tmp_path, capsys):
    out = tmp_path / "p"
    shutil.copytree(recorded, out)
    (out / "shard-00001.zst").unlink()
    plan = store.Reader(recorded).manifest.plan
    (out / "manifest.json").unlink()
    (out / "plan.json").write_bytes(store.seal(plan.describe()))
    capsys.readouterr()
    assert main(["record", "--info", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["finished"], told["records"], told["recorded"]) == (False, 2100, 1076)
    assert main(["record", "--verify", str(out)]) == 2
    assert "is not finished: it has 2 of 3 shards" in capsys.readouterr().err
    assert main(["record", teacher, "--out", str(out), *WANTED]) == 0
    assert content(out) == content(recorded)


def test_samples_of_denoising_circuits_become_a_store_and_back(tmp_path, capsys):
    draws = torch.Generator().manual_seed(0)
    shapes = {"noise": (1, 4, 4), "x0": (1, 4, 4), "rin0": (2, 4, 4), "r_chunks": (5, 2, 4, 4)}
    (tmp_path / "theirs").mkdir()
    for row in range(3):
        sample = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
        path = tmp_path / "theirs" / f"sample_{row:08d}.zst"
        sample_files.write_sample(path, sample, steps=1000)
    theirs, ours, back = (str(tmp_path / name) for name in ("theirs", "ours", "back"))
    assert main(["record", "--convert", theirs, "--out", ours]) == 0
    assert main(["record", "--verify", ours]) == 0
    assert main(["record", "--convert", ours, "--out", back]) == 0
    assert content(tmp_path / "theirs") == content(tmp_path / "back")
    assert main(["record", "--convert", str(tmp_path), "--out", ours]) == 2
    assert "holds no sample_*.zst" in capsys.readouterr().err


FULL = """
mount -t tmpfs -o size=60k,nr_inodes=64 none "$1" || exit 99
shift; "$@"; echo "exit $?"; ls "$0"
mount -o remount,size=4m "$0"
"$@"; echo "exit $?"
cp -r "$0"/p "$0".copy
"""


def test_a_full_disk_is_one_line_and_a_store_to_resume(teacher, recorded, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["unshare", "-Urm", "sh", "-c", FULL, str(disk), str(disk)]
    words += command(teacher, "--out", str(disk / "p"), *WANTED)
    told = subprocess.run(words, capture_output=True, text=True, timeout=200)
    if told.returncode == 99 or "unshare" in told.stderr:
        pytest.skip(f"no right to mount a small disk here: {told.stderr.strip()}")
    assert told.stdout.count("exit") == 2
    assert "exit 2" in told.stdout and "exit 0" in told.stdout
    (line,) = [line for line in told.stderr.splitlines() if line.startswith("fewstep: ")]
    assert "No space left on device; complete files are kept: free some space" in line
    assert "Traceback" not in told.stderr
    assert content(disk.with_name("disk.copy")) == content(recorded)


@pytest.fixture(scope="module")
def s3():
    """An S3 server of this machine, and an empty bucket in it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    told = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in told.items():
            patch.setenv(key, value)
        import s3fs

        files = s3fs.S3FileSystem()
        for _ in range(200):
            try:
                files.mkdir("bucket")
                break
            except Exception:
                time.sleep(0.1)
        yield files
        server.terminate()
        server.wait()


def s3_content(files, address):
    names = files.ls(address.removeprefix("s3://"), detail=False, refresh=True)
    return {name.rsplit("/", 1)[1]: files.cat_file(name) for name in names}


def test_s3_records_reads_and_verifies(s3, teacher, recorded, capsys):
    out = "s3://bucket/whole/pairs"
    assert main(["record", teacher, "--out", out, *WANTED]) == 0
    assert s3_content(s3, out) == content(recorded)
    assert main(["record", "--verify", out]) == 0
    assert main(["record", "--info", out]) == 0
    index = [2099, 0, 1030, 1024]
    local, remote = store.Reader(recorded)[index], store.Reader(out)[index]
    assert all(torch.equal(local[name], remote[name]) for name in local)
    shard = "bucket/whole/pairs/shard-00001.zst"
    raw = bytearray(s3.cat_file(shard))
    raw[40] ^= 4
    s3.pipe_file(shard, bytes(raw))
    capsys.readouterr()
    assert main(["record", "--verify", out]) == 2
    assert "s3://bucket/whole/pairs/shard-00001.zst, record 1024 is damaged" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_s3_resumes_after_a_kill(s3, teacher, tmp_path):
    out, wanted = "s3://bucket/killed/pairs", [*WANTED, "--steps", "12"]
    first = "bucket/killed/pairs/shard-00000.zst"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(teacher, "--out", out, *wanted), **quiet) as writer:
        while not s3.exists(first):
            assert writer.poll() is None, "it ended before it could be killed"
            s3.invalidate_cache()
        os.kill(writer.pid, signal.SIGKILL)
    s3.invalidate_cache()
    before = s3.info(first)["LastModified"]
    assert "manifest.json" not in s3_content(s3, out)
    assert main(["record", teacher, "--out", out, *wanted]) == 0
    assert main(["record", teacher, "--out", str(tmp_path / "p"), *wanted]) == 0
    assert s3_content(s3, out) == content(tmp_path / "p")
    s3.invalidate_cache()
    assert s3.info(first)["LastModified"] == before


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://no-such-bucket/pairs", "s3://no-such-bucket/pairs"),
        ("nosuch://host/pairs", "nosuch"),
    ],
)
def test_a_place_that_is_not_there_is_one_line(s3, teacher, capsys, address, message):
    assert main(["record", teacher, "--out", address, *WANTED]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("fewstep: ") and message in line
