# %% [markdown]
# # Digits: a teacher and a one-step student
#
# This notebook trains a flow-matching teacher on scikit-learn's 8×8 digits, records pairs of noise
# and image from it, and distils it into a student that needs one step. Recipes do the work:
# `digits-flow` and `digits-regress` are the presets behind `fewstep train digits-flow` and
# `fewstep distill digits-regress`. The notebook takes about three minutes on two CPU cores. The
# environment variable `SCALE` shortens the trainings: with 0.01 the notebook takes seconds, and the
# images are noise.

# %%
import os
from pathlib import Path

import torch

import fewstep
from fewstep import images, recipe, runner, runs

SCALE = float(os.environ.get("SCALE", 1))
RUNS = Path("runs/notebook")

# %% [markdown]
# ## Train the teacher
#
# A recipe is a preset plus changes, as on the command line. `run_recipe` is a generator: it yields
# the progress after each step. A stopped run resumes, and a finished one is not trained again.


# %%
def train(name, folder, *changes):
    for progress in runner.run_recipe(recipe.read(name, changes), RUNS / folder):
        if progress.step % 100 == 0:
            print(f"{name}: step {progress.step}, loss {progress.numbers['student/loss']:.3f}")
    return fewstep.load(str(RUNS / folder))


teacher = train("digits-flow", "teacher", f"fit.steps={max(2, int(450 * SCALE))}")

# %% [markdown]
# ## Record pairs
#
# A deterministic sampler maps each noise to one image. The store holds the image and the seed of
# the noise.

# %%
plan = fewstep.Recording(count=max(64, int(6144 * SCALE)), steps=8)
sampler = teacher.with_sampler(step=fewstep.Multistep())
weights = runs.network_hash(teacher)
for _ in fewstep.record(sampler, str(RUNS / "pairs"), plan, teacher=weights):
    pass

# %% [markdown]
# ## Train the student
#
# The student starts from the teacher's weights and learns to predict the image of each noise.

# %%
student = train(
    "digits-regress",
    "student",
    f"fit.steps={max(2, int(600 * SCALE))}",
    f"teacher.load={str(RUNS / 'teacher')!r}",
    f"pairs.load={str(RUNS / 'pairs')!r}",
)

# %% [markdown]
# ## Compare them from one noise
#
# All images of a column start from the same noise and show the same digit. The rows show the
# teacher in 16 steps, the teacher in one step and the student in one step.

# %%
noise = fewstep.noise_from_seeds(range(10), teacher.spec.shape)
digits = fewstep.Condition(torch.arange(10))
with torch.inference_mode():
    rows = [
        teacher(noise, steps=16, cond=digits),
        teacher(noise, steps=1, cond=digits),
        student(noise, steps=1, cond=digits),
    ]
grid = images.grid(images.to_uint8(torch.cat(rows)), columns=10)
grid.save(RUNS / "digits.png")
grid
