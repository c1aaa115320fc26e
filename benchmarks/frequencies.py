"""Which frequencies of a one-step student's images are wrong, and what they cost.

    OMP_NUM_THREADS=1 python benchmarks/frequencies.py STUDENT PAIRS [--count 5000] [--from 15,11,7]

PAIRS are recorded pairs of its teacher: the student draws from their noise. Prints

- for each band of frequencies, of which the lower of both axes is the largest (16 is the pattern
  of single pixels in images of 32x32): the power of the student's images and of its error, over
  that of the teacher's images;
- the Fréchet distance by ResNet-56 of the student's images, of the teacher's, and of the student's
  with the teacher's frequencies from a band on in place of its own.
"""

import argparse

import torch

from fewstep import data, runs, store
from fewstep.allocator import keep_freed_memory
from fewstep.condition import Condition
from fewstep.evaluation import Evaluator
from fewstep.images import from_uint8, to_uint8
from fewstep.metrics import EvalProtocol, ScoreAccumulator
from fewstep.noise import noise_from_seeds

BATCH = 500


@torch.inference_mode()
def draw(run, pairs, count):
    """The student's images (n, c, h, w) from the noise of the pairs, the teacher's, and classes."""
    generator, parts = runs.load(run), []
    for first in range(0, count, BATCH):
        batch = pairs[range(first, min(first + BATCH, count))]
        shape = generator.spec.shape
        noise = noise_from_seeds(batch["seed"].tolist(), shape)
        images = generator(noise, steps=1, cond=Condition(batch["label"]))
        parts.append((images, batch["x0"].float(), batch["label"]))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def power(images):
    return torch.fft.fft2(images).abs().square().mean((0, 1))


def score(name, images, labels, evaluator):
    accumulator = ScoreAccumulator(evaluator.reference, len(images), cycle=1)
    accumulator.update(to_uint8(images.clamp(-1, 1)), labels)
    found = accumulator.measures()
    print(f"{name}: Fréchet {found.frechet:.2f}, accuracy {found.accuracy:.1%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student")
    parser.add_argument("pairs")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--from", dest="bands", default="15,11,7")
    options = parser.parse_args()
    keep_freed_memory()
    pairs = store.Reader(options.pairs)
    count = min(options.count, len(pairs))
    student, teacher, labels = draw(options.student, pairs, count)
    axis = (torch.fft.fftfreq(student.shape[-1]) * student.shape[-1]).abs()
    band = torch.maximum(axis[:, None], axis[None])
    own, error, real = power(student), power(student - teacher), power(teacher)
    for k in range(int(band.max()) + 1):
        inside = band == k
        total = real[inside].sum()
        print(f"{k:2}: {own[inside].sum() / total:.2f}, error {error[inside].sum() / total:.2f}")
    corner = len(axis) // 2, len(axis) // 2
    ratio = own[corner] / real[corner]
    print(f"pattern of single pixels: {ratio:.1f} times the teacher's power")
    evaluator = Evaluator(data.load("cifar10"), EvalProtocol(count, "resnet56-cifar10"))
    student = from_uint8(to_uint8(student.clamp(-1, 1)))
    score("student", student, labels, evaluator)
    score("teacher", teacher, labels, evaluator)
    for k in map(int, options.bands.split(",")):
        spectrum = torch.where(band >= k, torch.fft.fft2(teacher), torch.fft.fft2(student))
        score(f"teacher's from {k} on", torch.fft.ifft2(spectrum).real, labels, evaluator)


if __name__ == "__main__":
    main()
