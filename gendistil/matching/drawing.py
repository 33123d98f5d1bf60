"""Images that a flow draws under guidance: towards modes of the real images, and by what an objective says of them.

Nothing is trained. A step of the run is an Euler step of all images, so drawing is watched, scored and resumed as learning is.
"""

import torch

from gendistil.common.clustering import kmeans
from gendistil.common.errors import UserError
from gendistil.common.rng import counter_normal, stream
from gendistil.data import take, to_signed
from gendistil.matching.learners import PixelLearner
from generators.base import SAMPLE_BATCH

_LEAST = 1e-12  # of a length that is divided by


def modes_of(split, num_classes, count, seed):
    """The centroids of a clustering of each class's pixels, by k-means: signed float [K, count, C, H, W].

    split, a `Split` whose classes have at least `count` images each.
    """
    found, labels = [], split.labels.cpu()
    for label in range(num_classes):
        images = to_signed(take(split.images, torch.nonzero(labels == label)[:, 0]))
        centroids, _ = kmeans(images.flatten(1)[None], count, stream(seed, "modes", label), iterations=30)
        found.append(centroids[0].unflatten(1, images.shape[1:]))
    return torch.stack(found)


def _lengths(images):
    """Euclidean lengths of images [K, ipc, C, H, W]: [K, ipc, 1, 1, 1]."""
    return images.square().sum((2, 3, 4), keepdim=True).sqrt()


class DrawingLearner(PixelLearner):
    """Stored images on their way from noise along the velocity of a flow.

    In every step the flow says where each way ends. That image is moved `pull` of the way to the image's mode as long as the
    time is above `until` (MGD3, arXiv 2505.18963), and against the gradient of the matching term, `steer` times as far as it is
    from where the way stands now (as IGD does, ICLR 2025, but the gradient is that of the predicted image, not of the noisy
    one). Then the way goes on towards it. What is stored is the prediction, and after the last step the image.

    Args: flow, a `FlowGenerator`; steps, of the whole drawing; guidance, classifier-free, None for the flow's own; modes,
    signed float [K, ipc, C, H, W] or None; digest, of the flow's weights, by which a drawing that goes on knows them again; the
    others as `PixelLearner` has them. The noise is that of the flow's own images of this seed.
    """

    def __init__(self, accelerator, spec, pixels, seed, *, flow, steps, guidance=None, modes=None, pull=0.0, until=0.5,
                 steer=0.0, engine=None, digest=None):
        super().__init__(accelerator, spec, pixels, seed, lr=1.0, engine=engine)
        self.flow, self.steps, self.guidance = flow.requires_grad_(False).eval(), steps, guidance
        self.modes, self.pull, self.until, self.steer, self.digest = modes, pull, until, steer, digest
        classes, count = pixels.pixels.shape[:2]
        device = accelerator.device
        self.labels = torch.arange(classes, device=device).repeat_interleave(count)
        noise = counter_normal(seed, self.labels, torch.arange(count, device=device).repeat(classes), flow.dim_noise)
        self.place = flow.lift(noise, self.labels).unflatten(0, (classes, count)).clone()  # where the ways stand

    def begin(self, dataset, method, pool):
        """What happens before the first step of a run: nothing, the noise is drawn."""

    @torch.no_grad()
    def predict(self, time):
        """Where the ways end as the flow sees it at a time between 1 (noise) and 0: [K, ipc, C, H, W]."""
        parts = zip(self.place.flatten(0, 1).split(SAMPLE_BATCH), self.labels.split(SAMPLE_BATCH))
        ends = [x - time * self.flow.step_velocity(x, labels, time, self.steps, self.guidance) for x, labels in parts]
        return torch.cat(ends).view_as(self.place)

    def step(self, step, matching):
        time = 1 - step / self.steps
        end = self.predict(time)
        if self.modes is not None and time > self.until:
            end = end + self.pull * (self.modes - end)
        left = _lengths(self.place - end)
        report = {"left": left.mean()}
        if matching:
            self.parameter.data.copy_(end)
            report["matching"] = self.differentiate(step, matching)
            # Of float16, where the scaled gradient may overflow: that step steers nothing, and the next are scaled less.
            if self.parameter.grad is not None:
                self.scaler.unscale_(self.optimizer)
                self.scaler.update()
                gradient = self.parameter.grad.nan_to_num(0.0, 0.0, 0.0)
                end = end - self.steer * left * gradient / _lengths(gradient).clamp_min(_LEAST)
        self.place = end + (1 - 1 / (self.steps - step)) * (self.place - end)
        self.parameter.data.copy_(end)
        return report

    def state_dict(self):
        return {**super().state_dict(), "place": self.place, "steps": self.steps, "modes": self.modes, "flow": self.digest}

    def load_state_dict(self, state, path):
        super().load_state_dict(state, path)
        if state["steps"] != self.steps:
            raise UserError(f"{path}: this drawing was begun with --steps {state['steps']}, now {self.steps}: give these again")
        if state.get("flow", self.digest) != self.digest:
            raise UserError(f"{path}: this drawing was begun with another flow than --weight holds now: begin it anew with "
                            "--overwrite")
        self.place = state["place"].to(self.place)
        if state.get("modes") is not None:  # clustered again on a GPU they may be others
            self.modes = state["modes"].to(self.place)
