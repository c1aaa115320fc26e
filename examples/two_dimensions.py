# %% [markdown]
# # Two dimensions: samplers and a student
#
# Eight Gaussians on a circle are data that can be plotted. This notebook uses fewstep as a
# library, without recipes or run folders: it trains a flow-matching teacher, samples it with
# different samplers and numbers of steps, records pairs in a temporary folder and trains a
# one-step student. It takes one to two minutes on one CPU core. With the environment variable
# `SCALE=0.01` it takes seconds, and the student learns nothing.

# %%
import os
import tempfile
from copy import deepcopy

import matplotlib.pyplot as plt
import torch

import fewstep as fs
from fewstep import runs, store
from fewstep.backbones import MLPConfig
from fewstep.data.toys import eight_gaussians
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.methods.regress import Regress, RegressConfig
from fewstep.metrics import sliced_wasserstein

SCALE = float(os.environ.get("SCALE", 1))
STEPS = max(2, int(1000 * SCALE))
torch.manual_seed(0)

# %% [markdown]
# ## The data and the training loop
#
# `fs.fit` is a Python generator that yields the progress after each training step.

# %%
spec = fs.SampleSpec(shape=(2,))
mixture = eight_gaussians()
points = mixture.points(20_000, seed=0)[0].float()


def train(method, streams):
    config = fs.FitConfig(steps=STEPS, batch=512, lr=2e-3, schedule="cosine", ema_halflife=10_000)
    *_, progress = fs.fit(method, fs.Batches(streams, spec, batch=512, seed=0), config)
    print(f"{type(method).__name__}: loss {progress.numbers['student/loss']:.4f}")
    return progress.training.generator()


# %% [markdown]
# ## The teacher
#
# A `Denoiser` consists of a network, the process that adds noise, and the parametrization, which
# defines the meaning of the network's output.

# %%
network = fs.Denoiser(MLPConfig(width=96).build(shape=(2,)), fs.Flow(), fs.Velocity())
teacher = train(
    Denoise(DenoiseConfig(), fs.Task(network, spec)), {"images": fs.ImageStream(points, None)}
)

# %% [markdown]
# ## Samplers and steps
#
# The title of each plot gives the sliced Wasserstein distance between 4,000 samples and as many
# points of the data.

# %%
noise = fs.noise_from_seeds(range(4000), (2,))
truth = mixture.points(4000, seed=1)[0].float()


@torch.inference_mode()
def sample(generator, steps):
    result = generator(noise, steps=steps)
    return result, f"distance {sliced_wasserstein(result, truth):.3f}"


euler, heun = teacher, teacher.with_sampler(step=fs.Heun())
panels = {f"Euler, steps={n}": sample(euler, n) for n in (1, 4, 16)}
panels |= {f"Heun, steps={n}": sample(heun, n) for n in (4, 16)}

# %% [markdown]
# ## The student
#
# Twelve steps of Heun's method turn each noise into a point. The student learns to do this in one
# step.

# %%
with tempfile.TemporaryDirectory() as folder:
    plan = fs.Recording(max(512, int(8192 * SCALE)), steps=12)
    for _ in fs.record(heun, folder, plan, teacher=runs.network_hash(teacher)):
        pass
    pairs = {"pairs": fs.PairStream(store.Reader(folder))}
    student = train(Regress(RegressConfig(), fs.Task(deepcopy(teacher.denoiser), spec)), pairs)
panels["student, steps=1"] = sample(student, 1)

# %%
figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), sharex=True, sharey=True)
for ax, (title, (result, distance)) in zip(axes.flat, panels.items(), strict=True):
    print(f"{title}: {distance}")
    ax.scatter(*result.T, s=1)
    ax.set(title=f"{title}\n{distance}", aspect="equal")
figure.tight_layout()
figure.savefig("two-dimensions.png", dpi=80)
