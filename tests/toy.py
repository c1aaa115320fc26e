"""Eight Gaussians on a circle: a teacher in seconds, its pairs, and a distance to the truth."""

from functools import cache

import jaxtyping
import torch

from fewstep import metrics, runs, store
from fewstep.backbones import MLPConfig, UNetConfig
from fewstep.batching import Batches, ImageStream
from fewstep.circuits.network import CircuitConfig, StateConfig
from fewstep.circuits.one_step import ResidualsConfig
from fewstep.data.toys import eight_gaussians
from fewstep.denoiser import Denoiser
from fewstep.methods.base import Task
from fewstep.methods.circuit import CircuitMethod, CircuitMethodConfig
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.noise import noise_from_seeds
from fewstep.optimizers import FitConfig
from fewstep.parametrization import Clean, Velocity
from fewstep.process import Flow
from fewstep.recording import Recording, record
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Heun
from fewstep.streams import PairStream, RingStream
from fewstep.trainer import Training

SPEC = SampleSpec((2,))
PIXELS = SampleSpec((2, 1, 1))
"""The same points as images of two channels and one pixel, for those who work on images."""


@cache
def points():
    return eight_gaussians().points(20_000, seed=0)[0].float()


def network(seed=0):
    return _build(MLPConfig(width=64, depth=2, pace=0.03), SPEC, seed)


def fresh(seed=0):
    """An untrained student."""
    return Denoiser(network(seed), Flow(), Velocity())


UNET = UNetConfig(
    channels=(32,), layers=1, attention=(), middle_attention=False, groups=8, pace=0.03
)
# with 32 or 64 channels half of the seeds end at twice the distance
STATE = StateConfig(128, groups=1)
RING = 8
"""Updates of the toy's ring."""


def circuit(seed=0):
    """An untrained circuit."""
    config = CircuitConfig(network=UNET, state=STATE, blocks=0)
    return Denoiser(_build(config, PIXELS, seed), Flow(), Velocity())


def pixel_network(seed=0):
    """An untrained U-Net."""
    return _build(UNET, PIXELS, seed)


def residuals(seed=0, chunks=4):
    """An untrained student of the sums of a circuit's ring."""
    config = ResidualsConfig(network=UNET, state=STATE, blocks=0, chunks=chunks)
    return Denoiser(_build(config, PIXELS, seed), Flow(), Clean(Flow()))


def _build(config, spec, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config.build(shape=spec.shape)


def batches(method, folder=None, *, batch=512, seed=0):
    streams = {}
    if "images" in method.reads:
        streams["images"] = ImageStream(points().view(-1, *method.spec.shape), None)
    if "pairs" in method.reads:
        streams["pairs"] = PairStream(store.Reader(folder))
    if "rings" in method.reads:
        streams["rings"] = RingStream(store.Reader(folder))
    coupling, pairing = getattr(method, "coupling", None), None
    if coupling:
        pairing = coupling.bind(streams["images"].images, None, torch.device("cpu"))
    return Batches(streams, method.spec, batch=batch, seed=seed, pairing=pairing)


def train(method, folder=None, *, steps, batch, lr, seed=0, **fit):
    """The averaged generator after `steps` of the method.

    Shapes go unchecked meanwhile, which saves a third of the time: tests of a few steps check them.
    """
    config = FitConfig(
        steps=steps, batch=batch, lr=lr, schedule="cosine", ema_halflife=20 * batch, **fit
    )
    training = Training(method, batches(method, folder, batch=batch, seed=seed), config)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for _ in training:
            pass
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    return training.generator()


TEACHER = {"steps": 1000, "batch": 256, "lr": 8e-3}
CIRCUIT = {"steps": 200, "batch": 64, "lr": 2e-3}


def train_teacher(seed=0):
    return train(Denoise(DenoiseConfig(), Task(fresh(seed), SPEC)), **TEACHER, seed=seed)


def train_circuit(seed=0):
    method = CircuitMethod(CircuitMethodConfig(steps=RING), Task(circuit(seed), PIXELS))
    return train(method, **CIRCUIT, seed=seed)


def record_rings(circuit, folder, count=2048, chunks=4, seed=0):
    recording = Recording(count, steps=RING, chunks=chunks, codec="raw", seed=seed)
    for _ in record(circuit, folder, recording, teacher=runs.network_hash(circuit)):
        pass


def record_pairs(teacher, folder, count=4096, seed=0):
    generator, recording = teacher.with_sampler(step=Heun()), Recording(count, steps=12, seed=seed)
    for _ in record(generator, folder, recording, teacher=runs.network_hash(teacher)):
        pass


def distance(generator, steps=1, count=4000):
    """Sliced Wasserstein distance of `count` samples to as many fresh points."""
    with torch.inference_mode():
        samples = generator(noise_from_seeds(range(count), generator.spec.shape), steps=steps)
    truth = eight_gaussians().points(count, seed=1)[0].float()
    return metrics.sliced_wasserstein(samples.flatten(1), truth)
