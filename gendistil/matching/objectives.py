"""Objectives: what a classifier must see alike in real and synthetic images.

Each is called as `objective(eyes, real, fake, labels, **options)` with standardised images real, fake [k, n, C, H, W], n of
each of k classes, and labels int64 [k], and returns a 0-dim loss. Only `fake` carries a gradient. `eyes` is a classifier seen
through `Eyes`: it runs in the run's precision, and what it returns is float32, as is all arithmetic on that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gendistil.common.device import process_mean, send, twice_differentiable
from gendistil.common.engine import EAGER, has_batch_norm, norms_in_float32
from gendistil.common.errors import UserError
from gendistil.common.flags import markdown_table
from gendistil.matching.unroll import WithGradients

_ENOUGH = 512  # real embeddings of a class that tell how far apart they are
_PIECE = 256  # real images that a network sees at once where no gradient is asked for
_TAUGHT_PIECE = 1024  # and where one is


class Eyes:
    """A classifier that an `Engine` runs, and whose outputs are float32."""

    def __init__(self, classifier, engine=EAGER):
        self.classifier, self.engine = classifier, engine

    def logits(self, images):
        """Standardised images [B, C, H, W] -> float32 [B, K]."""
        return self.engine(self.classifier, images).float()

    def embed(self, images):
        """Standardised images [B, C, H, W] -> float32 [B, D]."""
        return self.engine(self.classifier, images, view="embed").float()

    def features(self, images):
        """Standardised images [B, C, H, W] -> the maps from first to last, each float32."""
        return [maps.float() for maps in self.engine(self.classifier, images, view="features")]

    def classify(self, embeddings):
        """What the classifier's last layer answers to embeddings [B, D]: float32 [B, K]."""
        with self.engine.autocast():
            return self.classifier.classifier(embeddings).float()

    def gradients(self, images, labels):
        """See `gradients`."""
        return gradients(self.classifier, images, labels, self.engine)


def log_probabilities(real, fake):
    """Mean squared difference of log-softmax, image by image: real, fake [..., K] (DiM, eq. 5; its code weights it by 0.01)."""
    return (F.log_softmax(real, -1) - F.log_softmax(fake, -1)).square().mean()


def moments(real, fake):
    """Difference of per-class mean and standard deviation, in units of the real images' spread: real, fake [k, n, D]."""
    spread = process_mean(real.var(dim=1, correction=0).mean(dim=0)) + 1e-6  # [D], of a class around its own mean
    means = (real.mean(1) - fake.mean(1)).square() / spread
    deviations = (_deviation(real) - _deviation(fake)).square() / spread
    return (means + deviations).mean()


def _deviation(x):
    return (x.var(dim=1, correction=0) + 1e-6).sqrt()


def class_means(real, fake):
    """Squared distance of the class means, summed over features: real, fake [k, n, D] (DM, arXiv 2110.04181, eq. 5)."""
    return (real.mean(1) - fake.mean(1)).square().sum(-1).mean()


def energy(real, fake):
    """Energy distance of each class's two samples, relative to the real sample's own spread: real, fake [k, n, D].

    2 E|x-y| - E|x-x'| - E|y-y'| (Székely and Rizzo, 2013), which is zero only where the distributions agree.
    """
    spread = _mean_distance(real[:, :_ENOUGH])
    return ((2 * torch.cdist(real, fake).mean((1, 2)) - spread - _mean_distance(fake)) / spread).mean()


def characteristic(real, fake, generator, count=1024):
    """Distance of each class's two characteristic functions at `count` frequencies: real, fake [k, n, D].

    The root of half the squared differences of amplitude and of phase, averaged (NCFM, arXiv 2502.20653, default weights).
    Frequencies are drawn from `generator`, normal, in units of the real samples' spread around their class mean.
    """
    centre = real.mean(1, keepdim=True)
    spread = process_mean(real.var(dim=1, correction=0).sum(-1).mean()).sqrt() + 1e-6  # of whole vectors
    frequencies = send(torch.randn(count, real.shape[-1], generator=generator), real.device) / spread
    angles = ((x - centre) @ frequencies.T for x in (real, fake))
    target, seen = (torch.stack([x.cos().mean(1), x.sin().mean(1)]) for x in angles)  # 2,k,F
    length, seen_length = target.square().sum(0).sqrt(), (seen.square().sum(0) + 1e-12).sqrt()
    phase = 2 * (length * seen_length - (target * seen).sum(0)).clamp_min(0)
    return (((length - seen_length).square() + phase) / 2 + 1e-12).sqrt().mean()


def _mean_distance(x):
    """Mean distance between different rows of x [k, n, D]: [k], 0 of a single one. Rows that are equal have no gradient."""
    count = x.shape[1]
    if count == 1:
        return x.new_zeros(len(x))
    norms = x.square().sum(-1)
    squares = norms.unsqueeze(2) + norms.unsqueeze(1) - 2 * x @ x.transpose(1, 2)
    # The diagonal is rounding, whose root would outweigh that of everything else.
    squares = squares.masked_fill(torch.eye(count, dtype=torch.bool, device=x.device), 1).clamp_min(1e-8)
    return (squares.sqrt().sum((1, 2)) - count) / (count * (count - 1))


def _cosine(x, y):
    """1 - cosine of each row, summed; every element of a 1-d tensor is a row of its own (IDC)."""
    x, y = (rows.reshape(len(rows), -1) for rows in (x, y))
    return (1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1) + 1e-6)).sum()


@dataclass(frozen=True)
class Metric:
    """A distance of two gradients of a layer, `distance(x, y)`, tensors of one shape, and whether it looks at `every_layer`:
    else biases, norms and the last layer are left out."""

    distance: Callable
    every_layer: bool = False


METRICS = {
    "l1": Metric(lambda x, y: (x - y).abs().sum()),
    "mse": Metric(lambda x, y: (x - y).square().sum()),
    "cos": Metric(_cosine),
    # Per output neuron, and nothing for 1-d tensors (DC, ICLR 2021, appendix A).
    "dc": Metric(lambda x, y: (x - y).sum() * 0 if x.dim() == 1 else _cosine(x, y), every_layer=True),
    "l1_mean": Metric(lambda x, y: (x - y).abs().reshape(len(x), -1).mean(-1).sum()),
}
"""Distances as the published codes of gradient matching take them, by the names that --metric knows."""

_HALF_SCALE = 256  # of a loss whose gradient is taken in float16, where the small entries of a batch's mean would become 0


def gradients(classifier, images, labels, engine=EAGER):
    """The classifier's gradient of the mean cross-entropy, per class: a list of [k, *parameter], images [k, n, C, H, W].

    Differentiable where `images` require a gradient, and then made of all classes side by side. Otherwise each class is a
    batch by itself: real images are many, and side by side they need k times the memory and, on a CPU, twice the time.
    """
    parameters = {name: value.detach() for name, value in classifier.named_parameters()}
    scale = _HALF_SCALE if engine.precision == "fp16" else 1

    if images.requires_grad:  # not compiled, which takes as long: its own gradient is taken
        def loss(parameters, batch, label):
            with engine.autocast(), twice_differentiable():
                return scale * _class_loss(classifier, parameters, batch, label)

        hooks = norms_in_float32(classifier)
        try:
            found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels).values()
        finally:
            for hook in hooks:
                hook.remove()
        return [value / scale for value in found] if scale != 1 else list(found)
    with torch.enable_grad():
        for value in parameters.values():
            value.requires_grad_()
        each = [torch.autograd.grad(scale * engine.run(_class_loss, classifier, parameters, *pair), parameters.values())
                for pair in zip(images, labels)]
    found = [torch.stack(same) for same in zip(*each)]
    return [value / scale for value in found] if scale != 1 else found


def _class_loss(classifier, parameters, images, label):
    """The mean cross-entropy of images [n, C, H, W] of one class, with these `parameters`."""
    logits = functional_call(classifier, parameters, (images,))
    return F.cross_entropy(logits.float(), label.expand(len(images)))


def gradient_distance(real, fake, metric):
    """Sum of the distances of layers that a metric, by its name, looks at, of two lists of tensors, one for each parameter."""
    row = METRICS[metric]
    return sum(row.distance(x, y) for x, y in zip(real, fake) if row.every_layer or x.dim() > 2)


def _match_logit(eyes, real, fake, labels):
    return log_probabilities(*_see(eyes.logits, real[:, : fake.shape[1]], fake))


def _match_embeddings(criterion):
    def objective(eyes, real, fake, labels, paired=None, paired_weight=0.0, calibrate=0.0, **draws):
        target, seen = _see(eyes.embed, real, fake)
        loss = criterion(target, seen, **draws)
        if calibrate:
            logits = eyes.classify(seen.flatten(0, 1))
            loss = loss + calibrate * F.cross_entropy(logits, labels.repeat_interleave(seen.shape[1]))
        if paired is not None:
            loss = loss + paired_weight * (_see_real(eyes.embed, paired) - seen).square().sum(-1).mean()
        return loss

    return objective


def relative(real, fake):
    """Squared distance of each pair as a fraction of the real one's squared length, averaged: real, fake [k, n, ...]."""
    axes = tuple(range(2, real.dim()))
    return ((real - fake).square().mean(axes) / (real.square().mean(axes) + 1e-6)).mean()


def _match_paired(eyes, real, fake, labels):
    """Pixels and embeddings of images with those of the real images that they are paired with: GAN inversion."""
    return relative(real, fake) + relative(*_see(eyes.embed, real, fake))


def _see(view, real, fake):
    """`view` of both batches: [k, n, ...] each, the real one without a graph."""
    return _see_real(view, real), view(fake.flatten(0, 1)).unflatten(0, fake.shape[:2])


@torch.no_grad()
def _see_real(view, real):
    """`view` of real images [k, n, C, H, W] in pieces, of which each uses the memory of the one before: [k, n, ...].

    What the network has seen already, [k, n, D], is what is returned.
    """
    if real.dim() == 3:
        return real
    return torch.cat([view(piece) for piece in real.flatten(0, 1).split(_PIECE)]).unflatten(0, real.shape[:2])


def _match_feature(eyes, real, fake, labels):
    """Class means of every block's activations, l1, summed (IDC's feature matching, per class)."""
    with torch.no_grad():
        targets = [x.unflatten(0, real.shape[:2]).mean(1) for x in eyes.features(real.flatten(0, 1))]
    seen = [x.unflatten(0, fake.shape[:2]).mean(1) for x in eyes.features(fake.flatten(0, 1))]
    return sum((x - y).abs().sum() for x, y in zip(targets, seen)) / len(real)


def _match_gradient(eyes, real, fake, labels, metric="l1", mean_weight=0.0):
    target, seen = eyes.gradients(real, labels), eyes.gradients(fake, labels)
    per_class = vmap(lambda x, y: gradient_distance(x, y, metric))(target, seen)
    if mean_weight:  # DREAM+, arXiv 2310.15052
        target, seen = (embeddings.mean(1, keepdim=True) for embeddings in _see(eyes.embed, real, fake))  # k,1,D
        per_class = per_class + mean_weight * vmap(METRICS[metric].distance)(target, seen)
    return per_class.mean()


def trajectory(reference, weights):
    """Squared distance of a trained network's weights from an expert's, as a share of the start's (MTT, arXiv 2203.11932)."""
    left, whole = (sum((x - y).square().sum() for x, y in zip(each, reference.target)) for each in (weights, reference.start))
    return left / whole


def outcome(reference, weights):
    """Cross-entropy of a trained network on real images ("Dataset Distillation", arXiv 1811.10959).

    They are many, and seen in pieces, of which each uses the memory of the one before.
    """
    value, gradients = 0, [torch.zeros_like(x) for x in weights]
    for images, labels in zip(reference.real.split(_TAUGHT_PIECE), reference.labels.split(_TAUGHT_PIECE)):
        loss = F.cross_entropy(reference.logits(weights, images), labels, reduction="sum") / len(reference.real)
        torch._foreach_add_(gradients, torch.autograd.grad(loss, weights, materialize_grads=True))
        value = value + loss.detach()
    return WithGradients.apply(value, gradients, *weights)


@dataclass(frozen=True)
class Objective:
    """A row of the table.

    function: what is called, see above. weight: of the term beside a generator's own loss, unless a flag says otherwise.
    source: what has to agree, and where that was published.
    options: the fields of a `Method` that it depends on, which the function takes as keywords; `calibrate` is among those of
    one that compares embeddings. An objective per training lists `TRAINING_OPTIONS`, with an expert `EXPERT_OPTIONS` too, and
    perhaps "window", and takes none of them as keywords.
    per: "class", the function gives the mean over the classes that it is shown, and a step may show them in parts; "set", it is
    shown the classes of a whole step at once and gives one number for all of them; "training", it is called as
    `function(reference, weights)` with a `Reference` of `matching.trained` and the weights that training on the synthetic
    images of all classes leads to. expert: whether the reference has the later weights of an expert, and no real images.
    paired: for latents, each of which is paired with one real image: "beside", the function also takes those images as
    `paired` [k, n, C, H, W], where the option paired_weight is above 0; "real", they are its real images; None, it has no use
    for them.
    draws: whether the function also takes a `generator`, of the step's random draws. pairwise: whether it compares image by
    image, so that there must be as many of both. spreads: "class", its unit is the spread of the real images of each class
    by itself, which has to have two; "all", that of all classes which are compared together. suits: called as
    `suits(method, classifier, images)`, raises UserError for a classifier by which it cannot compare; None, any will do.
    """

    function: Callable
    weight: float
    source: str
    options: tuple = ()
    per: str = "class"
    paired: str | None = None
    draws: bool = False
    expert: bool = False
    pairwise: bool = False
    spreads: str | None = None
    suits: Callable | None = None

    @property
    def embeds(self):
        """Whether it compares embeddings, so that `real` may be those, [k, n, D]."""
        return "calibrate" in self.options


def _has_convolutions(method, classifier, images):
    if not METRICS[method.metric].every_layer and all(x.dim() < 3 for x in classifier.parameters()):
        raise UserError("it has no convolutions, of whose gradients alone this --metric is: give --metric dc")


def _has_no_batch_norms(method, classifier, images):
    if has_batch_norm(classifier):
        raise UserError("it has batch norms, whose statistics do not follow a training on synthetic images as an expert's did: "
                        "choose another norm, as in convnet or resnet18:norm=instance")


TRAINING_OPTIONS = ("unroll", "unroll_batch", "unroll_optimizer", "unroll_momentum", "unroll_order", "step_size",
                    "step_size_lr", "label_lr", "clip")
"""What the options of every objective per training begin with: the training is done by them."""
EXPERT_OPTIONS = ("expert_epochs", "min_start", "max_start", "first_max_start", "start_grows", "skip_above")
"""What those of one that asks for an expert have besides."""


def _embeddings(criterion, source, **facts):
    return Objective(_match_embeddings(criterion), 1.0, source, options=("paired_weight", "calibrate"), paired="beside",
                     **facts)


OBJECTIVES = {
    "logit": Objective(_match_logit, 0.01, "log-probabilities, image by image (DiM)", pairwise=True),
    "feature": Objective(_match_feature, 0.001, "mean maps of every layer of a class (DiM, IDC)",
                         suits=lambda method, classifier, images: classifier.features(images)),
    "grad": Objective(_match_gradient, 0.001, "gradients of a class's loss (DC, DSA, IDC, DREAM, DiM)",
                      options=("metric", "mean_weight"), suits=_has_convolutions),
    "mean": _embeddings(class_means, "mean embeddings of a class (DM)"),
    "moments": _embeddings(moments, "means and standard deviations of a class's embeddings", spreads="all"),
    "energy": _embeddings(energy, "distributions of a class's embeddings, by their energy distance (Székely and Rizzo, 2013)",
                          spreads="class"),
    "cf": _embeddings(characteristic, "distributions of a class's embeddings, by their characteristic functions (NCFM)",
                      draws=True, spreads="all"),
    "trajectory": Objective(trajectory, 1.0, "weights that a training leads to, with an expert's (MTT, DATM)",
                            options=TRAINING_OPTIONS + EXPERT_OPTIONS, per="training", expert=True, suits=_has_no_batch_norms),
    "outcome": Objective(outcome, 1.0, "answers to real images after a training (Dataset Distillation, RaT-BPTT)",
                         options=(*TRAINING_OPTIONS, "window"), per="training"),
    "paired": Objective(_match_paired, 1.0, "pixels and embeddings, each latent's with those of its real image (GAN inversion)",
                        paired="real"),
}
"""Every objective by the name that --match knows."""


def table():
    """The table as markdown: one line per objective."""
    per = {"class": "each class by itself", "set": "all classes together", "training": "a training on all images"}
    return markdown_table(["`--match`", "what must agree", "weight beside a generator's own loss", "compares"], [
        [name, row.source, f"{row.weight:g}", per[row.per]] for name, row in OBJECTIVES.items()])
