"""`text-match`: does an image show what its prompt says? Measured without foreign weights."""

from fewstep.metrics.text_match.captions import CaptionPool
from fewstep.metrics.text_match.measure import TEXT_MATCH, TONE_MATCH, TextMatch, wilson_interval
from fewstep.metrics.text_match.training import Scorer, scorer_file, scorer_for, train_scorer

__all__ = [
    "TEXT_MATCH",
    "TONE_MATCH",
    "CaptionPool",
    "Scorer",
    "TextMatch",
    "scorer_file",
    "scorer_for",
    "train_scorer",
    "wilson_interval",
]
