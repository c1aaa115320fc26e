"""Scikit-learn's handwritten digits, which need no download."""

import numpy as np
import torch

from fewstep.data.imageset import ImageSet, check_split


def read_digits(split: str) -> ImageSet:
    """1,797 digits of 8 x 8 pixels; values v of 0 … 16 become ⌊(255·v + 8)/16⌋, so that 16 is 255.

    Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test part.
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
