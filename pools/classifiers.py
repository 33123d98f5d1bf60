"""The table of classifiers."""

from functools import partial

import torch

from pools.convnet import ConvNet
from pools.densenet import DenseNet
from pools.options import choose
from pools.resnet import ResNet

CLASSIFIERS = {
    "convnet": ConvNet,
    "resnet10": partial(ResNet, depth=10),
    "resnet18": partial(ResNet, depth=18),
    "resnet10_ap": partial(ResNet, depth=10, average=True),
    "resnet18_ap": partial(ResNet, depth=18, average=True),
    "densenet": DenseNet,
}
"""Every classifier by the name that the command lines know."""


def build_classifier(name, channels, size, num_classes, *, generator=None, **options):
    """A new classifier for images `[B, channels, size, size]`, on the CPU.

    Args: name, a key of `CLASSIFIERS`; generator, the `torch.Generator` that decides the initial weights (default: torch's
    global one); options, keywords of the class (width, norm, ...).
    Returns a module with `forward(images) -> logits [B, K]`, `embed(images) -> [B, D]`, the input of its last linear layer,
    and `features(images)`, the list of its maps from first to last. Raises UserError for a name that is not in the table.
    """
    classifier = choose(CLASSIFIERS, name, "classifier")
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        return classifier(channels, size, num_classes, **options)
