"""Scores of images. A score is comparable only with scores of the same protocol."""

from fewstep.metrics.accumulator import VERSION, ScoreAccumulator
from fewstep.metrics.classes import ClassScore
from fewstep.metrics.classifier import (
    Classifier,
    classifier_file,
    classifier_for,
    read_classifier,
    train_classifier,
)
from fewstep.metrics.coverage import density_coverage, precision_recall
from fewstep.metrics.extractors import EXTRACTORS, make_extractor
from fewstep.metrics.features import Extractor, Pixels
from fewstep.metrics.frechet import Moments, Parts, frechet_distance, frechet_estimate
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.measures import MEASURES, Measure, Measures
from fewstep.metrics.neighbours import nearest
from fewstep.metrics.networks import INCEPTION_HASH, load_pretrained, published_lpips
from fewstep.metrics.perceptual import FeatureDistance, Lpips
from fewstep.metrics.protocols import PROTOCOLS, EvalProtocol, protocol
from fewstep.metrics.reference import Reference, build_reference
from fewstep.metrics.sliced import sliced_wasserstein

__all__ = [
    "EXTRACTORS",
    "INCEPTION_HASH",
    "PROTOCOLS",
    "VERSION",
    "ScoreAccumulator",
    "ClassScore",
    "Classifier",
    "Extractor",
    "FeatureDistance",
    "Lpips",
    "MEASURES",
    "Measure",
    "Measures",
    "Moments",
    "Parts",
    "Pixels",
    "EvalProtocol",
    "Reference",
    "classifier_file",
    "classifier_for",
    "density_coverage",
    "frechet_distance",
    "frechet_estimate",
    "kernel_distance",
    "make_extractor",
    "nearest",
    "precision_recall",
    "protocol",
    "load_pretrained",
    "published_lpips",
    "read_classifier",
    "build_reference",
    "sliced_wasserstein",
    "train_classifier",
]
