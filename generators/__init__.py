"""Conditional generators: networks, trainers, recipes and sampling."""

from generators.adversarial import GAN, GANRecipe
from generators.base import ConditionalGenerator
from generators.flow import FlowRecipe, FlowTrainer, ShortcutRecipe, ShortcutTrainer
from generators.networks import NETWORKS
from generators.published import load_published
from generators.recipes import RECIPES, TRAINERS, make_trainer, recipe_of
from generators.trainer import Recipe, Trainer, load_weights

__all__ = ["GAN", "NETWORKS", "RECIPES", "TRAINERS", "ConditionalGenerator", "FlowRecipe", "FlowTrainer", "GANRecipe", "Recipe",
           "ShortcutRecipe", "ShortcutTrainer", "Trainer", "load_published", "load_weights", "make_trainer", "recipe_of"]
