"""Matching: what must agree between real and synthetic images, and against which real images."""

from matching.matcher import Matcher
from matching.objectives import OBJECTIVES
from matching.selectors import SELECTORS

__all__ = ["OBJECTIVES", "SELECTORS", "Matcher"]
