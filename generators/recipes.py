"""Named recipes: which trainer, which networks, which losses and which schedule. A flag overrides any one value."""

from dataclasses import replace

from gendistil.common.errors import UserError
from gendistil.common.flags import flag_fields, flag_of
from generators.adversarial import GAN, GANRecipe
from generators.flow import FlowRecipe, FlowTrainer, ShortcutRecipe, ShortcutTrainer

TRAINERS = {"gan": GAN, "flow": FlowTrainer, "shortcut": ShortcutTrainer}
"""Kinds of training by the name that a recipe's class and a checkpoint give them."""

_FLOW = {"generator": "unet", "lr": 1e-3, "beta2": 0.999, "batch_size": 128, "width": 64, "dim_noise": None, "ema": 0.999,
         "epochs": 200, "times": "logit-normal", "label_dropout": 0.1, "warmup": 0.05, "sample_steps": 16, "guidance": 1.0}

RECIPES = {
    "pyramid": GANRecipe(generator="pyramid", loss="hinge", penalty="r1", gradient_penalty=0.5, penalty_interval=4, lr=5e-4,
                         lr_critic=1e-3, beta2=0.99, batch_size=64, width=128, dim_noise=100, ema=0.999, gan_aug="crop",
                         epochs=200),
    "dim": GANRecipe(generator="dim", loss="wgan", penalty="wgan-gp", gradient_penalty=10.0, penalty_interval=1, lr=1e-4,
                     lr_critic=1e-4, beta2=0.9, batch_size=128, width=196, dim_noise=100, ema=0.0, gan_aug="none", epochs=150),
    "biggan": GANRecipe(generator="biggan", loss="hinge", penalty="r1", gradient_penalty=0.0, penalty_interval=1, lr=2e-4,
                        lr_critic=2e-4, beta2=0.999, batch_size=64, width=256, dim_noise=128, ema=0.999,
                        gan_aug="color_crop_cutout", epochs=500),
    "flow": FlowRecipe(**_FLOW),
    "shortcut": ShortcutRecipe(**{**_FLOW, "sample_steps": 4, "guidance": 1.5}, long_steps=0.125),
}
"""Every recipe by the name that --recipe knows."""


def make_trainer(accelerator, spec, recipe, seed, engine=None):
    """The trainer that a recipe is for; its networks are run by `engine`, an `Engine`."""
    return TRAINERS[recipe.trainer](accelerator, spec, recipe, seed, engine)


def recipe_of(state, path):
    """The recipe of a training state: the one saved with it, or `dim` with the widths of a published checkpoint's tensors.

    Raises UserError, naming `path`, for a state that is neither, and for a recipe of what is in no table.
    """
    try:
        if "recipe" in state:
            recipe = TRAINERS[state.get("trainer", "gan")].recipe_class(**state["recipe"])
            for field in flag_fields(recipe):
                value = getattr(recipe, field.name)
                if value not in field.metadata.get("choices", [value]):
                    raise UserError(f"{path} was trained with {flag_of(field.name)} {value}, which is not here: name its file "
                                    "by --plugin")
            return recipe
        linear, *_, image, _ = state["generator"].values()
        return replace(RECIPES["dim"], width=image.shape[1], dim_noise=linear.shape[1])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise UserError(f"{path} is not a checkpoint of this suite or of the published DiM code") from None
