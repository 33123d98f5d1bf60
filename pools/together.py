"""Several classifiers of one kind as one network: a device that one of them does not fill trains all of them at once."""

import copy

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from gendistil.common.engine import norms_in_float32


class SideBySide(nn.Module):
    """Classifiers of one kind, whose weights are stacked: images [S, B, C, H, W] -> logits [S, B, K], each part by its own.

    They begin as `models`, a list of S modules on one device, and `write_back` puts what was learned into these. An `Engine`
    does not compile them.
    """

    eager = True

    def __init__(self, models):
        super().__init__()
        self._models, self._shape = list(models), [copy.deepcopy(models[0])]  # in lists: no modules of this one
        norms_in_float32(self._shape[0])
        weights, buffers = stack_module_state(self._models)
        self._names, self._buffer_names = list(weights), list(buffers)
        self.weights = nn.ParameterList(weights.values())
        self._stacked = list(buffers.values())

    def train(self, mode=True):
        self._shape[0].train(mode)
        return super().train(mode)

    def forward(self, images):
        def one(weights, buffers, images):
            return functional_call(self._shape[0], (weights, buffers), (images,))

        stacked = dict(zip(self._names, self.weights)), dict(zip(self._buffer_names, self._stacked))
        return vmap(one, randomness="different")(*stacked, images)

    @torch.no_grad()
    def write_back(self):
        """Copy weights and buffers into the models that this was made from."""
        for index, model in enumerate(self._models):
            state = zip([*self._names, *self._buffer_names], [*self.weights, *self._stacked])
            model.load_state_dict({name: value[index] for name, value in state})
