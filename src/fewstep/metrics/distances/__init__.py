"""Distances and scores of sets of features, and perceptual distances of two images."""

from fewstep.metrics.distances.class_score import ClassScore
from fewstep.metrics.distances.coverage import density_coverage, precision_recall
from fewstep.metrics.distances.frechet import (
    MomentBlocks,
    Moments,
    frechet_distance,
    frechet_estimate,
)
from fewstep.metrics.distances.kernel import kernel_distance
from fewstep.metrics.distances.neighbours import nearest
from fewstep.metrics.distances.perceptual import FeatureDistance, Lpips, load_lpips
from fewstep.metrics.distances.sliced import sliced_wasserstein

__all__ = [
    "ClassScore",
    "FeatureDistance",
    "Lpips",
    "MomentBlocks",
    "Moments",
    "density_coverage",
    "frechet_distance",
    "frechet_estimate",
    "kernel_distance",
    "load_lpips",
    "nearest",
    "precision_recall",
    "sliced_wasserstein",
]
