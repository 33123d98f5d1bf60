"""Classifiers, the loop that trains them, and the pool that pretrains, keeps and draws them."""

from pools.classifiers import CLASSIFIERS, build_classifier
from pools.fresh import OnlinePool, RandomPool
from pools.pool import ClassifierPool, keep_classifier
from pools.together import SideBySide
from pools.training import SCHEDULES, accuracy, embed_images, epoch_batches, train_classifier

__all__ = [
    "CLASSIFIERS",
    "SCHEDULES",
    "ClassifierPool",
    "OnlinePool",
    "RandomPool",
    "SideBySide",
    "accuracy",
    "build_classifier",
    "embed_images",
    "epoch_batches",
    "keep_classifier",
    "train_classifier",
]
