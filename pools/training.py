"""The one loop that trains a classifier, be it a member of the pool or a student of the evaluation, and what reads it out."""

import math

import torch
import torch.nn.functional as F

from gendistil.common.device import send
from gendistil.common.engine import EAGER, batch_norms
from gendistil.common.errors import Diverged
from gendistil.data.augment import cut_mix
from gendistil.data.images import HostImages, standardise, take, to_signed

SCHEDULES = {
    "cosine": lambda epoch, epochs: (1 + math.cos(math.pi * (epoch / epochs))) / 2,
    "step": lambda epoch, epochs: 0.2 ** ((epoch >= 2 * epochs // 3) + (epoch >= 5 * epochs // 6)),
    "half": lambda epoch, epochs: 0.1 ** (epoch > epochs // 2 + 1),
    "fifths": lambda epoch, epochs: 0.5 ** sum(epoch >= part * epochs // 5 for part in range(1, 5)),
    "constant": lambda epoch, epochs: 1.0,
}
"""The learning rate of an epoch (from 0) of so many, as a multiple of its first value. "step" is IDC's and DREAM's; "half" is
that of DC, DSA and DM, whose code also forgets the momentum where the rate falls; "fifths" is NCFM's."""

OPTIMIZERS = {
    "sgd": lambda weights, lr, momentum, decay: torch.optim.SGD(weights, lr, momentum=momentum, weight_decay=decay),
    "adam": lambda weights, lr, momentum, decay: torch.optim.Adam(weights, lr, weight_decay=decay),
    "adamw": lambda weights, lr, momentum, decay: torch.optim.AdamW(weights, lr, weight_decay=decay),
}
"""What takes a classifier's steps. Only SGD has a momentum that can be set."""

_CALIBRATION = 16  # real images of each class
_CHECK_INTERVAL = 50  # steps at least between looks at the loss, each of which makes the host wait for the device


def train_classifier(model, batches, *, epochs, lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="cosine",
                     temperature=1.0, optimizer="sgd", scaler=None, engine=EAGER, on_epoch=None, on_step=None, flag="--lr"):
    """Train `model` in place by cross-entropy, and return the mean loss of the last epoch, a 0-dim tensor.

    Args:
        model: images `[B, C, H, W]` -> logits `[B, K]`; left in train mode. A `SideBySide` takes and gives `[S, B, ...]`, as
            `batches` then yields, and its loss is the sum of theirs.
        batches: `batches(epoch)` yields (standardised and augmented images, targets) on the model's device; targets are labels,
            int64 `[B]`, or soft labels, float `[B, K]`.
        epochs: number of calls of `batches`, at least 1.
        temperature: T, by which logits are divided; the loss is T² times the cross-entropy, whose gradient is as large as at 1.
        schedule: a key of `SCHEDULES`, or a function as they are; the learning rate changes between epochs.
        optimizer: a key of `OPTIMIZERS`, or one that goes on from an earlier call, to which only lr and schedule say anything.
        scaler: of the gradients of float16, one that goes on too, instead of a new one.
        engine: the `Engine` that runs the model.
        on_epoch: called after each epoch with (epochs done, mean loss as a 0-dim tensor).
        on_step: called after each step with the number of steps done.
        flag: what an error calls the learning rate.
    Raises Diverged, a UserError, when the loss is no longer finite.
    """
    if isinstance(optimizer, str):
        optimizer = OPTIMIZERS[optimizer](model.parameters(), lr, momentum, weight_decay)
    scaler = scaler or engine.loss_scaler(next(model.parameters()).device)
    factor = schedule if callable(schedule) else SCHEDULES[schedule]
    step = last_check = 0
    for epoch in range(epochs):
        model.train()
        optimizer.param_groups[0]["lr"] = lr * factor(epoch, epochs)
        total, count = 0, 0
        for images, targets in batches(epoch):
            logits = engine(model, images)  # B,K
            loss = _loss(logits.float() / temperature, targets) * temperature**2
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            seen = logits.shape[-2]  # B
            total, count, step = total + loss.detach() * seen, count + seen, step + 1
            if on_step:
                on_step(step)
        mean = total / count
        if step - last_check >= _CHECK_INTERVAL or epoch == epochs - 1:
            # A loss that is not finite leaves weights that are not finite, so a later look sees it too.
            if not torch.isfinite(mean):
                raise Diverged(f"the loss of a classifier is {mean.item()} after {step} steps: lower its {flag}, now {lr:g}")
            last_check = step
        if on_epoch:
            on_epoch(epoch + 1, mean)
    return mean


def _loss(logits, targets):
    """Cross-entropy for logits [B, K], or the sum of several networks' for [S, B, K]."""
    networks = logits.shape[:-2].numel()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(0, logits.dim() - 2)) * networks


def epoch_batches(images, targets, spec, augment, batch_size, generator, cutmix=0.0):
    """Yield one epoch of what `train_classifier` takes, in an order drawn from `generator`, every image once.

    Args: images, uint8 `[N, C, H, W]`, a tensor or `HostImages`; targets, int64 `[N]` or float `[N, K]`; the others as in
    `prepare_batch`.
    """
    drawn = torch.randperm(len(targets), generator=generator, device=generator.device)
    order = send(drawn, targets.device)
    pieces = split_batches(order, batch_size)
    places = split_batches(drawn, batch_size) if isinstance(images, HostImages) else pieces  # the host's own need no waiting
    for rows, place in zip(pieces, places):
        yield prepare_batch(images[place], targets[rows], spec, augment, generator, cutmix)


def prepare_batch(images, targets, spec, augment, generator, cutmix=0.0):
    """A stored batch as a classifier is trained on it: (standardised and augmented images, targets).

    Args: images, uint8 `[B, C, H, W]`; targets, int64 `[B]` or float `[B, K]`; augment, an `Augment` or None; generator, of
    all draws; cutmix, the probability that the batch is mixed by `cut_mix`, which makes its targets soft.
    """
    batch = standardise(to_signed(images), spec)  # B,C,H,W
    if augment:
        batch = augment(batch, generator)
    if cutmix:
        batch, targets = cut_mix(batch, targets, spec.num_classes, cutmix, generator)
    return batch, targets


def split_batches(order, batch_size):
    """Cut a tensor into pieces of `batch_size`, of which the last may be short.

    A last piece of one element joins the piece before it: batch norm cannot be trained on a single image.
    """
    pieces = list(order.split(batch_size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def count_batches(images, batch_size):
    """How many pieces `split_batches` cuts so many images into; one for none."""
    whole, rest = divmod(images, batch_size)
    return max(1, whole + (rest > 1 or (rest == 1 and not whole)))


def answers(model, images, engine=EAGER):
    """What `model` answers to standardised images [B, C, H, W]: logits, float32 [B, K].

    Its last layer works in float32 whatever the engine's precision: in bfloat16 two classes score the same in a few of a
    thousand images, and the first would win.
    """
    seen = engine(model, images, view="embed").float()
    with torch.autocast(seen.device.type, enabled=False):
        return model.classifier(seen)


@torch.no_grad()
def calibrated(model, real, spec, generator):
    """`model`, whose batch norms have not seen an image, with their statistics of one batch of `real` images, a `Split`.

    The images are the next draws of `generator`. A network without batch norms stays as it is.
    """
    if norms := batch_norms(model):
        rows = torch.randint(len(real), (_CALIBRATION * spec.num_classes,), generator=generator)
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0  # nothing but this batch
        model.train()(standardise(to_signed(take(real.images, rows)), spec))
        for norm, momentum in zip(norms, usual):
            norm.momentum = momentum
    return model


def accuracy(model, images, labels, spec, batch_size=512, engine=EAGER):
    """Percentage of `images` (uint8 `[N, C, H, W]`) that `model` classifies as `labels`, in eval mode: a 0-dim tensor.

    The model's own mode is restored.
    """
    logits = _outputs(model, images, spec, batch_size, lambda batch: answers(model, batch, engine))  # N,K
    return (logits.argmax(1) == labels).float().mean() * 100


def embed_images(model, images, spec, batch_size=512, engine=EAGER, rows=None):
    """Embeddings of `images` (uint8 `[N, C, H, W]`) by `model` in eval mode: float32 `[N, D]`, without gradient.

    With `rows`, int64 `[n]` on the host, those of these images alone, of which only a batch is taken at a time.

    The model's own mode is restored.
    """
    return _outputs(model, images, spec, batch_size, lambda batch: engine(model, batch, view="embed").float(), rows)


@torch.no_grad()
def _outputs(model, images, spec, batch_size, look, rows=None):
    """What the function `look` makes of each standardised batch, while the model is in eval mode, as one tensor."""
    everything = torch.arange(len(images)) if rows is None else rows
    batches = (take(images, part) for part in split_batches(everything, batch_size))  # a single image alone rounds otherwise
    training = model.training
    model.eval()
    outputs = [look(standardise(to_signed(batch), spec)) for batch in batches]
    model.train(training)
    return torch.cat(outputs)
