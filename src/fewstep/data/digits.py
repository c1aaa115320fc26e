"""Scikit-learn's handwritten digits, which need no download."""

import numpy as np
import torch

from fewstep.data.imageset import ImageSet, check_split


def read_digits(split: str) -> ImageSet:
    """1,797 grey digits of 8 x 8 pixels.  Alpaydin and Kaynak 1998.

    They are the test part of UCI's "Optical Recognition of Handwritten Digits". Its values v from 0
    to 16 are mapped to ⌊(255·v + 8)/16⌋, from 0 to 255.
    """
    from sklearn.datasets import load_digits

    check_split("digits", split, ["train"])
    pixels, labels = load_digits(return_X_y=True)
    images = ((255 * pixels.astype(np.int64) + 8) // 16).astype(np.uint8)
    return ImageSet(
        "digits",
        torch.from_numpy(images).reshape(-1, 1, 8, 8),
        torch.from_numpy(labels.astype(np.int64)),
        tuple("0123456789"),
    )
