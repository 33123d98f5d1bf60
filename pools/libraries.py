"""Classifiers of other libraries, made to take a data set's images: those of torchvision, and of timm if it is installed."""

import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from gendistil.common.errors import UserError


def _torchvision(name):
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"torchvision has no classifier '{name}': choose one of torchvision.models.list_models()")
    weights = next(iter(models.get_model_weights(name)))
    return lambda num_classes: (models.get_model(name, weights=None, num_classes=num_classes), weights.meta["min_size"][-1])


def _timm(name):
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name} is a classifier of the package timm, which is not installed: pip install timm") from None
    if not timm.is_model(name):
        raise UserError(f"timm has no classifier '{name}': choose one of timm.list_models()")

    def make(num_classes):
        network = timm.create_model(name, pretrained=False, num_classes=num_classes)
        facts = network.pretrained_cfg
        size = facts.get("input_size") if facts.get("fixed_input_size") else facts.get("min_input_size")
        return network, size[-1] if size else 1

    return make


LIBRARIES = {"torchvision": _torchvision, "timm": _timm}
"""Called with a classifier's name in the library, each gives what makes it: called with the number of classes, that gives an
untrained network of three channels and the smallest side, in pixels, of the images that it takes. UserError for a name that
the library has not."""


class Borrowed(nn.Module):
    """A classifier of another library, from its initial weights.

    Args: make, what a row of `LIBRARIES` gives for its name; channels and size (side in pixels) of the images; num_classes;
    side, in pixels, to which images are resized before the network sees them (default: the smallest that it takes, where they
    are smaller).

    Grey images are shown as three equal channels. Dropout and stochastic depth are left out, because every random draw of the
    suite has a name and theirs have none. Raises UserError for a network that does not end in a linear layer.
    """

    def __init__(self, make, channels, size, num_classes, *, side=0):
        super().__init__()
        network, least = make(num_classes)
        self.side = side or max(size, least)
        for module in network.modules():
            if isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth)):
                module.p = 0.0
        linears = [name for name, module in network.named_modules()
                   if isinstance(module, nn.Linear) and module.out_features == num_classes]
        if not linears:
            raise UserError("it does not end in a linear layer of the classes, as every classifier here has to")
        self.classifier = network.get_submodule(linears[-1])
        network.set_submodule(linears[-1], nn.Identity())
        self.body = network

    def features(self, images):
        """UserError: the maps of a borrowed network are not known."""
        raise UserError("a classifier of torchvision or timm does not give its maps, which --match feature compares: name "
                        "another --pool")

    def embed(self, images):
        """What enters the last linear layer: [B, D]."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=self.side < images.shape[-1])
        return self.body(images)  # B,D

    def forward(self, images):
        """Standardised images [B, C, H, W] to logits [B, K]."""
        return self.classifier(self.embed(images))  # B,K
