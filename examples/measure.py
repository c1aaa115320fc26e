"""Measure image sets without a run: digits with more and more noise, against clean digits.

python examples/measure.py
"""

import torch

from fewstep import data, metrics
from fewstep.evaluation import exhaust

digits = data.load("digits")
real, rest = digits.images[::2], digits.images[1::2]
extractor = metrics.train_classifier(real, digits.labels[::2], steps=300)
half = data.ImageSet("half of the digits", real)
reference = exhaust(metrics.build_reference(extractor, half, cache=None))

print("noise  Fréchet           kernel  precision  recall  copies")
for level in (0, 20, 40, 80):
    noise = level * torch.randn(rest.shape, generator=torch.Generator().manual_seed(0))
    images = (rest + noise).clamp(0, 255).to(torch.uint8)
    accumulator = metrics.ScoreAccumulator(reference, len(images))
    for batch in images.split(200):
        accumulator.update(batch)
    m = accumulator.measures()
    distance = f"{m.frechet:.2f} [{m.frechet_low:.2f}, {m.frechet_high:.2f}]"
    shares = f"{m.precision:9.2f}  {m.recall:6.2f}  {m.copies:6.1%}"
    print(f"{level:5}  {distance:16}  {m.kernel:6.3f}  {shares}")
