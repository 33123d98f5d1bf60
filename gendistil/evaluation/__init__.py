"""Judging what was distilled: students trained on it, statistics and reports."""

from gendistil.evaluation.protocols import PRESETS, PROTOCOLS, Preset, Protocol, protocol_for
from gendistil.evaluation.students import (
    SAMPLINGS,
    Result,
    evaluate,
    evaluate_full,
    long_enough,
    student_batches,
    train_student,
    train_students,
)

__all__ = [
    "PRESETS",
    "PROTOCOLS",
    "SAMPLINGS",
    "Preset",
    "Protocol",
    "Result",
    "evaluate",
    "evaluate_full",
    "long_enough",
    "protocol_for",
    "student_batches",
    "train_student",
    "train_students",
]
