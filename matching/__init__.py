"""Matching: what is learned, what must agree between real and synthetic images, and against which real images."""

from matching import initial, learners, methods
from matching.latents import LATENT_SPACES, LatentSet
from matching.learners import SPACES, GeneratorLearner, LatentLearner, PixelLearner
from matching.matcher import SETTINGS, Matcher
from matching.methods import METHODS
from matching.objectives import METRICS, OBJECTIVES
from matching.pixels import DECODERS, PixelSet
from matching.selectors import SELECTORS

__all__ = ["DECODERS", "LATENT_SPACES", "METHODS", "METRICS", "OBJECTIVES", "SELECTORS", "SETTINGS", "SPACES",
           "GeneratorLearner", "LatentLearner", "LatentSet", "Matcher", "PixelLearner", "PixelSet", "initial", "learners",
           "methods"]
