"""Seconds of one step of every kind: ours, compiled or not, beside the published code's, as JSON.

    python benchmarks/step_time.py --published DIM DATASETCONDENSATION DREAM > benchmarks/results/step_time.json

The checkouts are of vimar-gu/DiM, VICO-UoE/DatasetCondensation and lyq312318224/DREAM (which needs fast-pytorch-kmeans).
Every contestant is a process of its own, so that no setting of one reaches another, and they step in turn, so that whatever
else the machine does falls on all of them alike. The published code runs as it is, on random images that are in memory
already; where there is no GPU, on the CPU.
"""

import contextlib
import importlib
import itertools
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contestants import Contestant
from gendistil.common import device as hardware
from gendistil.common.cli import COUNT, PRECISIONS, Parser, run_script
from gendistil.common.device import device_name
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.data import Dataset, Spec, Split, standardise, to_signed
from gendistil.matching import METHODS, SELECTORS, GeneratorLearner, LatentLearner, Matcher, PixelLearner, initial
from gendistil.sources import PixelSet
from generators import GAN, NETWORKS, RECIPES
from pools import RandomPool, build_classifier, embed_images, train_classifier

CHECKOUTS = {"gan_model.py": ("gen_condense", "pool_match"), "main_DM.py": ("dm", "dsa"), "new_strategy.py": ("dream",)}
"""The file by which a checkout is known, and the steps that it is timed for."""
BATCHES = {"student": 64, "embedding": 512, "generator": 64, "gen_condense": 128, "pool_match": 64, "dm": 256, "dsa": 256,
           "dream": 128, "inversion": 100}
"""Images of a step, from dm on of each class, as published where it is: dream is the selection of a batch, generator a step
of stage 1 by the default recipe."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLASSES, CHANNELS, SIZE = 10, 3, 32
IPC = 10
PER_CLASS = 5000  # images that DREAM selects from


def make_dataset(per_class):
    """`per_class` images of every class: smooth noise, so that their embeddings cluster."""
    spec = Spec("random", tuple(map(str, range(CLASSES))), CHANNELS, SIZE, (0.5,) * CHANNELS, (0.25,) * CHANNELS, True)
    coarse = torch.rand(per_class * CLASSES, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(0))
    images = (torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear") * 255).to(torch.uint8)
    real = Split(images, torch.arange(CLASSES).repeat_interleave(per_class))
    return Dataset(spec, real, real, real)


def make_network(generator=None):
    """A frozen ConvNet as the published code uses it; what it has learned changes no second of a step."""
    return build_classifier("convnet", CHANNELS, SIZE, CLASSES, generator=generator).eval().requires_grad_(False)


def ours(stage, batch_size, precision="fp32", compiled=False, width=None, per_class=PER_CLASS, candidates=PER_CLASS,
         classes=CLASSES):
    """A function `step(number)` that takes one step of `stage`; `width` None is the recipe's own.

    What it returns is None, or a function to call once the clock has stopped, for a dict of what else to report.
    """
    engine = Engine(hardware.make_accelerator(precision))
    engine.choose("on" if compiled else "off")
    device = engine.accelerator.device
    if stage == "peak":
        return peak(engine, batch_size)
    if stage in ("student", "embedding"):
        return ours_looking(stage, engine, batch_size)
    if stage == "dream":
        return ours_selecting(make_dataset(per_class).to(device), engine, batch_size, candidates)
    dataset = make_dataset(max(batch_size, IPC)).to(device)
    if stage == "inversion":
        return ours_inverting(engine, dataset, classes, batch_size, width)
    if stage in ("dm", "dsa"):
        return ours_learning_pixels(METHODS[stage], engine, dataset, batch_size)
    recipe = RECIPES["pyramid" if stage == "generator" else "dim"]
    return ours_training(stage, engine, dataset, replace(recipe, batch_size=batch_size, width=width or recipe.width))


def peak(engine, batch_size):
    """A matrix product and a convolution that are large enough to show what the device can do."""
    device = engine.accelerator.device
    images, kernels = torch.randn(batch_size, 128, 16, 16, device=device), torch.randn(128, 128, 3, 3, device=device)
    matrix = torch.randn(2048, 2048, device=device)
    with engine.autocast():
        one = torch.ones(1, 1, device=device)
        dtype = (one @ one).dtype  # the precision of the run
    images, kernels, matrix = (x.to(dtype) for x in (images, kernels, matrix))
    images = images.contiguous(memory_format=torch.channels_last)

    def step(number):
        seconds = []
        for work in (lambda: F.conv2d(images, kernels, padding=1), lambda: matrix @ matrix):
            start = time.perf_counter()
            work()
            hardware.synchronise(device)
            seconds.append(time.perf_counter() - start)
        convolution, product = 2 * 9 * 128 * images.numel() / seconds[0], 2 * 2048**3 / seconds[1]
        return lambda: {"convolution_gflops": convolution / 1e9, "product_gflops": product / 1e9}

    return step


def ours_looking(stage, engine, batch_size):
    """A student's step, without augmentation, or an embedding without a gradient."""
    device = engine.accelerator.device
    model = build_classifier("convnet", CHANNELS, SIZE, CLASSES).to(device)
    images = torch.randn(batch_size, CHANNELS, SIZE, SIZE, device=device)
    labels = torch.arange(batch_size, device=device) % CLASSES

    def train(number):
        train_classifier(model, lambda epoch: [(images, labels)], epochs=1, engine=engine)

    @torch.no_grad()
    def embed(number):
        engine(model.eval(), images, view="embed")

    work, compiled = train if stage == "student" else embed, engine.compiled
    engine.choose("off")
    with FlopCounterMode(display=False) as counter:
        work(0)
    engine.choose("on" if compiled else "off")

    def step(number):
        work(number)
        return lambda: {"gflop": counter.get_total_flops() / 1e9}

    return step


def ours_training(stage, engine, dataset, recipe):
    accelerator = engine.accelerator
    learner, matching = GeneratorLearner(GAN(accelerator, dataset.spec, recipe, seed=0, engine=engine), dataset), None
    if stage == "pool_match":
        member = make_network().to(accelerator.device)
        pool = SimpleNamespace(prepare=lambda step, learner: None, draw=lambda generator: member)
        method = replace(METHODS["dim"], match_classes=2, match_batch=recipe.batch_size // 2)
        matching = Matcher(learner, dataset, method).begin(pool)

    def step(number):
        learner.step(number, matching)

    return step


def ours_learning_pixels(method, engine, dataset, batch_size):
    spec, accelerator = dataset.spec, engine.accelerator
    pixels = PixelSet(spec.size, spec.channels, spec.num_classes, IPC).to(accelerator.device)
    pool = RandomPool(dataset, engine=engine)
    initial.start(pixels, dataset, "real", 0, pool)
    learner = PixelLearner(accelerator, spec, pixels, 0, lr=method.lr, engine=engine)
    matching = Matcher(learner, dataset, replace(method, match_batch=batch_size)).begin(pool)

    def step(number):
        learner.step(number, matching)

    return step


def ours_inverting(engine, dataset, classes, batch_size, width):
    """One step of GAN inversion by the default recipe's generator, on `batch_size` images of each of `classes`."""
    method, spec, recipe, accelerator = METHODS["inversion"], dataset.spec, RECIPES["pyramid"], engine.accelerator
    generator = NETWORKS[recipe.generator][0](spec.size, spec.channels, spec.num_classes, recipe.dim_noise,
                                              width or recipe.width).to(accelerator.device)
    latents, partners = initial.latents(generator, dataset, batch_size, "noise", 0)
    learner = LatentLearner(accelerator, spec, latents, 0, real=dataset.train, partners=partners, lr=method.lr,
                            batch=batch_size, chunk_steps=method.chunk_steps, engine=engine)
    method = replace(method, match_classes=classes, match_batch=batch_size)
    matching = Matcher(learner, dataset, method).begin(RandomPool(dataset))

    def step(number):
        learner.step(number, matching)
        return lambda: {"images": classes * batch_size}

    return step


def ours_selecting(dataset, engine, batch_size, candidates):
    network = make_network(torch.Generator().manual_seed(0)).to(dataset.train.images.device)
    pool = RandomPool(dataset, engine=engine)
    pool.draw = lambda generator: network
    selector = SELECTORS["dream"](dataset.train, CLASSES, batch_size, 0, interval=1, candidates=candidates)
    selector.pool = pool

    def step(number):
        rows = selector.indices(list(range(CLASSES)), number)
        return lambda: {"inertia": inertia(network, dataset, rows)}

    return step


def inertia(network, dataset, rows):
    """Mean squared distance of all embeddings of a class to that of the nearest selected image, whose `rows` are [K, n]."""
    points = embed_images(network, dataset.train.images, dataset.spec).unflatten(0, (CLASSES, -1))
    first = torch.arange(CLASSES)[:, None] * points.shape[1]
    chosen = points.gather(1, (rows.cpu() - first).to(points.device)[..., None].expand(-1, -1, points.shape[-1]))
    return float(torch.cdist(points, chosen).min(-1).values.square().mean())


def published(stage, batch_size, checkout):
    """`step(number)` as `ours` gives it, by the code of `checkout`."""
    sys.path.insert(0, str(checkout))
    torch.backends.cudnn.deterministic = True  # as its scripts do
    if stage == "dream":
        return published_selecting(make_dataset(PER_CLASS), batch_size)
    if stage in ("dm", "dsa"):
        return published_learning_pixels(stage, batch_size)
    return published_training(stage, batch_size)


def published_learning_pixels(stage, batch_size):
    """The step of main_DM.py or, gradient matching alone, of main.py, class by class, by the functions of that repository."""
    utils = importlib.import_module("utils")
    settings = {"strategy": METHODS[stage].aug_type, "param": utils.ParamDiffAug()}
    distance = SimpleNamespace(device=DEVICE, dis_metric="ours")
    criterion = torch.nn.CrossEntropyLoss()
    real = torch.randn(CLASSES, batch_size, CHANNELS, SIZE, SIZE, device=DEVICE)
    made = torch.randn(CLASSES, IPC, CHANNELS, SIZE, SIZE, device=DEVICE, requires_grad=True)
    optimiser = torch.optim.SGD([made], 0.1, momentum=0.5)

    def means(network, x, y, label):
        return (network.embed(x).detach().mean(0) - network.embed(y).mean(0)).square().sum()

    def gradients(network, x, y, label):
        theirs = torch.autograd.grad(criterion(network(x), label.expand(len(x))), network.parameters())
        own = torch.autograd.grad(criterion(network(y), label.expand(len(y))), network.parameters(), create_graph=True)
        return utils.match_loss(own, theirs, distance)

    compare_class = means if stage == "dm" else gradients

    def step(number):
        network = utils.get_network("ConvNet", CHANNELS, CLASSES, (SIZE, SIZE)).to(DEVICE).train()
        network.requires_grad_(stage == "dsa")
        loss = 0
        for label in range(CLASSES):
            x, y = (utils.DiffAugment(images[label], seed=number, **settings) for images in (real, made))
            loss = loss + compare_class(network, x, y, torch.tensor(label, device=DEVICE))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def published_selecting(dataset, batch_size):
    """DREAM's query of a batch of every class; the network is ours, which is the same function."""
    strategy = importlib.import_module("new_strategy")
    network = make_network(torch.Generator().manual_seed(0)).to(DEVICE)
    if DEVICE.type == "cpu":
        strategy.torch.arange = lambda *bounds, make=torch.arange, **unused: make(*bounds)  # it asks for "cuda"
    images = standardise(to_signed(dataset.train.images), dataset.spec).to(DEVICE)

    def step(number):
        rows = [strategy.NEW_Strategy(of_class, network).query(batch_size) for of_class in images.chunk(CLASSES)]
        first = torch.arange(CLASSES)[:, None] * (len(images) // CLASSES)
        return lambda: {"inertia": inertia(network, dataset, torch.stack(rows).cpu() + first)}

    return step


class _OneStep:
    """The loader of one step: a single batch, and in loops inside that step the same one for as long as it is asked for."""

    def __init__(self, batch):
        self.batch, self.entered = batch, False

    def __iter__(self):
        inside, self.entered = self.entered, True
        return itertools.repeat(self.batch) if inside else iter([self.batch])


def published_training(stage, batch_size):
    """One batch through the `train` of the script `stage` of DiM's code.

    Its own defaults, logit matching with siamese augmentation, and a ConvNet where it would draw a classifier.
    """
    script = importlib.import_module(stage)
    if not torch.cuda.is_available():
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self
        script.Normalize = lambda mean, std, device, make=script.Normalize: make(mean, std)  # on the CPU
    if stage == "pool_match":
        script.define_model = lambda args, classes, make=script.define_model: make(args, classes, "convnet")
    args = SimpleNamespace(
        data="cifar10", num_classes=CLASSES, dim_noise=100, batch_size=batch_size, print_freq=50, eval_lr=0.01, momentum=0.9,
        weight_decay=5e-4, epochs_match_train=16, match="logit", match_aug=True, aug_type="color_crop_cutout", mixup_net="cut")
    players = script.Generator(args).to(DEVICE), script.Discriminator(args).to(DEVICE)
    optimisers = [torch.optim.Adam(player.parameters(), lr=1e-4, betas=(0.0, 0.9)) for player in players]
    augmentations = script.diffaug(args)
    batch = torch.rand(batch_size, CHANNELS, SIZE, SIZE) * 2 - 1, torch.randint(CLASSES, (batch_size,))

    def step(number):
        script.train(args, number, *players, *optimisers, _OneStep(batch), torch.nn.CrossEntropyLoss(), *augmentations)

    return step


def compare(stage, precision="fp32", repeats=3, checkout=None, batch_size=None, **options):
    """Seconds of each contestant's steps, their medians, and how many times as long the published code takes as each."""
    batch_size = batch_size or BATCHES[stage]
    mine = {"stage": stage, "batch_size": batch_size, "precision": precision, "compiled": True, **options}
    line_up = {"published": (published, {"stage": stage, "batch_size": batch_size, "checkout": checkout})} if checkout else {}
    line_up["ours"] = (ours, mine)
    line_up["ours, not compiled"] = (ours, {**mine, "compiled": False})
    if precision != "fp32":
        line_up["ours, fp32"] = (ours, {**mine, "precision": "fp32"})
    if stage in ("student", "embedding"):
        line_up["peak"] = (ours, {**mine, "stage": "peak"})
    if stage == "inversion":
        line_up["one image at a time"] = (ours, {**mine, "batch_size": 1, "classes": 1})
    if stage == "dream":
        line_up["ours, a fifth of the images"] = (ours, {**mine, "candidates": 1000})

    with contextlib.ExitStack() as stack:
        contestants = [stack.enter_context(contextlib.closing(Contestant(name, *what))) for name, what in line_up.items()]
        for _ in range(repeats):
            for contestant in contestants:
                contestant.time_step()
    seconds = {contestant.name: contestant.seconds for contestant in contestants}
    ratios = {name: [theirs / own for theirs, own in zip(seconds["published"], values)]  # of the same turn
              for name, values in seconds.items() if checkout and name != "published"}
    return {"batch_size": batch_size, "seconds": seconds,
            "reports": {contestant.name: contestant.reports for contestant in contestants},
            "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "published_over": {name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
                               for name, values in ratios.items()}}


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--published", type=Path, nargs="+", default=[], metavar="PATH", help="checkouts to time beside ours")
    parser.add_argument("--stages", nargs="+", choices=BATCHES, default=list(BATCHES), help="steps to time")
    parser.add_argument("--repeats", type=COUNT, default=3, help="timed steps of each contestant")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="arithmetic of our networks")
    args = parser.parse_args()
    checkouts = {}
    for path in args.published:
        known = [stages for name, stages in CHECKOUTS.items() if (path / name).exists()]
        if not known:
            raise UserError(f"--published {path} holds none of {', '.join(CHECKOUTS)}: give a checkout of the published code")
        checkouts.update(dict.fromkeys(known[0], path))
    precision = hardware.make_accelerator(args.precision).mixed_precision.replace("no", "fp32")
    stages = {stage: compare(stage, precision, args.repeats, checkouts.get(stage)) for stage in args.stages}
    print(json.dumps({"device": device_name(DEVICE), "torch": torch.__version__, "precision": precision, **stages}, indent=1))


if __name__ == "__main__":
    run_script(main)
