"""Named recipes: which networks, which losses and which schedule. A flag overrides any one field."""

from dataclasses import dataclass, replace

from common.errors import UserError
from generators.biggan import BigGANCritic, BigGANGenerator
from generators.dim import DiMCritic, DiMGenerator
from generators.pyramid import PyramidCritic, PyramidGenerator

NETWORKS = {"dim": (DiMGenerator, DiMCritic), "pyramid": (PyramidGenerator, PyramidCritic),
            "biggan": (BigGANGenerator, BigGANCritic)}


@dataclass(frozen=True)
class Recipe:
    """One row of the table; the field names are the flags of `gen_condense.py`."""

    generator: str          # a key of NETWORKS; its critic comes with it
    loss: str               # a key of losses.CRITIC_LOSSES
    penalty: str            # a key of losses.PENALTIES
    gradient_penalty: float  # its weight, 0 for none
    penalty_interval: int   # steps between penalties; each then counts for all of them (Karras et al., CVPR 2020)
    lr: float               # Adam's learning rate of the generator
    lr_critic: float        # and of the critic
    beta2: float            # Adam's second beta; the first is 0
    batch_size: int         # images a step, over all processes
    width: int              # channels of the generator's coarsest grid (dim: of every layer)
    dim_noise: int          # entries of the noise vector
    ema: float              # decay of the averaged weights, 0 for none
    gan_aug: str            # differentiable augmentation of what the critic sees (Zhao et al., NeurIPS 2020)
    epochs: int             # passes over the real images


RECIPES = {
    "pyramid": Recipe("pyramid", "hinge", "r1", 0.5, 4, 5e-4, 1e-3, 0.99, 64, 128, 100, 0.999, "crop", 200),
    "dim": Recipe("dim", "wgan", "wgan-gp", 10.0, 1, 1e-4, 1e-4, 0.9, 128, 196, 100, 0.0, "none", 150),
    "biggan": Recipe("biggan", "hinge", "r1", 0.0, 1, 2e-4, 2e-4, 0.999, 64, 256, 128, 0.999, "color_crop_cutout", 500),
}


def recipe_of(state, path):
    """The recipe of a training state: the one saved with it, or `dim` with the widths of a published checkpoint's tensors.

    Raises UserError, naming `path`, for a state that is neither.
    """
    try:
        if "recipe" in state:
            return Recipe(**state["recipe"])
        linear, *_, image, _ = state["generator"].values()
        return replace(RECIPES["dim"], width=image.shape[1], dim_noise=linear.shape[1])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise UserError(f"{path} is not a checkpoint of this suite or of the published DiM code") from None
