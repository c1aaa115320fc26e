"""Eight Gaussians on a circle: a teacher in seconds, its pairs, and a distance to the truth."""

from functools import cache

import torch

from fewstep import metrics, runs, store
from fewstep.backbones import MLPConfig, UNetConfig
from fewstep.batching import Batches, ImageStream
from fewstep.circuits.network import CircuitConfig, StateConfig
from fewstep.circuits.one_step import ResidualsConfig
from fewstep.data.toys import eight_gaussians
from fewstep.denoiser import Denoiser
from fewstep.generator import SampleSpec
from fewstep.methods.circuit import CircuitMethod, CircuitMethodConfig
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.parametrization import Clean, Velocity
from fewstep.process import Flow
from fewstep.recording import Recording, record
from fewstep.sampling import Heun, noise_from_seeds
from fewstep.streams import PairStream, RingStream
from fewstep.trainer import FitConfig, Training

SPEC = SampleSpec((2,))
PIXELS = SampleSpec((2, 1, 1))
"""The same points as images of two channels and one pixel, for those who work on images."""


@cache
def points():
    return eight_gaussians().points(20_000, seed=0)[0].float()


def network(seed=0, dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLPConfig(width=96, depth=3, pace=0.03).build(shape=(2,))


def fresh(seed=0):
    return Denoiser(network(seed), Flow(), Velocity())


WIDE = UNetConfig(
    channels=(64,), layers=1, attention=(), middle_attention=False, groups=8, pace=0.03
)
STATE = StateConfig(32, groups=1)
CIRCUIT = CircuitConfig(network=WIDE, state=STATE, blocks=0)
RING = 8
"""Updates of the toy's ring."""


def circuit(seed=0):
    """A circuit's student."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = CIRCUIT.build(shape=PIXELS.shape)
    return Denoiser(net, Flow(), Velocity())


def residuals(chunks=4, seed=0):
    """The student of a circuit's sums."""
    config = ResidualsConfig(network=WIDE, state=STATE, blocks=0, chunks=chunks)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = config.build(shape=PIXELS.shape)
    return Denoiser(net, Flow(), Clean(Flow()))


def batches(method, folder=None, *, batch=512, seed=0):
    streams = {}
    if "images" in method.reads:
        streams["images"] = ImageStream(points().view(-1, *method.spec.shape), None)
    if "pairs" in method.reads:
        streams["pairs"] = PairStream(store.Reader(folder))
    if "rings" in method.reads:
        streams["rings"] = RingStream(store.Reader(folder))
    return Batches(streams, method.spec, batch=batch, seed=seed)


def trained(method, folder=None, *, steps, batch=512, lr=2e-3, **fit):
    """The averaged generator after `steps` of the method."""
    config = FitConfig(
        steps=steps, batch=batch, lr=lr, schedule="cosine", ema_halflife=20 * batch, **fit
    )
    training = Training(method, batches(method, folder, batch=batch), config)
    for _ in training:
        pass
    return training.generator()


def train_teacher():
    return trained(Denoise(DenoiseConfig(), fresh(), SPEC), steps=1500)


def train_circuit():
    method = CircuitMethod(CircuitMethodConfig(steps=RING), circuit(), PIXELS)
    return trained(method, steps=300, batch=128)


def record_rings(circuit, folder, count=4096, chunks=4):
    wanted = Recording(count, steps=RING, chunks=chunks, codec="raw")
    for _ in record(circuit, folder, wanted, teacher=runs.weights_hash(circuit)):
        pass


def record_pairs(teacher, folder, count=8192):
    generator = teacher.with_sampler(step=Heun())
    hashed = runs.weights_hash(teacher)
    for _ in record(generator, folder, Recording(count, steps=12), teacher=hashed):
        pass


def distance(generator, steps=1, count=4000):
    """Sliced Wasserstein distance of `count` samples to as many fresh points."""
    with torch.inference_mode():
        made = generator(noise_from_seeds(range(count), generator.spec.shape), steps=steps)
    truth = eight_gaussians().points(count, seed=1)[0].float()
    return metrics.sliced_wasserstein(made.flatten(1), truth)
