"""Eight Gaussians in a minute: a flow teacher, its pairs, and a one-step student, as a library."""

import tempfile
from copy import deepcopy

import torch

import fewstep as fs
from fewstep import store
from fewstep.backbones import MLPConfig, build
from fewstep.data.toys import eight_gaussians
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.methods.regress import Regress, RegressConfig
from fewstep.metrics import sliced_wasserstein
from fewstep.recording import Recording, record
from fewstep.runs import weights_hash
from fewstep.streams import PairStream

torch.manual_seed(0)
spec = fs.SampleSpec(shape=(2,))
mixture = eight_gaussians()
points = mixture.points(20_000, seed=0)[0].float()


def trained(method, streams, steps):
    config = fs.FitConfig(steps=steps, batch=512, lr=2e-3, schedule="cosine", ema_halflife=10_000)
    batches = fs.Batches(streams, spec, batch=512, seed=0)
    *_, progress = fs.fit(method, batches, config)
    print(f"  loss {progress.numbers['student/loss']:.4f}")
    return progress.training.generator()


def distance(generator, steps):
    with torch.inference_mode():
        made = generator(fs.noise_from_seeds(range(4000), (2,)), steps=steps)
    return sliced_wasserstein(made, mixture.points(4000, seed=1)[0].float())


print("teacher")
network = fs.Denoiser(build(MLPConfig(width=96), shape=(2,)), fs.Flow(), fs.Velocity())
images = {"images": fs.ImageStream(points, None)}
teacher = trained(Denoise(DenoiseConfig(), network, spec), images, steps=1000)

with tempfile.TemporaryDirectory() as folder:
    heun, told = teacher.with_sampler(step=fs.heun), Recording(8192, steps=12)
    for _ in record(heun, folder, told, teacher=weights_hash(teacher)):
        pass
    student = Regress(RegressConfig(), deepcopy(teacher.denoiser), spec)
    student = trained(student, {"pairs": PairStream(store.Reader(folder))}, steps=1000)

for name, generator, steps in (("teacher", teacher, 1), ("student", student, 1)):
    print(f"{name}, {steps} steps: sliced Wasserstein distance {distance(generator, steps):.4f}")
