"""Distil a data set into a generative model, and judge what was distilled.

What is used from other people's code stands here; the rooms below hold the rest.
"""

import importlib

_HOMES = {"DistilledDataset": "gendistil.sources", "draw_set": "gendistil.sources", "load_source": "gendistil.sources",
          "load_dataset": "gendistil.data", "evaluate": "gendistil.evaluation", "PROTOCOLS": "gendistil.evaluation"}

__all__ = sorted(_HOMES)


def __getattr__(name):
    """Import a room only when one of its names is asked for: torch and diffusers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
