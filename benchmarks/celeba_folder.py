"""Write CIFAR-10's images in the layout and size of CelebA, to try its recipes without faces.

    python benchmarks/celeba_folder.py FOLDER [--count 20000]

Each image is enlarged to 178 x 178 pixels (bicubic) and continued above and below to 178 x 218, as
JPEG of quality 95: `fewstep` crops the middle 178 x 178 again. One in ten is in the split `valid`
and one in ten in `test`, in turn. What is trained on them shows that the recipes work, and
nothing about faces.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep import data

SIDE, HEIGHT = 178, 218


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    images = data.load("cifar10").images[: options.count]
    folder = options.folder / "img_align_celeba"
    folder.mkdir(parents=True, exist_ok=True)
    border = (HEIGHT - SIDE) // 2
    lines = []
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        name = f"{i + 1:06}.jpg"
        large = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        tall = np.pad(large, ((border, border), (0, 0), (0, 0)), mode="reflect")
        Image.fromarray(tall).save(folder / name, quality=95)
        lines.append(f"{name} {max(0, i % 10 - 7)}\n")
    (options.folder / "list_eval_partition.txt").write_text("".join(lines))
    print(f"{options.folder}: {len(lines):,} images")


if __name__ == "__main__":
    main()
