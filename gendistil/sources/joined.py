"""Several sources as one: the classes of each follow those of the one before."""

import torch
import torch.nn.functional as F

from gendistil.common.source import Source


class Joined(Source):
    """Sources of images of one size as a source of all their classes, in the order of `parts`.

    Image i of a class is what its part gives for the same seed. Targets are labels, or soft labels for all images where a part
    has soft ones: each part answers among its own classes only, and a hard label becomes a soft one that is sure. So it is
    where parts have teachers to ask; of a target that is shared by several parts (CutMix), each answers for its share.
    """

    def __init__(self, parts):
        self.parts, self.channels, self.size = parts, parts[0].channels, parts[0].size
        self.num_classes = sum(part.num_classes for part in parts)
        self.varies = any(part.varies for part in parts)
        self.max_ipc = min((part.max_ipc for part in parts if part.max_ipc is not None), default=None)

    def _shares(self, labels):
        """Yield each part that has some of the labels, its first class, and which of them are its."""
        first = 0
        for part in self.parts:
            rows = ((labels >= first) & (labels < first + part.num_classes)).nonzero().squeeze(1)
            if len(rows):
                yield part, first, rows
            first += part.num_classes

    def sample(self, labels, seed=0):
        images = torch.empty(len(labels), self.channels, self.size, self.size, device=labels.device)
        for part, first, rows in self._shares(labels):
            images[rows] = part.sample(labels[rows] - first, seed).to(images)
        return images

    def targets(self, labels, seed=0, images=None):
        answers = [(first, rows, part.targets(labels[rows] - first, seed, None if images is None else images[rows]))
                   for part, first, rows in self._shares(labels)]
        if not any(values.is_floating_point() for *_, values in answers):
            return labels
        soft = torch.zeros(len(labels), self.num_classes, device=labels.device)
        for first, rows, values in answers:
            if values.is_floating_point():
                soft[rows, first:first + values.shape[1]] = values
            else:
                soft[rows, first + values] = 1
        return soft

    @property
    def answers(self):
        return None if all(part.answers is None for part in self.parts) else self._answers

    def _answers(self, batch, targets, spec):
        soft = targets if targets.is_floating_point() else F.one_hot(targets, self.num_classes).float()
        answered, first = soft.clone(), 0
        for part in self.parts:
            own = slice(first, first + part.num_classes)
            first = own.stop
            rows = soft[:, own].sum(1).nonzero().squeeze(1)
            if part.answers and len(rows):
                share = soft[rows, own].sum(1, keepdim=True)
                answered[rows, own] = share * part.answers(batch[rows], soft[rows, own] / share, spec)
        return answered

    def decoded(self, ipc):
        return self.parts[0].decoded(ipc)

    def stored_bytes(self, ipc):
        return sum(part.stored_bytes(ipc) for part in self.parts)
