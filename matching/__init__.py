"""Matching: what is learned, what must agree between real and synthetic images, and against which real images."""

from matching import initial, learners, methods
from matching.learners import SPACES, GeneratorLearner, PixelLearner
from matching.matcher import SETTINGS, Matcher
from matching.methods import METHODS
from matching.objectives import METRICS, OBJECTIVES
from matching.pixels import DECODERS, PixelSet
from matching.selectors import SELECTORS

__all__ = ["DECODERS", "METHODS", "METRICS", "OBJECTIVES", "SELECTORS", "SETTINGS", "SPACES", "GeneratorLearner", "Matcher",
           "PixelLearner", "PixelSet", "initial", "learners", "methods"]
