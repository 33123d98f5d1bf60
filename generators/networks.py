"""The table of networks."""

from generators.biggan import BigGANCritic, BigGANGenerator
from generators.dim import DiMCritic, DiMGenerator
from generators.pyramid import PyramidCritic, PyramidGenerator

NETWORKS = {"dim": (DiMGenerator, DiMCritic), "pyramid": (PyramidGenerator, PyramidCritic),
            "biggan": (BigGANGenerator, BigGANCritic)}
"""A generator and the critic that comes with it, by the name that --generator knows."""
