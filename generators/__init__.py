"""Conditional generators: networks, adversarial training, sampling, saving and loading."""

import json
from pathlib import Path

from safetensors import SafetensorError

from common.errors import UserError
from common.run import load_checkpoint
from generators.adversarial import GAN, load_weights
from generators.base import ConditionalGenerator
from generators.biggan import load_published
from generators.recipes import NETWORKS, RECIPES, Recipe, recipe_of

__all__ = ["GAN", "LATENTS", "MODEL", "NETWORKS", "PIXELS", "RECIPES", "ConditionalGenerator", "Recipe", "load_generator",
           "load_weights", "recipe_of"]

MODEL, PIXELS, LATENTS = "generator", "pixels", "latents"
"""The folders inside a run that hold what was learned."""


def load_generator(path, device="cpu", others=()):
    """A generator from a run's folder, a saved model's folder, or a checkpoint file of the published DiM code.

    In eval mode on `device`. `others` are model classes that may stand in the place of a generator. Raises UserError naming
    `path` if there is none or it cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return _published(load_checkpoint(path), path).eval().to(device)
    places = (path / MODEL, path / PIXELS, path / LATENTS, path)
    folder = next((folder for folder in places if (folder / "config.json").exists()), None)
    if not path.exists():
        raise UserError(f"{path} does not exist: name a run's folder, a saved model's folder or a checkpoint file")
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
        kinds = [*others, *(network for network, _ in NETWORKS.values())]
        kind = next(kind for kind in kinds if kind.__name__ == name)
    except (TypeError, KeyError, StopIteration, ValueError):
        raise UserError(f"{path} holds no saved generator: name a run of gen_condense.py or pool_match.py "
                        "that has reached its first checkpoint") from None
    try:
        return kind.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False).eval().to(device)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds a damaged generator ({type(error).__name__}): save it again") from None


def _published(state, path):
    """The generator in a checkpoint of the published DiM or IT-GAN code, rebuilt from its tensors' shapes."""
    try:
        if not isinstance(state, dict):
            raise TypeError
        if "output_layer.2.weight" in state:
            return load_published(state)
        weights = list(state["generator"].values())
        linear, image = weights[0], weights[-2]
        convs = [w for w in weights[1:-2] if w.dim() == 4]
        width, channels = image.shape[1], image.shape[0]
        grid = int((linear.shape[0] // width) ** 0.5)
        size = 8 * grid - (4 if convs[0].shape[-1] == 3 else 0)
        classes = len(list(state["discriminator"].values())[-1])
        generator = NETWORKS["dim"][0](size=size, channels=channels, num_classes=classes,
                                       dim_noise=linear.shape[1], width=width)
        load_weights(generator, state["generator"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of the published DiM or IT-GAN code ({type(error).__name__}): for a run "
                        "of this suite name its folder") from None
    return generator
