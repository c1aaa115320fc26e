"""Distance of samplers to the exact flow of a trained teacher, ours beside those of diffusers.

    OMP_NUM_THREADS=1 python benchmarks/samplers.py runs/fashion-flow [--count 8] [--seed 0]

Under the table of DDPM, all samplers start at the same noise and call the same network at the same
of its 1,000 steps, spaced as "trailing"; the last step goes to the image. Then ours under the
teacher's own process, from pure noise, on three grids. A figure is the root mean square distance of
pixels, in [-1, 1], to the images of the exact flow: those of UniPC of order 3 in 1,600 steps of
equal log-SNR. The grids `log-snr` and `karras` do not start at pure noise, so that they converge to
the images of their own start, whose distance is in the first lines. All is computed in float64, and
diffusers' states in float32. Heun's method calls the network twice a step but for the last: it
takes N calls, or one fewer.
"""

import argparse
import time

import torch

import fewstep
from fewstep.drawing import conditions
from fewstep.noise import noise_from_seeds
from fewstep.process import VE, LinearBetas
from fewstep.sampling import (
    Heun,
    Multistep,
    StochasticHeun,
    Transfer,
    UniPC,
    sample,
)
from fewstep.spacing import TableGrid
from fewstep.times import KarrasGrid, LogSNRGrid, UniformGrid

EVALUATIONS = (5, 10, 20, 50)
TABLE = LinearBetas()
TRAILING = TableGrid(spacing="trailing")
GRIDS = {"uniform": UniformGrid(), "log-snr": LogSNRGrid(), "karras": KarrasGrid()}
REFERENCE = 1600  # steps of the exact flow
LOWEST = 1e-3  # sigma/alpha from which the exact flow goes to the image
THIRD = {"solver_order": 3, "lower_order_final": False}
# our sampler, and diffusers' scheduler of the same rule
PAIRS = {
    "transfer": (Transfer(), "DDIMScheduler", {"clip_sample": False}),
    "multistep": (Multistep(), "DPMSolverMultistepScheduler", {}),
    "multistep, order 3": (Multistep(order=3), "DPMSolverMultistepScheduler", {**THIRD}),
    "unipc": (UniPC(), "UniPCMultistepScheduler", {}),
    "unipc, order 3": (UniPC(order=3), "UniPCMultistepScheduler", {"solver_order": 3}),
    # in x_t/alpha, as diffusers' Heun
    "heun": (StochasticHeun(s_churn=0.0), "HeunDiscreteScheduler", {}),
}
OWN = {
    **{name: step for name, (step, _, _) in PAIRS.items() if name != "heun"},
    "heun": Heun(),
    "heun in x_t/alpha": StochasticHeun(s_churn=0.0),
}


def steps_for(name, evaluations):
    """Number of steps that take at most so many network calls."""
    return (evaluations + 1) // 2 if name.startswith("heun") else evaluations


def rms(images, exact):
    return float((images - exact).square().mean().sqrt())


class Bench:
    """A teacher in float64, and noise."""

    def __init__(self, address, count, seed):
        generator = fewstep.load(address).double()
        self.model = generator.denoiser
        self.noise = noise_from_seeds(range(seed, seed + count), generator.spec.shape).double()
        self.cond = conditions(generator.spec, range(count))

    def exact_from_table(self, steps):
        """The exact flow from the table's last step, at which the state is the noise itself."""
        last = torch.tensor(1.0, dtype=torch.float64)
        ratio = float(TABLE.ratio(last))
        model, grid = self.model.under(VE(ratio)), LogSNRGrid(LOWEST, ratio)
        noise = self.noise / float(TABLE.sigma(last))
        return sample(model, noise, grid(steps, model), step=UniPC(order=3), cond=self.cond)

    def exact_from_noise(self, steps):
        """The exact flow of the teacher's own process, from pure noise at t = 1."""
        times = [1.0, *LogSNRGrid(LOWEST, 1e4)(steps, self.model).tolist()]
        return sample(self.model, self.noise, times, step=UniPC(order=3), cond=self.cond)

    def ours_by_table(self, step, steps):
        model, times = self.model.under(TABLE), TRAILING.indices(steps) / (TABLE.steps - 1)
        noise = self.noise / float(TABLE.sigma(times[:1]))
        return sample(model, noise, times, step=step, cond=self.cond)

    def theirs_by_table(self, name, settings, steps):
        import diffusers

        scheduler = getattr(diffusers, name)(
            beta_start=TABLE.beta_0,
            beta_end=TABLE.beta_1,
            timestep_spacing="trailing",
            prediction_type="v_prediction",
            **settings,
        )
        model, x = self.model.under(TABLE), self.noise
        scheduler.set_timesteps(steps)
        if name.startswith("Heun"):  # its states are x_t/alpha
            x = x / float(TABLE.alpha(torch.tensor(1.0, dtype=torch.float64)))
        for t in scheduler.timesteps:
            x_t = scheduler.scale_model_input(x, t).double()
            output = model(x_t, float(t) / (TABLE.steps - 1), cond=self.cond).v
            x = scheduler.step(output, t, x).prev_sample
        return x.double()

    def ours(self, step, grid, steps):
        return sample(self.model, self.noise, grid(steps, self.model), step=step, cond=self.cond)


def print_row(name, kind, values):
    cells = " | ".join(f"{value:.4f}" for value in values)
    print(f"| {name} | {kind} | {cells} |", flush=True)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, bench = time.perf_counter(), Bench(options.address, options.count, options.seed)

    half = REFERENCE // 2
    exact, coarse = (bench.exact_from_table(n) for n in (REFERENCE, half))
    print(f"under DDPM's table, {REFERENCE} steps against {half}: {rms(coarse, exact):.1e}")
    from_noise, coarse = (bench.exact_from_noise(n) for n in (REFERENCE, half))
    print(f"from pure noise, {REFERENCE} steps against {half}: {rms(coarse, from_noise):.1e}")
    finite = bench.ours(UniPC(order=3), LogSNRGrid(), REFERENCE)
    print(f"from the start of log-snr against from pure noise: {rms(finite, from_noise):.4f}")
    heads = " | ".join(f"{n} calls" for n in EVALUATIONS)
    print(f"\n| under DDPM's table | by | {heads} |\n|---|---|{'---|' * len(EVALUATIONS)}")
    for name, (step, scheduler, settings) in PAIRS.items():
        counts = [steps_for(name, n) for n in EVALUATIONS]
        values = [rms(bench.ours_by_table(step, n), exact) for n in counts]
        print_row(name, "fewstep", values)
        values = [rms(bench.theirs_by_table(scheduler, settings, n), exact) for n in counts]
        print_row(name, scheduler.removesuffix("Scheduler"), values)

    print(f"\n| from pure noise, own process | grid | {heads} |")
    print(f"|---|---|{'---|' * len(EVALUATIONS)}")
    for name, step in OWN.items():
        for kind, grid in GRIDS.items():
            if (
                kind == "karras"
                and bench.model.process.ratio(
                    torch.tensor(bench.model.span[1], dtype=torch.float64)
                ).isinf()
            ):
                continue
            counts = [steps_for(name, n) for n in EVALUATIONS]
            print_row(name, kind, [rms(bench.ours(step, grid, n), from_noise) for n in counts])
    print(f"\n{options.count} images of seed {options.seed}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
