"""What a sampler's step costs beside the network: ours, an older checkout's, and diffusers'.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py [--base CHECKOUT] [--rounds 9] [--steps 50]

Eager, f32, CPU, one thread, batch 1, 3×32×32. The network is a module that returns its input, about
2 µs a call. The contenders take turns, ours and the older checkout in a process each; a figure is
the median over the rounds of a whole sample's CPU time divided by its steps. Then whole samples
with one small U-Net, in our sampler and in diffusers' pipelines. Without diffusers, only ours.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

PROCESSES = ("flow", "vp", "ddpm", "edm")
STEPS = (
    "transfer",
    "renoise",
    "ancestral",
    "heun",
    "multistep",
    "unipc",
    "corrector",
    "euler-maruyama",
    "stochastic-multistep",
    "stochastic-heun",
    "ring",
)
SCHEDULERS = {
    "transfer": "DDIMScheduler",
    "ancestral": "DDPMScheduler",
    "heun": "HeunDiscreteScheduler",
    "multistep": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
EULER = "EulerDiscreteScheduler"
PIPELINES = {"transfer": "DDIM", "ancestral": "DDPM"}
PREDICTION_MS = 0.1  # at most, for every step under every process
PREDICTION_RATIO = 1.1  # of a pipeline's time to ours: that of the networks' forward passes

# reads "process step" lines and answers with milliseconds of CPU time a step
WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
from fewstep import sampling
from fewstep.backbones import Backbone
from fewstep.denoiser import Denoiser
from fewstep.parametrization import EDM, Eps, Velocity
from fewstep.process import VE, VP, Flow, LinearBetas
from fewstep.times import UniformGrid
try:
    from fewstep.circuits.network import CircuitNet
    from fewstep import plugins
    step_of = lambda name: plugins.resolve("sampler", name)()
except ImportError:  # before the registry
    from fewstep.backbones.circuit import CircuitNet
    step_of = sampling.named_step

class Identity(CircuitNet):
    def __init__(self):
        Backbone.__init__(self)
        self.config, self.shape, self.classes, self.level_scale = None, (3, 32, 32), 0, 1.0
    def forward(self, x, level, *, level_s=None, cond=None):
        return x
    def encode(self, x, level, cond=None):
        return x
    def advance(self, z, level, level_s, cond=None):
        return z
    def image(self, z, level):
        return z

torch.set_num_threads(1)
steps, noise = int(sys.argv[2]), torch.randn(1, 3, 32, 32)
table = LinearBetas()
models = {
    "flow": (Flow(), Velocity()), "vp": (VP(), Eps(VP())),
    "ddpm": (table, Eps(table)), "edm": (VE(), EDM()),
}
models = {name: Denoiser(Identity(), *pair) for name, pair in models.items()}
for line in sys.stdin:
    name, step = line.split()
    model = models[name]
    times = UniformGrid()(steps, model)
    with torch.inference_mode():
        start = time.process_time()
        sampling.sample(model, noise, times, step=step_of(step))
        print((time.process_time() - start) / steps * 1e3, flush=True)
"""


class Worker:
    """A process that times the samplers of one checkout."""

    def __init__(self, checkout, steps):
        command = [sys.executable, "-c", WORKER, str(Path(checkout) / "src"), str(steps)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def time(self, process, step):
        print(process, step, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self):
        self.process.communicate()


def time_scheduler(name, steps):
    """Milliseconds a step of a diffusers scheduler, in the loop of its pipelines."""
    import diffusers

    scheduler, network = getattr(diffusers, name)(), torch.nn.Identity()
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        start = time.process_time()
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x_in = scheduler.scale_model_input(x, t)
            x = scheduler.step(network(x_in), t, x).prev_sample
        return (time.process_time() - start) / steps * 1e3


def pipelines(folder):
    """One U-Net with random weights: (ours, diffusers' pipeline) for each sampler."""
    import diffusers

    from fewstep.pretrained.diffusers import read_diffusers
    from fewstep.sampler_choices import convert_step

    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        add_attention=False,
    ).eval()
    scheduler = diffusers.DDPMScheduler()
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
    generator, pairs = read_diffusers(str(folder)), {}
    for step, name in PIPELINES.items():
        pipeline = getattr(diffusers, f"{name}Pipeline")(network, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        ours = generator.with_sampler(step=convert_step(generator.step, step))
        pairs[step] = ours, pipeline
    return pairs


def time_samples(ours, pipeline, steps):
    """Milliseconds a step of a whole sample: ours, the pipeline's."""
    noise = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        first = time.process_time()
        ours(noise, steps=steps)
        second = time.process_time()
        pipeline(num_inference_steps=steps, output_type="np")
    return (second - first) / steps * 1e3, (time.process_time() - second) / steps * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", help="folder of an older checkout, to be timed too")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        import diffusers

        schedulers = (*SCHEDULERS.values(), EULER)
        print(f"torch {torch.__version__}, diffusers {diffusers.__version__}")
    except ImportError:
        schedulers = ()
        print(f"torch {torch.__version__}, without diffusers")

    checkouts = [Path(__file__).parents[1], *filter(None, [options.base])]
    workers = [Worker(checkout, options.steps) for checkout in checkouts]
    cells = [(step, process) for step in STEPS for process in PROCESSES]
    times = {cell: [[] for _ in workers] for cell in cells}
    theirs = {name: [] for name in schedulers}
    for warm in (True, *[False] * options.rounds):
        for step, process in cells:
            for worker, values in zip(workers, times[step, process], strict=True):
                value = worker.time(process, step)
                values.extend([] if warm else [value])
        for name, values in theirs.items():
            value = time_scheduler(name, options.steps)
            values.extend([] if warm else [value])
    for worker in workers:
        worker.close()

    print(f"\nms a step beside the network, {options.steps} steps (before); predicted: at most")
    print(f"{PREDICTION_MS} everywhere; diffusers: the scheduler of the same rule")
    print(f"| step | {' | '.join(PROCESSES)} | diffusers |\n{'|---' * (len(PROCESSES) + 2)}|")
    for step in STEPS:
        row = []
        for process in PROCESSES:
            now, *before = [statistics.median(values) for values in times[step, process]]
            row.append(f"{now:.3f}" + "".join(f" ({value:.2f})" for value in before))
        values = theirs.get(SCHEDULERS.get(step))
        row.append(f"{statistics.median(values):.3f}" if values else "")
        print(f"| {step} | {' | '.join(row)} |")
    if not schedulers:
        return
    print(f"{EULER}: {statistics.median(theirs[EULER]):.3f}")

    print(f"\nms a step with a small U-Net; predicted: theirs / ours {PREDICTION_RATIO}")
    print("| step | ours | pipeline | theirs / ours |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for step, (ours, pipeline) in pipelines(folder).items():
            time_samples(ours, pipeline, options.steps)
            pairs = [
                time_samples(ours, pipeline, options.steps) for _ in range(min(options.rounds, 5))
            ]
            mine, yours = (statistics.median(values) for values in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"| {step} | {mine:.2f} | {PIPELINES[step]} {yours:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
