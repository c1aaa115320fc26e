"""Weights and images by a fixed recipe, and what torch-fidelity makes of them.

The numbers in test_inception.py are what this file printed in an environment of its own, with
torch-fidelity 0.4.0, torch 2.13.0 (CPU) and numpy 2.4.6:

    python3 -m venv /tmp/oracle
    /tmp/oracle/bin/pip install -c constraints.txt torch==2.13.0 numpy pillow scipy tqdm
    /tmp/oracle/bin/pip install --no-deps torch-fidelity==0.4.0
    OMP_NUM_THREADS=1 /tmp/oracle/bin/python tests/metrics/inception_oracle.py

torch-fidelity is asked for float64 inside, so that its rounding is no part of the numbers.
"""

import sys
import tempfile
import zlib
from types import ModuleType

import numpy as np
import torch

# some from each branch of the last block
FEATURES = [0, 319, 500, 900, 1200, 1600, 1856, 2047]
LOGITS = [0, 100, 281, 404, 555, 700, 999, 1007]
NORMS = {"bn.weight": (0.5, 1.5), "bn.bias": (-0.5, 0.5)}
STATISTICS = {"bn.running_mean": (-0.5, 0.5), "bn.running_var": (0.5, 1.5)}


def drawn(name, shape):
    """The tensor of that name, by a generator whose stream numpy keeps frozen."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    bound = (6 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 1.0
    last_two = ".".join(name.split(".")[-2:])
    low, high = (NORMS | STATISTICS).get(last_two, (-bound, bound))
    values = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape)
    return torch.from_numpy((low + (high - low) * values).astype(np.float32))


def blocks():
    """One uint8 image of 299x299: 13x13 squares of random colour."""
    squares = np.random.RandomState(1).randint(0, 256, (1, 3, 13, 13), dtype=np.uint8)
    return torch.from_numpy(squares.repeat(23, 2).repeat(23, 3))


def noise():
    """One uint8 image of 32x32."""
    return torch.from_numpy(
        np.random.RandomState(2).randint(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    )


def oracle():
    """torch-fidelity's extractor, with the tensor `drawn` for each name and shape of its own."""
    # torchvision is imported with the package, but this network uses none of it
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = ModuleType(f"torchvision{name}")
    for name in ("CIFAR10", "STL10", "CIFAR100"):
        setattr(sys.modules["torchvision.datasets"], name, object)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Drawn(FeatureExtractorInceptionV3):
        def load_state_dict(self, _):
            shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}
            super().load_state_dict({name: drawn(name, shape) for name, shape in shapes.items()})

    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({}, file.name)  # the constructor insists on reading one
        return Drawn("inception", ["2048", "logits_unbiased"], file.name, "float64")


if __name__ == "__main__":
    network = oracle()
    print(len(network.state_dict()), "entries")
    for images in (blocks(), noise()):
        features, logits = network(images)
        for row, chosen in ((features[0], FEATURES), (logits[0], LOGITS)):
            print(f"{row.abs().max().item():.8g}", [float(f"{row[i]:.8g}") for i in chosen])
