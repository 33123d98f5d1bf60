"""Seconds of one training step at the published network, ours beside the published code's (vimar-gu/DiM), as JSON.

    python benchmarks/step_time.py --published CHECKOUT > step_time.json

Every contestant is a process of its own, so that no setting of one reaches another, and they step in turn, so that whatever
else the machine does falls on all of them alike. The published code runs as it is, on random images that are in memory
already; where there is no GPU, its `.cuda()` does nothing.
"""

import contextlib
import importlib
import itertools
import json
import multiprocessing
import re
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import common.device
from common.cli import COUNT, PRECISIONS, Parser, run_script
from common.errors import UserError

BATCHES = {"gen_condense": 128, "pool_match": 64}
"""Images of a step of each script, as published."""
CLASSES, CHANNELS, SIZE = 10, 3, 32


def ours(stage, recipe, precision, batch_size, width=None, keep_memory=True):
    """A function `step(number)` that takes one training step of `stage`; `width` None is the recipe's own."""
    from data import Dataset, Spec, Split
    from generators import GAN, RECIPES
    from matching import GeneratorLearner, Matcher
    from pools import build_classifier

    if not keep_memory:
        common.device.keep_freed_memory = lambda: None
    accelerator = common.device.make_accelerator(precision)
    spec = Spec("random", tuple(map(str, range(CLASSES))), CHANNELS, SIZE, (0.5,) * CHANNELS, (0.25,) * CHANNELS, True)
    real = Split(torch.randint(256, (100 * CLASSES, CHANNELS, SIZE, SIZE), dtype=torch.uint8),
                 torch.arange(CLASSES).repeat(100)).to(accelerator.device)
    recipe = replace(RECIPES[recipe], batch_size=batch_size, width=width or RECIPES[recipe].width)
    dataset = Dataset(spec, real, real, real)
    learner, matching = GeneratorLearner(GAN(accelerator, spec, recipe, seed=0), dataset), None
    if stage == "pool_match":  # what a member has learned changes no second of it
        member = build_classifier("convnet", CHANNELS, SIZE, CLASSES).to(accelerator.device).eval().requires_grad_(False)
        pool = SimpleNamespace(prepare=lambda step, learner: None, draw=lambda generator: member)
        matching = Matcher(learner, dataset, pool, match="logit", weight=None, select="random", classes=2,
                           per_class=batch_size // 2, aug_type="color_crop_cutout", interval=1, candidates=1)
    return lambda number: learner.step(number, matching)


class _OneStep:
    """The loader of one step: a single batch, and in loops inside that step the same one for as long as it is asked for."""

    def __init__(self, batch):
        self.batch, self.entered = batch, False

    def __iter__(self):
        inside, self.entered = self.entered, True
        return itertools.repeat(self.batch) if inside else iter([self.batch])


def published(stage, checkout, batch_size):
    """`step(number)` as `ours` gives it: one batch through the `train` of the script `stage` of the published code.

    Its own defaults, logit matching with siamese augmentation, and a ConvNet where it would draw a classifier.
    """
    sys.path.insert(0, str(checkout))
    script = importlib.import_module(stage)
    torch.backends.cudnn.deterministic = True  # as its scripts do
    if not torch.cuda.is_available():
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self
        script.Normalize = lambda mean, std, device, make=script.Normalize: make(mean, std)  # on the CPU
    if stage == "pool_match":
        script.define_model = lambda args, classes, make=script.define_model: make(args, classes, "convnet")
    args = SimpleNamespace(
        data="cifar10", num_classes=CLASSES, dim_noise=100, batch_size=batch_size, print_freq=50, eval_lr=0.01, momentum=0.9,
        weight_decay=5e-4, epochs_match_train=16, match="logit", match_aug=True, aug_type="color_crop_cutout", mixup_net="cut")
    players = script.Generator(args).cuda(), script.Discriminator(args).cuda()
    optimisers = [torch.optim.Adam(player.parameters(), lr=1e-4, betas=(0.0, 0.9)) for player in players]
    augmentations = script.diffaug(args)
    batch = torch.rand(batch_size, CHANNELS, SIZE, SIZE) * 2 - 1, torch.randint(CLASSES, (batch_size,))

    def step(number):
        script.train(args, number, *players, *optimisers, _OneStep(batch), torch.nn.CrossEntropyLoss(), *augmentations)

    return step


def _serve(pipe, build, options):
    """What a contestant's process does: one step to warm up, then a timed one for each message."""
    sys.stdout = sys.stderr  # the published code prints
    step = build(**options)
    with contextlib.suppress(EOFError):  # until nobody asks any more
        for number in itertools.count():
            start = time.perf_counter()
            step(number)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            pipe.send(time.perf_counter() - start)
            pipe.recv()


class Contestant:
    """A process that takes the steps of `build(**options)` on demand. Raises UserError if it ends before it is closed."""

    def __init__(self, name, build, options):
        spawn = multiprocessing.get_context("spawn")  # a fresh interpreter: nothing is inherited
        self.name, self.seconds = name, []
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(other, build, options), daemon=True)
        self.process.start()
        other.close()
        print(f"{name}: first step {self._answer():.2f} s", file=sys.stderr)

    def time_step(self):
        """Take one step and add its seconds to `seconds`."""
        self.pipe.send(None)
        self.seconds.append(self._answer())
        print(f"{self.name}: {self.seconds[-1]:.2f} s", file=sys.stderr)

    def _answer(self):
        try:
            return self.pipe.recv()
        except EOFError:
            raise UserError(f"the process of '{self.name}' ended: its error stands above") from None

    def close(self):
        self.pipe.close()
        self.process.join()


def compare(stage, precision="fp32", repeats=3, checkout=None, batch_size=None, width=None):
    """Seconds of each contestant's steps, their medians, and how many times as long the published code takes as each."""
    batch_size = batch_size or BATCHES[stage]
    network = {"stage": stage, "batch_size": batch_size, "width": width, "precision": precision, "recipe": "dim"}
    line_up = {"published": (published, {"stage": stage, "batch_size": batch_size, "checkout": checkout})} if checkout else {}
    line_up["ours"] = (ours, network)
    if precision != "fp32":
        line_up["ours, fp32"] = (ours, {**network, "precision": "fp32"})
    if not torch.cuda.is_available():
        line_up["ours, freed memory returned"] = (ours, {**network, "keep_memory": False})
    line_up["another network: pyramid"] = (ours, {**network, "recipe": "pyramid"})

    with contextlib.ExitStack() as stack:
        contestants = [stack.enter_context(contextlib.closing(Contestant(name, *what))) for name, what in line_up.items()]
        for _ in range(repeats):
            for contestant in contestants:
                contestant.time_step()
    seconds = {contestant.name: contestant.seconds for contestant in contestants}
    ratios = {name: [theirs / own for theirs, own in zip(seconds["published"], values)]  # of the same turn
              for name, values in seconds.items() if checkout and name != "published"}
    return {"batch_size": batch_size, "seconds": seconds,
            "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "published_over": {name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
                               for name, values in ratios.items()}}


def device_name():
    """The GPU's name or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    listing = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", listing.read_text()) if listing.exists() else []
    return names[0] if names else "CPU"


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--published", type=Path, metavar="PATH", help="a checkout of vimar-gu/DiM to time beside ours")
    parser.add_argument("--repeats", type=COUNT, default=3, help="timed steps of each contestant")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="arithmetic of our networks")
    args = parser.parse_args()
    if args.published and not (args.published / "gan_model.py").exists():
        raise UserError(f"--published {args.published} holds no gan_model.py: give a checkout of vimar-gu/DiM")
    precision = common.device.make_accelerator(args.precision).mixed_precision.replace("no", "fp32")
    stages = {stage: compare(stage, precision, args.repeats, args.published) for stage in BATCHES}
    print(json.dumps({"device": device_name(), "threads": torch.get_num_threads(), "torch": torch.__version__,
                      "precision": precision, **stages}, indent=1))


if __name__ == "__main__":
    run_script(main)
