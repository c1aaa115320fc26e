"""Couplings against brute force, closed forms and exact assignments; what they must not change."""

import math
from collections import Counter
from itertools import permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import toy
from fewstep.backbones import MLPConfig
from fewstep.batching import Batches, ImageStream
from fewstep.couplings import Coupling, Independent, MinibatchOT, SemidiscreteOT
from fewstep.couplings.dual_weights import dual_weights
from fewstep.couplings.minibatch import nearest
from fewstep.couplings.semidiscrete import SemidiscretePairing
from fewstep.data.augment import Augmentation
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.evaluation import straightness
from fewstep.methods.base import Task
from fewstep.methods.checks import check_coupling
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Ancestral, Heun

CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cost(noise, x0):
    """The mean squared distance of pairs."""
    return (noise - x0).square().flatten(1).sum(1).mean().item()


def batches(coupling, points, labels, *, batch=16, **settings):
    spec = SampleSpec(tuple(points.shape[1:]), 0 if labels is None else int(labels.max()) + 1)
    pairing = coupling.bind(points, labels, CPU)
    return Batches(
        {"images": ImageStream(points, labels)},
        spec,
        batch=batch,
        seed=0,
        pairing=pairing,
        **settings,
    )


def rows(many):
    """Images, labels and noise of all micro-batches."""
    images = [batch.images for batch in many]
    parts = zip(*((i.x0, i.cond.label, i.noise) for i in images), strict=True)
    return tuple(map(torch.cat, parts))


def test_a_batch_is_assigned_as_by_all_permutations():
    noise, x0 = normal(7, 2, 3, seed=1), normal(7, 2, 3, seed=2)
    best = min(permutations(range(7)), key=lambda order: cost(noise[list(order)], x0))
    assert nearest(noise, x0).tolist() == list(best)
    assert best != tuple(range(7))


def test_noise_is_exchanged_within_classes_alone():
    noise, x0, labels = normal(8, 3, seed=3), normal(8, 3, seed=4), torch.arange(8) % 2
    arranged = MinibatchOT().bind(x0, labels, CPU).arrange(noise, x0, labels)
    for label in (0, 1):
        own = labels == label
        best = min(permutations(range(4)), key=lambda o: cost(noise[own][list(o)], x0[own]))
        assert torch.equal(arranged[own], noise[own][list(best)])
    free = MinibatchOT().bind(x0, None, CPU).arrange(noise, x0, None)
    assert cost(free, x0) < cost(arranged, x0) < cost(noise, x0)


@pytest.mark.parametrize("coupling", [MinibatchOT(), SemidiscreteOT(noises=1)])
def test_micro_batches_and_ranks_have_the_pairs_of_one_batch(coupling, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    points, labels = normal(50, 1, 2, 2, seed=5), torch.arange(50) % 3
    one, many = (batches(coupling, points, labels) for _ in range(2))
    for step in (0, 4):
        whole = rows(one.step(step))
        parts = rows([b for rank in range(2) for b in many._read(step, 5, rank, 2)])
        assert all(map(torch.equal, whole, parts))
    assert not torch.equal(rows(one.step(0))[2], rows(one.step(1))[2])
    assert one._read(0, 0, 0, 1)[0].coupled_noise().shape == (16, 1, 2, 2)


@pytest.mark.parametrize("coupling", [MinibatchOT(), SemidiscreteOT()])
def test_noise_is_normal_and_images_are_equally_likely_within_each_class(
    coupling, tmp_path, monkeypatch
):
    """Means, variances and their standard errors over 12,800 rows; two classes far apart."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    labels = torch.arange(40) % 2
    points = normal(40, 2, seed=6) + 5 * labels[:, None]
    source = batches(coupling, points, labels, batch=64)
    x0, label, noise = map(torch.cat, zip(*(rows(source.step(s)) for s in range(200)), strict=True))
    numbers = {tuple(point): i for i, point in enumerate(points.tolist())}
    counts = Counter(numbers[tuple(point)] for point in x0.tolist())
    assert all(x0[i].tolist() in points[labels == label[i]].tolist() for i in range(100))
    for value in (0, 1):
        own = noise[label == value]
        error = len(own) ** -0.5
        assert own.mean(0).abs().max() < 4 * error
        assert (own.T @ own / len(own) - torch.eye(2)).abs().max() < 4 * math.sqrt(2) * error
        seen = torch.tensor([counts[i] for i in range(40) if labels[i] == value]) / len(own)
        # the weights come from 32 noises an image, and these counts from 320
        assert (20 * seen - 1).square().mean().sqrt() < 0.2
    shuffled = noise[torch.randperm(len(noise), generator=torch.Generator().manual_seed(0))]
    assert cost(noise, x0) < 0.95 * cost(shuffled, x0)


def test_semidiscrete_transport_is_that_of_quantiles_on_a_line():
    """The optimal map on a line keeps the order: noise z goes to point ⌊n·Φ(z)⌋ of the sorted."""
    points = normal(12, 1, seed=7).sort(0).values * 3 + 1
    weights = dual_weights(points, noises=4000)
    pairing = SemidiscretePairing(points, weights, None)
    noise = normal(20_000, 1, seed=8)
    found = pairing.choose(noise, torch.zeros(20_000, dtype=torch.int64))
    wanted = (12 * torch.special.ndtr(noise[:, 0])).long()
    assert (found - wanted).abs().max() <= 1
    assert (found == wanted).float().mean() > 0.98


def test_the_cost_of_transport_falls_to_that_of_an_exact_assignment():
    """In two dimensions, of 1,200 noises to 24 points, of each 50 times. By duality, any weights
    give a lower bound of the cost of an assignment, and the best ones give the cost itself."""
    points = normal(24, 2, seed=9) @ torch.tensor([[2.0, 0.5], [0.0, 0.7]])
    noise, repeated = normal(1200, 2, seed=10), points.repeat(50, 1)
    distances = torch.cdist(noise.double(), repeated.double()).square()
    exact = distances[linear_sum_assignment(distances.numpy())].mean().item()
    weights = dual_weights(points, noises=2000)
    squares = (noise.square().sum(1).mean() + points.square().sum(1).mean()).item()
    best = (noise @ points.T + weights).max(1).values.mean() - weights.mean()
    assert 0.98 * exact < squares - 2 * best.item() < exact
    pairing = SemidiscretePairing(points, weights, None)
    chosen = pairing.choose(noise, torch.zeros(1200, dtype=torch.int64))
    masses = torch.bincount(chosen, minlength=24) / 50
    assert (masses - 1).square().mean().sqrt() < 2 * 50**-0.5  # as of 1,200 uniform choices
    parts = [slice(i, i + 40) for i in range(0, 1200, 40)]
    pairs = [cost(noise[p][nearest(noise[p], repeated[p])], repeated[p]) for p in parts]
    minibatch, independent = sum(pairs) / len(pairs), cost(noise, repeated)
    assert exact < minibatch < 0.8 * independent
    assert cost(noise, points[chosen]) == pytest.approx(exact, rel=0.05)


def test_dual_weights_are_computed_once_for_a_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    images = torch.randint(0, 256, (30, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    index = torch.arange(30)

    def chosen(labels=labels, noises=4):
        pairing = SemidiscreteOT(noises=noises).bind(images.to(torch.uint8), labels, CPU)
        return pairing.choose(normal(30, 1, 2, 2), index), capsys.readouterr().err

    first, message = chosen()
    assert message == "fewstep: computing the dual weights of 30 images, once for this set\n"
    again, silence = chosen()
    assert torch.equal(first, again) and silence == ""
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    repaired, message = chosen()
    assert torch.equal(first, repaired) and message
    assert all(chosen(**other)[1] for other in ({"labels": None}, {"noises": 5}))
    assert len(list(tmp_path.iterdir())) == 3


def task(spec=toy.SPEC):
    network = MLPConfig(width=8).build(shape=spec.shape, classes=spec.classes)
    return Task(Denoiser(network, Flow(), Velocity()), spec)


def test_what_cannot_be_paired_is_refused():
    method = Denoise(DenoiseConfig(coupling=SemidiscreteOT()), task())
    check_coupling(method, augment=0.0, flip=False)
    with pytest.raises(InputError, match="semidiscrete-ot.*each augmentation.*data.augment=0"):
        check_coupling(method, augment=0.1, flip=False)
    with pytest.raises(InputError, match="semidiscrete-ot.*mirrors them: set data.flip=false"):
        check_coupling(method, augment=0.0, flip=True)
    check_coupling(Denoise(DenoiseConfig(coupling=MinibatchOT()), task()), augment=0.0, flip=True)
    check_coupling(Denoise(DenoiseConfig(), task()), augment=0.1, flip=True)
    DenoiseConfig(coupling=MinibatchOT(), sampler=Heun())
    with pytest.raises(InputError, match="minibatch-ot.*but method.sampler is ancestral: choose"):
        DenoiseConfig(coupling=MinibatchOT(), sampler=Ancestral())
    with pytest.raises(InputError, match="augmented"):
        batches(MinibatchOT(), normal(8, 1, 2, 2), None, augmentation=Augmentation(0.1))


def test_a_method_with_a_coupling_needs_its_noise():
    method = Denoise(DenoiseConfig(coupling=MinibatchOT()), task())
    assert Denoise(DenoiseConfig(coupling=Independent()), task()).coupling is None
    (batch,) = Batches({"images": ImageStream(normal(8, 2), None)}, toy.SPEC, batch=4, seed=0).step(
        0
    )
    with pytest.raises(ValueError, match="build Batches with pairing"):
        method.student_loss(batch)


@pytest.mark.slow
@pytest.mark.parametrize(("coupling", "share"), [(MinibatchOT(), 0.5), (SemidiscreteOT(), 0.25)])
def test_paths_are_straighter(coupling, share, tmp_path, monkeypatch):
    """On eight Gaussians; of independent noise, the straightness is about 0.1."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    monkeypatch.setattr(toy, "points", lambda: POINTS)

    def curvature(coupling: Coupling):
        config = DenoiseConfig(coupling=coupling)
        generator = toy.train(Denoise(config, Task(toy.fresh(), toy.SPEC)), **toy.TEACHER)
        assert toy.distance(generator, 32) < 0.1
        return straightness(generator, samples=2000)

    assert curvature(coupling) < share * curvature(Independent())


POINTS = toy.points()[:4000]
