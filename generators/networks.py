"""The table of networks."""

from generators.biggan import BigGANCritic, BigGANGenerator
from generators.dim import DiMCritic, DiMGenerator
from generators.pyramid import PyramidCritic, PyramidGenerator
from generators.unet import FlowGenerator

NETWORKS = {"dim": (DiMGenerator, DiMCritic), "pyramid": (PyramidGenerator, PyramidCritic),
            "biggan": (BigGANGenerator, BigGANCritic), "unet": (FlowGenerator, None)}
"""A generator and the critic that comes with it, None for a flow, by the name that --generator knows."""
