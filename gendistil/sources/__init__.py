"""Sources: whatever returns images for labels and a seed, where it is kept, and the sets that are drawn from it."""

from gendistil.common.source import ROWS, Source, check_fits, index_within_class
from gendistil.sources.draw import CHOICES, DistilledDataset, balanced_labels, diversity, draw_set
from gendistil.sources.joined import Joined
from gendistil.sources.latents import LATENT_SPACES, LatentSet
from gendistil.sources.load import (
    LATENTS_FOLDER,
    MODEL_FOLDER,
    PIXELS_FOLDER,
    STORED_SOURCES,
    file_of_set,
    load_source,
    weights_digest,
)
from gendistil.sources.pixels import DECODERS, PixelSet
from gendistil.sources.published import SET, Reading, check_read
from gendistil.sources.real import RealImages
from gendistil.sources.refined import Refined, Refinement, TooFewAccepted, refine
from gendistil.sources.stored import forget
from gendistil.sources.taught import KINDS, LEARNED_LABELS, Rows, Taught, Teacher

__all__ = ["CHOICES", "DECODERS", "KINDS", "LATENTS_FOLDER", "LATENT_SPACES", "LEARNED_LABELS", "MODEL_FOLDER",
           "PIXELS_FOLDER", "ROWS", "SET", "STORED_SOURCES", "DistilledDataset", "Joined", "LatentSet", "PixelSet", "Reading",
           "RealImages", "Refined", "Refinement", "Rows", "Source", "Taught", "Teacher", "TooFewAccepted", "balanced_labels",
           "check_fits", "check_read", "diversity", "draw_set", "file_of_set", "forget", "index_within_class", "load_source",
           "refine", "weights_digest"]
