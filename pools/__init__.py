"""Classifiers, the loop that trains them, one or several side by side, and the pools that matching draws them from."""

from pools.base import Pool
from pools.classifiers import (
    CLASSIFIERS,
    SETS,
    base_name,
    build_classifier,
    check_classifiers,
    full_name,
    one_classifier,
    some_classifiers,
    usual_classifier,
)
from pools.fresh import OnlinePool, RandomPool
from pools.kept import KeptClassifiers, keep_classifier
from pools.pool import ClassifierPool
from pools.together import SideBySide
from pools.training import OPTIMIZERS, SCHEDULES, accuracy, embed_images, epoch_batches, train_classifier

__all__ = [
    "CLASSIFIERS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SETS",
    "ClassifierPool",
    "KeptClassifiers",
    "OnlinePool",
    "Pool",
    "RandomPool",
    "SideBySide",
    "accuracy",
    "base_name",
    "build_classifier",
    "check_classifiers",
    "embed_images",
    "epoch_batches",
    "full_name",
    "keep_classifier",
    "one_classifier",
    "some_classifiers",
    "train_classifier",
    "usual_classifier",
]
