"""Seconds of one training step at the published network, ours beside the published code's (vimar-gu/DiM), as JSON.

    python benchmarks/step_time.py --published CHECKOUT > step_time.json

Every contestant is a process of its own, so that no setting of one reaches another, and they step in turn, so that whatever
else the machine does falls on all of them alike. The published code runs as it is, on random images that are in memory
already; where there is no GPU, its `.cuda()` does nothing.
"""

import argparse
import importlib
import itertools
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import common.device
from common.cli import COUNT, PRECISIONS, Parser, run_script
from common.errors import UserError
from common.rng import Shuffle

BATCHES = {"gen_condense": 128, "pool_match": 64}
"""Images of a step of each script, as published."""
CLASSES, CHANNELS, SIZE = 10, 3, 32


def ours(stage, recipe, precision, batch_size, width=None, keep_memory=True):
    """A function `step(number)` that takes one training step of `stage`; `width` None is the recipe's own."""
    from data import Dataset, Spec, Split, to_signed
    from generators import GAN, RECIPES
    from matching import Matcher
    from pools import build_classifier

    if not keep_memory:
        common.device.keep_freed_memory = lambda: None
    accelerator = common.device.make_accelerator(precision)
    spec = Spec("random", tuple(map(str, range(CLASSES))), CHANNELS, SIZE, (0.5,) * CHANNELS, (0.25,) * CHANNELS, True)
    real = Split(torch.randint(256, (100 * CLASSES, CHANNELS, SIZE, SIZE), dtype=torch.uint8),
                 torch.arange(CLASSES).repeat(100)).to(accelerator.device)
    recipe = replace(RECIPES[recipe], batch_size=batch_size, width=width or RECIPES[recipe].width)
    gan = GAN(accelerator, spec, recipe, seed=0)
    matching = None
    if stage == "pool_match":  # what a member has learned changes no second of it
        member = build_classifier("convnet", CHANNELS, SIZE, CLASSES).to(accelerator.device).eval().requires_grad_(False)
        matching = Matcher(gan, Dataset(spec, real, real, real), SimpleNamespace(draw=lambda generator: member),
                           match="logit", weight=None, select="random", classes=2, per_class=batch_size // 2,
                           aug_type="color_crop_cutout", interval=1, candidates=1)
    shuffle = Shuffle(len(real), batch_size, 0, "real")

    def step(number):
        rows = gan.mine(shuffle.indices(number))
        images, labels = to_signed(real.images[rows]), real.labels[rows]
        gan.generator_step(labels, number, matching)
        gan.critic_step(images, labels, number)

    return step


class _OneStep:
    """The loader of one step: a single batch, and in loops inside that step the same one for as long as it is asked for."""

    def __init__(self, *batch):
        self.batch, self.entered = batch, False

    def __iter__(self):
        inside, self.entered = self.entered, True
        return itertools.repeat(self.batch) if inside else iter([self.batch])


def published(stage, checkout, batch_size):
    """`step(number)` as `ours` gives it: one batch through the `train` of the script `stage` of the published code.

    Its own defaults, logit matching with siamese augmentation, and a ConvNet where it would draw a classifier.
    """
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(checkout))
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if place == "cpu":
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self
    torch.backends.cudnn.deterministic = True  # as its scripts do
    script = importlib.import_module(stage)
    if stage == "pool_match":
        draw = script.define_model
        script.define_model = lambda args, classes: draw(args, classes, "convnet")
    normalise = script.Normalize
    script.Normalize = lambda mean, std, device: normalise(mean, std, device=place)
    args = argparse.Namespace(
        data="cifar10", num_classes=CLASSES, dim_noise=100, batch_size=batch_size, print_freq=50, eval_lr=0.01, momentum=0.9,
        weight_decay=5e-4, epochs_match_train=16, match="logit", match_aug=True, aug_type="color_crop_cutout", mixup_net="cut")
    players = script.Generator(args).cuda(), script.Discriminator(args).cuda()
    optimisers = [torch.optim.Adam(player.parameters(), lr=1e-4, betas=(0.0, 0.9)) for player in players]
    augmentations = script.diffaug(args)
    images = torch.rand(batch_size, CHANNELS, SIZE, SIZE) * 2 - 1
    labels = torch.randint(CLASSES, (batch_size,))

    def step(number):
        script.train(args, number, *players, *optimisers, _OneStep(images, labels), torch.nn.CrossEntropyLoss(), *augmentations)

    return step


def _serve(pipe, build, options):
    """What a contestant's process does: one step to warm up, then a timed one for each message."""
    sys.stdout = sys.stderr  # the published code prints
    step = build(**options)
    for number in itertools.count():
        start = time.perf_counter()
        step(number)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - start)
        try:
            pipe.recv()
        except EOFError:  # nobody asks any more
            return


class Contestant:
    """A process that takes the steps of `build(**options)` on demand. Raises UserError if it ends before it is closed."""

    def __init__(self, name, build, **options):
        spawn = multiprocessing.get_context("spawn")  # a fresh interpreter: nothing is inherited
        self.name = name
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(other, build, options), daemon=True)
        self.process.start()
        other.close()
        self._answer()

    def time_step(self):
        """Seconds of one step."""
        self.pipe.send(None)
        return self._answer()

    def _answer(self):
        try:
            return self.pipe.recv()
        except EOFError:
            raise UserError(f"the process of '{self.name}' ended: its error stands above") from None

    def close(self):
        self.pipe.close()
        self.process.join()


def compare(stage, precision="auto", repeats=3, checkout=None, batch_size=None, width=None):
    """Seconds of each contestant's steps, their medians, and how many times as long the published code takes as each."""
    accelerator = common.device.make_accelerator(precision)
    batch_size = batch_size or BATCHES[stage]
    mine = {"stage": stage, "batch_size": batch_size, "width": width, "precision": precision}
    line_up = {"published": (published, {"stage": stage, "checkout": checkout, "batch_size": batch_size})} if checkout else {}
    line_up["ours"] = (ours, {**mine, "recipe": "dim"})
    if accelerator.mixed_precision != "no":
        line_up["ours in fp32"] = (ours, {**mine, "recipe": "dim", "precision": "fp32"})
    if accelerator.device.type == "cpu":
        line_up["ours with freed memory returned"] = (ours, {**mine, "recipe": "dim", "keep_memory": False})
    line_up["another network: the pyramid recipe"] = (ours, {**mine, "recipe": "pyramid"})

    contestants, seconds = [], {name: [] for name in line_up}
    try:
        for name, (build, options) in line_up.items():
            print(f"{stage}: warming up '{name}'", file=sys.stderr)
            contestants.append(Contestant(name, build, **options))
        for number in range(repeats):
            for contestant in contestants:
                taken = contestant.time_step()
                seconds[contestant.name].append(taken)
                print(f"{stage} {number + 1}/{repeats}: {taken:.3f} s '{contestant.name}'", file=sys.stderr)
    finally:
        for contestant in contestants:
            contestant.close()
    ratios = {name: [a / b for a, b in zip(seconds["published"], own)]  # of steps taken one after the other
              for name, own in seconds.items() if checkout and name != "published"}
    return {"batch_size": batch_size, "seconds": seconds,
            "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "published_over": {name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
                               for name, values in ratios.items()}}


def environment(precision):
    """What the figures depend on beside the code."""
    accelerator = common.device.make_accelerator(precision)
    names = [line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else f"{len(names)} × {names[0]}"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)}


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--published", type=Path, metavar="PATH", help="a checkout of vimar-gu/DiM to time beside ours")
    parser.add_argument("--repeats", type=COUNT, default=3, help="timed steps of each contestant")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="arithmetic of our networks")
    args = parser.parse_args()
    if args.published and not (args.published / "gan_model.py").exists():
        raise UserError(f"--published {args.published} holds no gan_model.py: give a checkout of vimar-gu/DiM")
    result = environment(args.precision)
    for stage in BATCHES:
        result[stage] = compare(stage, args.precision, args.repeats, args.published)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_script(main)
