"""Judging what was distilled: sources of images, students trained on them, statistics and reports."""

from evaluation.sources import CHOICES, DistilledDataset, RealImages, balanced_labels, draw_set, load_source
from evaluation.students import PROTOCOLS, SAMPLINGS, Protocol, Result, evaluate, evaluate_full

__all__ = [
    "CHOICES",
    "PROTOCOLS",
    "SAMPLINGS",
    "DistilledDataset",
    "Protocol",
    "RealImages",
    "Result",
    "balanced_labels",
    "draw_set",
    "evaluate",
    "evaluate_full",
    "load_source",
]
