"""A user's own extractors and measures, as they would stand in a package of theirs."""

import torch

from fewstep.metrics import Extractor, ExtractorOutput, Measure, PretrainedExtractor


class Quarters(Extractor):
    """The mean brightness of each quarter."""

    name, hash = "quarters", "version 1"

    def extract(self, images):
        h, w = images.shape[2] // 2, images.shape[3] // 2
        quarters = images.unfold(2, h, h).unfold(3, w, w).mean((1, 4, 5))
        return ExtractorOutput(quarters.flatten(1) / 255)


class Halves(Extractor):
    """One that was made by a function, with a setting."""

    def __init__(self, direction):
        self.name, self.hash, self.direction = "halves", direction, direction

    def extract(self, images):
        return ExtractorOutput(images.mean((1, 2 if self.direction == "across" else 3)) / 255)


def across():
    return Halves("across")


class Tiny(PretrainedExtractor):
    """A network with an input size, which therefore takes a resize."""

    name, size, standard_resize = "tiny", 4, "tf1-bilinear"

    @classmethod
    def load_network(cls):
        class Network(torch.nn.Module):
            def forward(self, images):
                return ExtractorOutput(images.flatten(1) / 255)

        return Network()


class Nameless(Quarters):
    name = None


NUMBER = 7


def shift(real, samples):
    return (real.mean(0) - samples.mean(0)).norm().item()


SHIFT = Measure("shift", "Shift <of> means", "lower", "Distance of the means.", compute=shift)
TAKEN = Measure("kernel", "Mine", "lower", "A key that is taken.", compute=shift)
INCOMPLETE = Measure("nothing", "Nothing", "lower", "A measure without a function.")
