"""Real images: one table of data sets, held as uint8 tensors, and the conversions and augmentations that apply to them."""

from gendistil.data.augment import AUGMENTATIONS, Augment, AugmentParams
from gendistil.data.datasets import DATASETS, DataRow, Dataset, Split, load_asked, load_dataset, original
from gendistil.data.images import HostImages, restandardise, standardise, take, to_signed, to_uint8
from gendistil.data.spec import Spec, Whitened, spec_of

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
    "Whitened",
    "load_asked",
    "load_dataset",
    "original",
    "restandardise",
    "spec_of",
    "standardise",
    "take",
    "to_signed",
    "to_uint8",
]
