import json
import subprocess
import sys

import pytest
import torch

import killing
from analytic import Exact, as_flow_map, exact
from fewstep import store
from fewstep.backbones import UNetConfig
from fewstep.denoiser import Denoiser
from fewstep.drawing import conditions
from fewstep.errors import InputError
from fewstep.evaluation import exhaust
from fewstep.generator import Generator
from fewstep.noise import noise_from_seeds
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VE, Flow
from fewstep.recording import FIRST_SEED, Recording, Tiles, record
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import (
    Ancestral,
    EulerMaruyama,
    Heun,
    StochasticHeun,
    StochasticMultistep,
)
from fewstep.streams import PairStream
from fewstep.times import KarrasGrid
from fewstep.value_range import ValueRange

IMAGES = (1, 4, 4)


def images(**settings):
    model = exact(VE(80.0), EDM(), shape=IMAGES)
    settings = {"grid": KarrasGrid(), "step": Heun(), **settings}
    return Generator(model, SampleSpec(IMAGES, 3), **settings)


def recorded(generator, folder, *, teacher="hash", batch=None, **settings):
    told = Recording(**{"count": 23, "steps": 5, "shard": 10, **settings})
    return [now.done for now in record(generator, folder, told, teacher=teacher, batch=batch)]


def test_pairs_are_the_teachers_answers_to_their_noise(tmp_path):
    assert recorded(images(), tmp_path / "p", batch=4)[-1] == 23
    reader = store.Reader(tmp_path / "p")
    stream = PairStream(reader)
    assert len(stream) == 23 and reader.provenance["teacher"] == "hash"
    index = torch.tensor([22, 0, 7])
    rows = stream.rows(index, torch.zeros(3), torch.device("cpu"))
    seeds = [FIRST_SEED + int(i) for i in index]
    assert torch.equal(rows.noise, noise_from_seeds(seeds, IMAGES))
    assert rows.cond.label.tolist() == [22 % 3, 0, 7 % 3]
    wanted = images()(rows.noise, steps=5, cond=rows.cond)
    torch.testing.assert_close(rows.x0, wanted.clamp(-1, 1), atol=0.5 / 127.5 + 1e-6, rtol=0)


def test_points_are_kept_exactly(tmp_path):
    plane = Generator(exact(Flow(), Velocity()), SampleSpec((2,)), step=Heun())
    recorded(plane, tmp_path / "p")
    rows = PairStream(store.Reader(tmp_path / "p")).rows(
        torch.arange(23), torch.zeros(23), torch.device("cpu")
    )
    assert rows.cond is None
    torch.testing.assert_close(rows.x0, plane(rows.noise, steps=5), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def network():
    """Of every kind of layer, none of them silent, and with a row that fills no vector register."""
    shape = (1, 6, 6)
    config = UNetConfig(channels=(8, 12), layers=1, attention=(3,), groups=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = config.build(shape=shape, classes=3)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return Generator(Denoiser(net.eval(), Flow(), Velocity()), SampleSpec(shape, 3), step=Heun())


@pytest.fixture(scope="module")
def alone(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "p"
    recorded(network, folder, count=150, shard=40, codec="raw")
    return content(folder)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_the_store_does_not_depend_on_the_batch_size(network, alone, tmp_path, batch):
    """Bit for bit, in float32: kernels round otherwise for other batch sizes."""
    done = recorded(network, tmp_path, count=150, shard=40, codec="raw", batch=batch)
    assert content(tmp_path) == alone
    assert max(b - a for a, b in zip(done, done[1:], strict=False)) == min(batch, 40)


def test_the_store_does_not_depend_on_the_number_of_threads(network, alone, tmp_path):
    torch.set_num_threads(2)
    try:
        recorded(network, tmp_path, count=150, shard=40, codec="raw")
    finally:
        torch.set_num_threads(1)
    assert content(tmp_path) == alone


def test_tiles_are_as_large_as_the_device_likes():
    def rows(*shape):
        generator = Generator(exact(Flow(), Velocity(), shape), SampleSpec(shape))
        return Tiles(generator, Recording(count=1, steps=1)).size

    assert [rows(2), rows(1, 8, 8), rows(3, 32, 32), rows(3, 256, 256)] == [128, 128, 32, 1]


def test_an_interrupted_recording_goes_on_and_ends_the_same(tmp_path):
    recorded(images(), tmp_path / "whole", batch=5)
    rows = record(images(), tmp_path / "p", Recording(23, 5, shard=10), teacher="hash", batch=5)
    for now in rows:
        if now.done >= 15:
            break
    rows.close()
    assert recorded(images(), tmp_path / "p", batch=5)[0] == 10  # the first shard was whole
    assert content(tmp_path / "p") == content(tmp_path / "whole")


def kills(folder, number, ranks, seed):
    """What `killing.py` saw; it fails where a whole shard is wrong, lost or written twice, or the
    finished store differs from an undisturbed one by a bit."""
    command = [sys.executable, killing.__file__, folder, number, ranks, seed]
    told = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=230)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_recordings_lose_nothing_that_was_whole(tmp_path, ranks):
    seen = kills(tmp_path, 10, ranks, seed=0)
    assert seen["kills"] >= 10 and seen["partial"] >= 1 and seen["stores"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_hundreds_of_kills_lose_nothing_that_was_whole(tmp_path, ranks):
    seen = kills(tmp_path, 150, ranks, seed=1)
    assert seen["kills"] >= 150 and seen["partial"] >= 50


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stochastic_teacher_is_refused_with_the_reason(tmp_path):
    for step, name in (
        (Ancestral(), "ancestral"),
        (EulerMaruyama(), "euler-maruyama"),
        (StochasticMultistep(), "stochastic-multistep"),
        (StochasticHeun(), "stochastic-heun"),
    ):
        with pytest.raises(InputError, match=f"{name} draws fresh noise.*no function"):
            recorded(images(step=step), tmp_path / "p")
    with pytest.raises(InputError, match="0 pairs"):
        recorded(images(), tmp_path / "p", count=0)
    with pytest.raises(InputError, match="seed -1 is out of range; choose one from 0 to"):
        recorded(images(), tmp_path / "p", seed=-1)


def test_states_lie_on_the_path(tmp_path):
    model = exact(Flow(), Velocity(), IMAGES)
    teacher = Generator(model, SampleSpec(IMAGES), step=Heun())
    recorded(teacher, tmp_path / "p", steps=60, states=3)
    reader = store.Reader(tmp_path / "p")
    rows = reader[:]
    assert reader.provenance["states"] == [0.75, 0.5, 0.25]
    assert rows["states"].shape == (23, 3, *IMAGES)
    noise = noise_from_seeds(rows["seed"].tolist(), IMAGES)
    for k, t in enumerate(reader.provenance["states"]):
        t = torch.tensor(t)
        wanted = as_flow_map(noise, torch.tensor(0.0), torch.tensor(1.0), 1 - t, t)
        torch.testing.assert_close(rows["states"][:, k], wanted, atol=2e-3, rtol=2e-3)
    stream = PairStream(reader).rows(torch.arange(2), torch.zeros(2), torch.device("cpu"))
    assert torch.equal(stream.x0, rows["x0"][:2])


@pytest.mark.parametrize(
    ("codec", "bits", "error"),
    [("u8", 8, 1 / 255), ("f16", 16, 1e-3), ("int8", 8, 0.02), ("int8:99", 8, 1.0), ("raw", 32, 0)],
)
def test_images_are_kept_as_asked(tmp_path, codec, bits, error):
    recorded(images(), tmp_path / "raw", codec="raw")
    recorded(images(), tmp_path / "p", codec=codec, states=2)
    truth, found = store.Reader(tmp_path / "raw")[:]["x0"], store.Reader(tmp_path / "p")[:]["x0"]
    assert (truth.clamp(-1, 1) - found.clamp(-1, 1)).abs().max() <= error
    layout = store.Reader(tmp_path / "p").schema["x0"].parts[""][0]
    assert layout.itemsize * 8 == bits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": 5}, "5 states: 5 steps have 4 intermediate images"),
        ({"states": -1}, "-1 states"),
        ({"codec": "int4"}, "unknown codec 'int4'; choose one of: u8, f16, int8, raw"),
        ({"codec": "int8:lots"}, "write int8, or int8:99.5"),
        ({"batch": 0}, "batches of 0"),
        ({"steps": 0}, "pairs of 0 steps"),
        ({"seed": 1 << 30}, "seed 1073741824 is out of range; choose one from 0 to 1073741823"),
    ],
)
def test_what_cannot_be_recorded_is_told(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        recorded(images(), tmp_path / "p", **change)


def test_another_teachers_pairs_are_not_mixed_in(tmp_path):
    recorded(images(), tmp_path / "p")
    with pytest.raises(InputError, match="teacher"):
        recorded(images(), tmp_path / "p", teacher="other")


class Scaled(Exact):
    """Predicts the image `SIZE`, of either sign, at every time."""

    SIZE = 8.0

    def forward(self, x, level, *, level_s=None, cond=None):
        alpha, sigma, x_t = self.native(x, level.reshape(-1, *[1] * (x.ndim - 1)))
        a, b = self.parametrization.target_coefficients(alpha, sigma)
        image = self.SIZE * x_t.sign()
        return a * image + b * (x_t - alpha * image) / sigma


def unclipped(shape=IMAGES, **settings):
    network = Scaled(Velocity(Flow()), shape)
    return Generator(
        Denoiser(network, Flow(), network.parametrization), SampleSpec(shape), **settings
    )


def test_images_out_of_range_are_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "p"
    with pytest.raises(InputError) as refusal:
        recorded(unclipped(step=Heun()), folder, max_out_of_range=0.01)
    assert str(refusal.value) == (
        "100.0 % of the values of the first 128 images are beyond ±1.5 (largest |x| 8.00) with "
        f"5 steps of heun, so {folder} is not recorded: record with a clip (--clip 1), another "
        "sampler or more steps, or allow it (--allow-out-of-range)"
    )
    assert not folder.exists()
    recorded(unclipped(step=Heun(clip=1.0)), folder, max_out_of_range=0.01)
    assert store.Reader(folder)[:]["x0"].abs().max() == 1
    recorded(unclipped(step=Heun()), tmp_path / "allowed")
    assert store.Reader(tmp_path / "allowed").provenance["range"] == {
        "values": 128 * 16, "outside": 128 * 16, "largest": 8.0,
    }  # fmt: skip
    with pytest.raises(InputError, match="allowed was begun with other settings"):
        recorded(unclipped(step=Heun(clip=1.0)), tmp_path / "allowed", max_out_of_range=0.01)
    # a store that was begun with permission is not continued without it
    next(iter((tmp_path / "allowed").glob("shard-00001.zst"))).unlink()
    with pytest.raises(InputError, match="allowed is not recorded"):
        recorded(unclipped(step=Heun()), tmp_path / "allowed", max_out_of_range=0.01)


def test_a_store_resumes_with_the_range_of_its_first_recording(tmp_path, monkeypatch):
    """Other hardware rounds otherwise, and the first tile need not be computed again."""
    recorded(images(), tmp_path / "p")
    before = content(tmp_path / "p")
    (tmp_path / "p" / "shard-00001.zst").unlink()
    tiles = []
    real = Tiles._sample
    monkeypatch.setattr(
        Tiles, "_sample", lambda self, rows: tiles.append(rows.start) or real(self, rows)
    )
    assert recorded(images(), tmp_path / "p")[0] == 13
    assert tiles == [0] and content(tmp_path / "p") == before
    assert recorded(images(), tmp_path / "p") == [23] and tiles == [0]


def test_images_that_leave_the_range_later_are_refused_at_the_end(tmp_path, monkeypatch):
    real = Tiles._sample

    def sample(self, rows):
        records = real(self, rows)
        return {**records, "x0": records["x0"].clamp(-1, 1) * (1 + rows.start)}

    monkeypatch.setattr(Tiles, "_sample", sample)
    settings = {"count": 200, "shard": 128, "max_out_of_range": 0.01}
    for _ in range(2):  # the same command again must not finish what the first one refused
        with pytest.raises(InputError, match=f"of the images .* so {tmp_path}/p is not finished"):
            recorded(images(), tmp_path / "p", **settings)
    work = record(images(), tmp_path / "p", Recording(200, 5, shard=128), teacher="hash")
    assert exhaust(work).values == 72 * 16  # those of the last shard
    assert len(store.Reader(tmp_path / "p")) == 200
    work = record(images(), tmp_path / "p", Recording(200, 5, shard=128), teacher="hash")
    assert exhaust(work) == ValueRange()  # all shards are there


def test_the_range_is_that_of_all_images_and_points_have_none(tmp_path):
    work = record(images(), tmp_path / "p", Recording(23, 5, codec="raw", shard=10), teacher="h")
    values, x0 = exhaust(work), store.Reader(tmp_path / "p")[:]["x0"].abs()
    assert values == ValueRange(23 * 16, int((x0 > 1.5).sum()), float(x0.max()))
    assert 0 < values.outside < values.values
    plane = Generator(exact(Flow(), Velocity()), SampleSpec((2,)), step=Heun())
    work = record(plane, tmp_path / "q", Recording(23, 5), teacher="h")
    assert exhaust(work) == ValueRange()
    assert "range" not in store.Reader(tmp_path / "q").provenance


def test_samples_that_are_no_numbers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Scaled, "SIZE", float("nan"))
    with pytest.raises(InputError) as refusal:
        recorded(unclipped(), tmp_path / "p", steps=1)
    assert str(refusal.value) == (
        "128 of 128 images (100.0 %) contain NaN or infinite values, from step 1 of 1 of the "
        "sampler transfer: use another sampler or more steps, or train the network longer"
    )


def test_labels_come_in_turn():
    assert conditions(SampleSpec(IMAGES, 3), range(2, 7)).label.tolist() == [2, 0, 1, 2, 0]
    assert conditions(SampleSpec(IMAGES, 3), range(1, 4), labels=[2, 0]).label.tolist() == [0, 2, 0]
    assert conditions(SampleSpec(IMAGES), range(3)) is None
