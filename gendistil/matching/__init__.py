"""Matching: what is learned, what must agree between real and synthetic images, and against which real images."""

from gendistil.matching import initial, learners, methods
from gendistil.matching.learners import SPACES, GeneratorLearner, LatentLearner, PixelLearner
from gendistil.matching.matcher import SETTINGS, Matcher
from gendistil.matching.methods import METHODS, Method, method_for
from gendistil.matching.objectives import OBJECTIVES, Objective
from gendistil.matching.selectors import SELECTORS

__all__ = ["METHODS", "OBJECTIVES", "SELECTORS", "SETTINGS", "SPACES", "GeneratorLearner", "LatentLearner",
           "Matcher", "Method", "Objective", "PixelLearner", "initial", "learners", "method_for", "methods"]
