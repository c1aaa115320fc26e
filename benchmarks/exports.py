"""Exported programs beside eager PyTorch: largest difference, size and milliseconds.

    OMP_NUM_THREADS=1 python benchmarks/exports.py RUN ... [--steps 1,4] [--batches 1,7,64]

A row is a run, a number of steps that it supports, and a target. Differences are those of images in
[0, 1] from PyTorch with the same rounded weights, over all batches. Eager PyTorch and the targets
take turns, with one thread each; times are medians of CPU time over `--rounds` turns. `--colour`
adds a network of 2.7 million random weights on 32×32 colour images, `--static` int8 with rounded
activations too.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch

from fewstep.backbones import UNetConfig
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.export import graph
from fewstep.export.precision import round_weights
from fewstep.export.program import Unrolled
from fewstep.export.pytorch import StoredWeights
from fewstep.export.source import Source, load_source
from fewstep.export.tracing import quiet, trace
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec

TARGETS = ("onnx", "onnx f16", "onnx int8", "torch", "torch int8")
COLOUR = UNetConfig(channels=(32, 64, 128), layers=1, attention=(8,), groups=8)


def colour():
    """A source with random weights, none of them zero, on 32×32 colour images."""
    torch.manual_seed(0)
    spec = SampleSpec((3, 32, 32), 10)
    denoiser = Denoiser(COLOUR.build(shape=spec.shape, classes=10), Flow(), Velocity())
    for parameter in denoiser.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    generator = Generator(denoiser.eval().requires_grad_(False), spec)
    count = sum(parameter.numel() for parameter in generator.parameters())
    print(f"colour: {count / 1e6:.2f} M parameters", flush=True)
    return Source("colour", generator, (1,), "")


def program(target, source, steps, folder):
    """(the module in PyTorch, a function of its inputs, bytes of the file) of a target."""
    dtype = target.partition(" ")[2] or "f32"
    generator = round_weights(source.generator, dtype) if dtype != "f32" else source.generator
    module = Unrolled(generator, steps)
    if target.startswith("onnx"):
        data = graph.onnx_graph(module, dtype=dtype).SerializeToString()
        session = graph.open_session(data)
        return module, lambda inputs: graph.run_session(session, module.input_names, inputs), data
    file = folder / "model.pt2"
    stored = module if dtype == "f32" else StoredWeights(module, dtype)
    torch.export.save(trace(stored, module.example_inputs(2)), file)
    loaded = torch.export.load(file).module()
    return module, lambda inputs: loaded(*inputs), file.read_bytes()


class Calibration:
    """Inputs from which onnxruntime measures the ranges of activations."""

    def __init__(self, module, batches=8):
        inputs = (module.example_inputs(16, seed=1000 + 16 * i) for i in range(batches))
        self.feeds = (
            {name: x.numpy() for name, x in zip(module.input_names, values, strict=True)}
            for values in inputs
        )

    def get_next(self):
        return next(self.feeds, None)


def static_int8(source, steps, folder):
    """A program whose activations are rounded to int8 too, by onnxruntime's calibration."""
    import onnx
    from onnxruntime import quantization

    module = Unrolled(source.generator, steps)
    model, rounded = folder / "exact.onnx", folder / "static.onnx"
    onnx.save(graph.onnx_graph(module), model)
    with quiet():
        quantization.quantize_static(
            model,
            rounded,
            Calibration(module),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )
    data = rounded.read_bytes()
    session = graph.open_session(data)
    return module, lambda inputs: graph.run_session(session, module.input_names, inputs), data


def eager(generator, steps):
    def run(inputs):
        cond = Condition(inputs[1]) if generator.spec.classes else None
        with torch.inference_mode():
            return generator(inputs[0], steps=steps, cond=cond)

    return run


@torch.inference_mode()
def measure(programs, run_eager, inputs, rounds):
    """Median milliseconds of CPU time of each function, all of which take turns."""
    times = {name: [] for name in ("eager", *programs)}
    for _ in range(rounds):
        for name in times:
            run = run_eager if name == "eager" else programs[name][1]
            run(inputs)
            start = time.process_time()
            run(inputs)
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def rows(source, steps, options):
    """Print the rows of one source and number of steps."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        programs = {t: program(t, source, steps, folder) for t in options.targets.split(",")}
        if options.static:
            programs["onnx static int8"] = static_int8(source, steps, folder)
    example = next(iter(programs.values()))[0]
    batches = [int(batch) for batch in options.batches.split(",")]
    inputs = {batch: example.example_inputs(batch) for batch in batches}
    times = {
        batch: measure(programs, eager(source.generator, steps), values, options.rounds)
        for batch, values in inputs.items()
    }
    for name, (module, run, data) in programs.items():
        with torch.inference_mode():
            largest = max((run(x) - module(*x)).abs().max().item() for x in inputs.values())
        speeds = [
            f"{times[b][name]:.2f} ms ({times[b]['eager'] / times[b][name]:.2f})" for b in batches
        ]
        cells = [source.name, str(steps), name, f"{largest:.1e}", f"{len(data) / 1e6:.2f} MB"]
        print("| " + " | ".join([*cells, *speeds]) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--steps", default="1,4")
    parser.add_argument("--batches", default="1,7,64")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--colour", action="store_true")
    parser.add_argument("--static", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    wanted = [int(steps) for steps in options.steps.split(",")]
    sources = [load_source(run) for run in options.runs] + ([colour()] if options.colour else [])
    heads = ["run", "steps", "target", "difference", "size"]
    heads += [f"batch {b} (times eager)" for b in options.batches.split(",")]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    for source in sources:
        counts = source.generator.grid.counts
        for steps in wanted:
            if source.name != "colour" or steps == 1:
                if not counts or steps in counts:
                    rows(source, steps, options)


if __name__ == "__main__":
    main()
