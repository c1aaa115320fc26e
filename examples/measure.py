"""Measure image sets without a run: compare digits with growing noise to clean digits.

python examples/measure.py
"""

import torch

from fewstep import data, metrics
from fewstep.evaluation import exhaust

digits = data.load("digits")
real, held_out = digits.images[::2], digits.images[1::2]
extractor = metrics.train_classifier(real, digits.labels[::2], steps=300)
half = data.ImageSet("half of the digits", real)
reference = exhaust(metrics.build_reference(extractor, half, cache=None))

print("noise  Fréchet           kernel  precision  recall  copies")
for level in (0, 20, 40, 80):
    noise = level * torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
    images = (held_out + noise).clamp(0, 255).to(torch.uint8)
    accumulator = metrics.ScoreAccumulator(reference, len(images))
    for batch in images.split(200):
        accumulator.update(batch)
    scores = accumulator.measures()
    distance = f"{scores.frechet:.2f} [{scores.frechet_low:.2f}, {scores.frechet_high:.2f}]"
    others = f"{scores.precision:9.2f}  {scores.recall:6.2f}  {scores.copies:6.1%}"
    print(f"{level:5}  {distance:16}  {scores.kernel:6.3f}  {others}")
