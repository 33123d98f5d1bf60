"""Real images: one table of data sets, held as uint8 tensors, and the conversions and augmentations that apply to them."""

from gendistil.data.augment import AUGMENTATIONS, Augment, AugmentParams
from gendistil.data.datasets import DATASETS, DataRow, Dataset, Spec, Split, default_data_dir, load_dataset
from gendistil.data.images import HostImages, standardise, take, to_signed, to_uint8

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augment",
    "AugmentParams",
    "DataRow",
    "Dataset",
    "HostImages",
    "Spec",
    "Split",
    "default_data_dir",
    "load_dataset",
    "standardise",
    "take",
    "to_signed",
    "to_uint8",
]
