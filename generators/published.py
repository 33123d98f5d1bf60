"""Generators out of the checkpoint files of the published code, whose tensors say how to rebuild them."""

import re

from gendistil.common.errors import UserError
from generators.biggan import BigGANGenerator
from generators.dim import DiMGenerator
from generators.trainer import load_weights


def load_published(state, path, also=""):
    """The generator in `state`, a checkpoint of the published DiM or IT-GAN code, read from `path`; in eval mode.

    Raises UserError, naming `path`, if it is none; `also` says what else it is not.
    """
    try:
        if not isinstance(state, dict) or "recipe" in state:  # as this suite's have
            raise TypeError
        return (_biggan if "output_layer.2.weight" in state else _dim)(state).eval()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of the published DiM or IT-GAN code{also} ({type(error).__name__}): for a "
                        "run of this suite name its folder") from None


def _dim(state):
    """The generator of a training state of the published DiM code."""
    weights = list(state["generator"].values())
    linear, image = weights[0], weights[-2]
    convs = [w for w in weights[1:-2] if w.dim() == 4]
    width, channels = image.shape[1], image.shape[0]
    grid = int((linear.shape[0] // width) ** 0.5)
    size = 8 * grid - (4 if convs[0].shape[-1] == 3 else 0)
    classes = len(list(state["discriminator"].values())[-1])
    generator = DiMGenerator(size=size, channels=channels, num_classes=classes, dim_noise=linear.shape[1], width=width)
    load_weights(generator, state["generator"])
    return generator


_NAMES = ((r"blocks\.(\d+)\.0\.", r"blocks.\1."), (r"(bn\d)\.bias\.", r"\1.shift."), (r"output_layer\.0\.gain", "norm.weight"),
          (r"output_layer\.0\.", "norm."), (r"output_layer\.2\.", "to_image."), (r"\.stored_", ".running_"), (r"\.u0$", ".u"))


def _biggan(state):
    """The generator in a state dict of the published IT-GAN code. KeyError or RuntimeError if it is none."""
    own = {}
    for name, value in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if not name.endswith(".sv0"):  # a singular value that was written down and never read
            own[name] = value
    channels, width = own["to_image.weight"].shape[:2]
    units, dim_noise = own["linear.weight"].shape
    blocks = 1 + max(int(name.split(".")[1]) for name in own if name.startswith("blocks."))
    size = round((units / width) ** 0.5) * 2**blocks
    generator = BigGANGenerator(size, channels, len(own["blocks.0.bn1.gain.weight"]), dim_noise, width)
    counters = {name: value for name, value in generator.state_dict().items() if name.endswith("num_batches_tracked")}
    generator.load_state_dict({**own, **counters})
    return generator
