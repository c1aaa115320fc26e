"""Scores of images. A score is comparable only with scores of the same extractor and hash."""

from fewstep.metrics.classifier import Classifier, classifier_for, train_classifier
from fewstep.metrics.extractors import EXTRACTORS, make_extractor
from fewstep.metrics.features import Extractor, Pixels
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.sliced import sliced_wasserstein

__all__ = [
    "EXTRACTORS",
    "Classifier",
    "Extractor",
    "Moments",
    "Pixels",
    "classifier_for",
    "frechet_distance",
    "make_extractor",
    "moments",
    "sliced_wasserstein",
    "train_classifier",
]
