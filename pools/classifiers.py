"""The table of classifiers."""

from functools import partial

import torch

from pools.convnet import ConvNet
from pools.densenet import DenseNet
from pools.options import choose
from pools.resnet import ResNet
from pools.stack import ALEXNET, LENET, MLP, VGG11, Stack

FULL = partial(ResNet, depth=18, width=64)  # the ResNet18 of DC, DSA and DM

CLASSIFIERS = {
    "convnet": ConvNet,
    "convnet4": partial(ConvNet, depth=4),
    "convnet_bn": partial(ConvNet, norm="batch"),
    "convnet_swish": partial(ConvNet, activation="swish"),
    "convnet_swish_bn": partial(ConvNet, activation="swish", norm="batch"),
    "resnet10": partial(ResNet, depth=10),
    "resnet18": partial(ResNet, depth=18),
    "resnet10_ap": partial(ResNet, depth=10, average=True),
    "resnet18_ap": partial(ResNet, depth=18, average=True),
    "resnet18_full": FULL,
    "resnet18_full_in": partial(FULL, norm="instance"),
    "resnet18_full_ap": partial(FULL, average=True, flatten=True),
    "densenet": DenseNet,
    "mlp": partial(Stack, **MLP),
    "lenet": partial(Stack, **LENET),
    "alexnet": partial(Stack, **ALEXNET),
    "alexnet_bn": partial(Stack, **ALEXNET, norm="batch"),
    "vgg11": partial(Stack, **VGG11),
    "vgg11_bn": partial(Stack, **{**VGG11, "norm": "batch"}),
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
