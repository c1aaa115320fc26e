"""A circuit's ring on disk, and the one-step sum that learns it."""

from dataclasses import replace

import pytest
import torch

from circuits.test_network import circuit
from fewstep import runs, store
from fewstep.backbones.unet import UNetConfig
from fewstep.batching import Batches
from fewstep.circuits import sample_files
from fewstep.circuits.network import StateConfig
from fewstep.circuits.one_step import ResidualsConfig
from fewstep.circuits.view import Circuit, Ring
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import PseudoHuber, SquaredError
from fewstep.methods.base import Task
from fewstep.methods.batch import Batch, RingBatch
from fewstep.methods.residual_sum import ResidualSum, ResidualSumConfig, predict_states
from fewstep.noise import noise_from_seeds
from fewstep.parametrization import Clean, Velocity
from fewstep.process import Flow
from fewstep.recording import Recording, Tiles, record
from fewstep.sample_spec import SampleSpec
from fewstep.streams import PairStream, RingStream

NETWORK = UNetConfig(channels=(16, 32), layers=1, attention=(4,), groups=8)
SPEC = SampleSpec((1, 8, 8))
CPU = torch.device("cpu")


def teacher(spec=SPEC, lora=0):
    net = circuit(classes=spec.classes, shake=0.1, lora=lora)
    return Generator(Denoiser(net, Flow(), Velocity()), spec, step=Ring()).eval()


def student(seed=0, chunks=3):
    torch.manual_seed(seed)
    config = ResidualsConfig(
        network=NETWORK, state=StateConfig(12, groups=4), chunks=chunks, blocks=1
    )
    return Denoiser(config.build(shape=SPEC.shape), Flow(), Clean(Flow()))


def recorded(folder, generator=None, **told):
    generator = generator or teacher()
    wanted = Recording(**{"count": 20, "steps": 6, "chunks": 3, **told})
    for _ in record(generator, folder, wanted, teacher=runs.network_hash(generator)):
        pass
    return store.Reader(folder)


@torch.inference_mode()
def test_the_first_state_and_the_chunks_add_up_to_the_last():
    generator, told = teacher(), Recording(count=9, steps=6, chunks=3)
    made = Tiles(generator, told).records(range(9))
    noise = made["noise"]
    assert noise.half().float().equal(noise)  # what is stored is what was used
    last = made["rin0"] + made["r_chunks"].sum(1)
    times = [1 - k / 6 for k in range(7)]
    *_, wanted = Circuit(generator.denoiser).ring(noise, times)
    torch.testing.assert_close(last, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(made["x0"], generator(noise, steps=6), rtol=0, atol=1e-5)
    # each chunk is what two updates did
    ways = [z for k, z in enumerate(Circuit(generator.denoiser).ring(noise, times)) if k % 2 == 0]
    torch.testing.assert_close(made["r_chunks"][:, 1], ways[2] - ways[1], rtol=0, atol=1e-5)


def test_eight_bits_keep_their_bound(tmp_path):
    reader = recorded(tmp_path / "rings")
    exact = Tiles(teacher(), Recording(count=20, steps=6, chunks=3)).records(range(20))
    found = reader[:]
    assert found["noise"].equal(exact["noise"]) and reader.provenance["steps"] == 6
    for name, channels in (("rin0", 2), ("r_chunks", 3)):
        error = (found[name] - exact[name]).abs().flatten(channels)
        values = exact[name].abs().flatten(channels)
        scale = torch.quantile(values, 0.995, dim=-1, keepdim=True) / 127
        inside = values <= 127 * scale
        # half a step, and f16's rounding of the scale over 127 of them
        assert (error <= scale * (0.5 + 127 * 2**-11) + 1e-7)[inside].all()
        assert inside.float().mean() > 0.98


def test_a_store_of_rings_is_one_of_pairs_too_and_goes_into_the_published_files(tmp_path):
    recorded(tmp_path / "rings", codec="f16")
    reader = store.Reader(tmp_path / "rings")
    rows = torch.arange(4)
    pairs = PairStream(reader).rows(rows, rows, CPU)
    rings = RingStream(reader).rows(rows, rows, CPU)
    assert pairs.noise.equal(rings.noise) and pairs.x0.equal(rings.x0) and rings.cond is None
    assert rings.chunks.shape == (4, 3, 12, 8, 8)
    for _ in sample_files.from_store(tmp_path / "rings", tmp_path / "files"):
        pass
    sample = sample_files.read_sample(tmp_path / "files" / "sample_00000002.zst")
    assert sample["r_chunks"].equal(rings.chunks[2]) and sample["noise"].equal(rings.noise[2])


def test_classes_are_recorded_beside(tmp_path):
    reader = recorded(tmp_path / "rings", teacher(SampleSpec((1, 8, 8), 3)))
    rows = torch.arange(6)
    rings = RingStream(reader, classes=3).rows(rows, rows, CPU)
    assert rings.cond is not None and rings.cond.label.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(InputError, match="label"):
        RingStream(reader, classes=2).rows(rows, rows, CPU)


def test_a_tile_of_rings_lies_in_one_shard(tmp_path, monkeypatch):
    """Or two processes, who share shards, would both compute it."""
    row = 4 * (64 + 4 * 12 * 64)
    monkeypatch.setattr("fewstep.recording.settings.SHARD_BYTES", 11 * row + 1)
    computed = []
    monkeypatch.setattr(Tiles, "_sample", spying(Tiles._sample, computed))
    reader = recorded(tmp_path / "rings")
    assert computed == [range(0, 8), range(8, 16), range(16, 24)]
    assert sorted(path.name for path in (tmp_path / "rings").glob("shard-*")) == [
        f"shard-{k:05d}.zst" for k in range(3)
    ]
    monkeypatch.undo()
    whole = recorded(tmp_path / "whole")[:]
    torch.testing.assert_close(reader[:]["x0"], whole["x0"], rtol=0, atol=1e-3)


def spying(made, seen):
    def spy(self, rows):
        seen.append(rows)
        return made(self, rows)

    return spy


def exact_rings(generator, rows=16):
    made = Tiles(generator, Recording(count=rows, steps=6, chunks=3)).records(range(rows))
    made = {name: value.clone() for name, value in made.items()}
    return RingBatch(made["noise"], made["x0"], made["rin0"], made["r_chunks"], None)


@pytest.mark.parametrize(
    ("loss", "distance"),
    [
        (SquaredError(), lambda apart: apart.square().mean()),
        # the mean over rows of the norm of each
        (PseudoHuber(c=0.0), lambda apart: apart.flatten(1).norm(dim=1).mean()),
    ],
)
def test_the_loss_is_zero_where_the_parts_are_right_and_weighs_them(monkeypatch, loss, distance):
    told = exact_rings(teacher())
    method = build_method(first=2.0, chunks=3.0, image=0.5, last=4.0, loss=loss)
    batch = Batch(0, 0, 0, 16, 16, SPEC, CPU, {"rings": told})
    net = method.student.backbone
    monkeypatch.setattr(net, "parts", lambda *_: (told.first, told.chunks))
    assert float(method.student_loss(batch).value) < (1e-9 if loss == SquaredError() else 1e-4)
    monkeypatch.setattr(net, "parts", lambda *_: (told.first + 0.1, told.chunks - 0.2))
    loss = method.student_loss(batch)
    last = told.first + told.chunks.sum(1)
    image = distance(net.image(last + 0.1 - 3 * 0.2) - told.x0)
    wanted = 2 * 0.1**2 + 3 * 0.2**2 + 4 * 0.5**2 + 0.5 * image
    torch.testing.assert_close(loss.value, wanted, rtol=1e-4, atol=0)


def build_method(chunks=1.0, count=3, **settings):
    config = ResidualSumConfig(chunks=chunks, **settings)
    return ResidualSum(config, Task(student(chunks=count), SPEC, teacher()))


def test_the_read_out_is_the_circuits_at_its_end_and_stays_so():
    method = build_method()
    net, source = method.student.backbone, Circuit(teacher().denoiser)
    z = torch.randn(2, 12, 8, 8)
    assert net.image(z).equal(source.image(z, 0.0))
    loss = method.student_loss(Batch(0, 0, 0, 16, 16, SPEC, CPU, {"rings": exact_rings(teacher())}))
    loss.value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.student.parameters())
    assert net.image(z).equal(source.image(z, 0.0))


@pytest.mark.parametrize("lora", [0, 2])
def test_its_trunk_can_start_from_the_circuits_encoder(lora):
    source = teacher(lora=lora)
    told = ResidualSumConfig(trunk="circuit")
    method = ResidualSum(told, Task(student(), SPEC, source))
    trunk, encoder = method.student.backbone.trunk, source.denoiser.backbone.encoder
    assert trunk.conv_in.weight.equal(encoder.conv_in.weight)
    assert all(p.requires_grad for p in trunk.parameters())
    # it was shaken, so what was adapted is not what it was adapted from
    x, level = torch.randn(2, 1, 8, 8), torch.tensor([1000.0, 300.0])
    torch.testing.assert_close(
        trunk.decoder_features(x, level, None), encoder.decoder_features(x, level, None)
    )
    other = student()
    other.backbone.config = replace(other.backbone.config, network=replace(NETWORK, layers=2))
    with pytest.raises(InputError, match=r'method.trunk = "circuit" needs'):
        ResidualSum(told, Task(other, SPEC, teacher()))


def test_the_student_is_an_ordinary_generator_of_one_step():
    method = build_method()
    generator = method.generator()
    noise = noise_from_seeds(range(3), SPEC.shape)
    with torch.inference_mode():
        made = generator(noise, steps=1)
        net = generator.denoiser.backbone
        first, chunks = net.parts(noise, torch.full((3,), 1000.0))
        torch.testing.assert_close(made, net.image(first + chunks.sum(1)))
    assert generator.grid.counts == (1,)


def test_without_chunks_it_learns_the_last_state_alone(tmp_path):
    reader = recorded(tmp_path / "rings")
    method = build_method(count=0, first=3.0, chunks=2.0, last=1.0, image=0.0)
    batches = Batches({"rings": RingStream(reader)}, SPEC, batch=5, seed=0)
    (batch,) = batches.step(0)
    batch.begin("student", 0)
    loss = method.student_loss(batch)
    told = batch.rings
    first, _ = method.student.backbone.parts(told.noise, torch.full((5,), 1000.0))
    wanted = (first - told.first - told.chunks.sum(1)).square().mean()
    torch.testing.assert_close(loss.value, wanted)


def test_what_cannot_be_is_refused(tmp_path):
    plain = Generator(student(), SPEC)
    with pytest.raises(InputError, match="must be a circuit"):
        ResidualSum(ResidualSumConfig(), Task(student(), SPEC, plain))
    with pytest.raises(InputError, match="residuals"):
        ResidualSum(ResidualSumConfig(), Task(teacher().denoiser, SPEC, teacher()))
    with pytest.raises(InputError, match="cannot be divided into 4 equal chunks"):
        Recording(count=2, steps=6, chunks=4)
    with pytest.raises(InputError, match="ring"):
        recorded(tmp_path / "a", Generator(teacher().denoiser, SPEC))
    with pytest.raises(InputError, match="rings need rin0"):
        RingStream(recorded(tmp_path / "b", chunks=0))
    with pytest.raises(InputError, match="no noisy images"):
        recorded(tmp_path / "c", chunks=0, states=2)
    student_of_other_levels = student()
    student_of_other_levels.backbone.sinusoid = replace(student().backbone.sinusoid, pace=0.5)
    with pytest.raises(InputError, match="the same pace"):
        ResidualSum(ResidualSumConfig(), Task(student_of_other_levels, SPEC, teacher()))
    stream = RingStream(recorded(tmp_path / "d"))
    build_method().check({"rings": stream})
    with pytest.raises(InputError, match="contains 3 chunks of each ring"):
        build_method(count=2).check({"rings": stream})
    stream.state_shape = (6, 8, 8)
    with pytest.raises(
        InputError, match=r"shape \(6, 8, 8\), but those of the student.s network have \(12, 8, 8\)"
    ):
        build_method().check({"rings": stream})


def test_what_comes_out_of_bf16_is_added_in_full_precision():
    method, told = build_method(loss=PseudoHuber()), exact_rings(teacher())
    method.student.precision = "bf16"
    first, chunks, last, image = predict_states(method.student, told.noise, told.cond)
    assert {part.dtype for part in (first, chunks, last, image)} == {torch.float32}
    assert last.equal(first + chunks.sum(1)) and not last.equal(last.bfloat16().float())
