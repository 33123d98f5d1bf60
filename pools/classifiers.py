"""The table of classifiers, sets of them, and their names, of which options are a part: `convnet:norm=batch,width=256`."""

import argparse
import inspect
from functools import partial

import torch

from gendistil.common.errors import UserError
from pools.convnet import ConvNet
from pools.densenet import DenseNet
from pools.libraries import LIBRARIES, Borrowed
from pools.options import choose, read_option, write_option
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

SETS = {
    # Those of `get_eval_pool` in the code of DC, DSA and DM, whose ConvNet has width 128, depth 3, ReLU, average pooling and
    # instance norm: several architectures, the same with batch norm, widths, depths, activations, poolings, norms.
    "M": ("mlp", "convnet", "lenet", "alexnet", "vgg11", "resnet18_full_in"),
    "B": ("convnet_bn", "convnet_swish_bn", "alexnet_bn", "vgg11_bn", "resnet18_full"),
    "W": ("convnet:width=32", "convnet:width=64", "convnet", "convnet:width=256"),
    "D": ("convnet:depth=1", "convnet:depth=2", "convnet", "convnet4"),
    "A": ("convnet:activation=sigmoid", "convnet", "convnet:activation=leakyrelu", "convnet_swish"),
    "P": ("convnet:pooling=none", "convnet:pooling=max", "convnet"),
    "N": ("convnet:norm=none", "convnet_bn", "convnet:norm=layer", "convnet", "convnet:norm=group"),
    "IDC": ("convnet", "resnet10", "densenet"),  # of the CIFAR tables of IDC and DREAM
}
"""Sets of classifiers that papers judge by, by the name that the command lines know, in the published order."""


def _parse(name):
    """A classifier's name as (the part before its options, what builds it, its options)."""
    first, _, rest = name.partition(":")
    if first in LIBRARIES:
        base, _, rest = rest.partition(":")
        first, build = f"{first}:{base}", partial(Borrowed, LIBRARIES[first](base))
    else:
        build = choose(CLASSIFIERS, first, "classifier")
    if name == first:
        return first, build, {}
    known = {key: option.default for key, option in inspect.signature(build).parameters.items()
             if option.kind is option.KEYWORD_ONLY}
    options = {}
    for word in rest.split(","):
        key, _, text = word.partition("=")
        default = choose(known, key, f"option of {first}")
        options[key] = read_option(text, default, f"option {key} of {first}")
    return first, build, {key: value for key, value in sorted(options.items()) if value != known[key]}


def usual_classifier(size):
    """The classifier of images of `size` pixels where none is named: a ConvNet, with a block more from 64 pixels on, as
    published for TinyImageNet."""
    return "convnet" if size < 64 else "convnet4"


def base_name(name):
    """A classifier's name without its options."""
    return _parse(name)[0]


def full_name(name):
    """A classifier's name in its one spelling: options sorted, and those left out that say what holds anyway.

    A name is a key of `CLASSIFIERS`, `torchvision:NAME` or `timm:NAME`, and then perhaps a colon and options joined by commas,
    which are keywords of the class: `convnet:norm=batch,width=256`. Raises UserError for any other.
    """
    first, _, options = _parse(name)
    words = ",".join(f"{key}={write_option(value)}" for key, value in options.items())
    return f"{first}:{words}" if words else first


def one_classifier(text):
    """An argparse type: the name of a classifier, see `full_name`."""
    try:
        return full_name(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error))


def some_classifiers(text):
    """An argparse type: the names that a key of `SETS` stands for, or the name of one classifier; a tuple."""
    return SETS[text] if text in SETS else (one_classifier(text),)


def build_classifier(name, channels, size, num_classes, *, generator=None, **options):
    """A new classifier for images `[B, channels, size, size]`, on the CPU.

    Args: name, see `full_name`; generator, the `torch.Generator` that decides the initial weights (default: torch's
    global one); options, further keywords of the class (width, norm, ...).
    Returns a module with `forward(images) -> logits [B, K]`, `embed(images) -> [B, D]`, the input of its last linear layer,
    which is its `classifier`, and `features(images)`, the list of its maps from first to last, which a classifier of another
    library refuses. Raises UserError for a name that is not known.
    """
    _, build, named = _parse(name)
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        if generator is not None:
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        return build(channels, size, num_classes, **{**named, **options})


@torch.no_grad()
def check_classifiers(names, spec, flag, suits=None):
    """Raise UserError, which names `flag`, unless classifiers of these names can be built for the images of a `Spec`, and pass
    `suits(classifier, images)`, which raises one where it asks for more.

    Each is built and shown two images, because only the networks themselves know what they take.
    """
    for name in names:
        try:
            model = build_classifier(name, spec.channels, spec.size, spec.num_classes, generator=torch.Generator())
            images = torch.zeros(2, spec.channels, spec.size, spec.size)
            shape = getattr(model(images), "shape", None)
            if suits:
                suits(model, images)
        except UserError as error:
            raise UserError(f"{flag} {name}: {error}")
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{flag} {name}: it does not work on images of {spec.size} pixels ({reason}): choose other options "
                            "or another classifier")
        if shape != (2, spec.num_classes):
            raise UserError(f"{flag} {name}: it does not answer with logits alone: choose another classifier")
