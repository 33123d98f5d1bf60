"""Peak memory and seconds of a step of DM, IDC and stage 2 at many classes, of all at once and class by class; and of trainings
that are differentiated, by the graph of one step at a time and by that of the whole.

    python benchmarks/memory.py --output benchmarks/results/memory.json    # goes on with what is missing
    python benchmarks/memory.py --unroll 10 60 100 --output benchmarks/results/unroll.json

Each step runs in a process of its own, which nothing else has made large, on noise in place of real images. What a network of
the pool has learned changes no second of a step, so that of stage 2 is a random one.
"""

import contextlib
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.func import functional_call
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contestants import Contestant
from benchmarks.search import make_folder
from gendistil.common.cli import COUNT, LARGEST, PRECISIONS, Parser, number, run_script
from gendistil.common.device import device_name, make_accelerator
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.files import read_json, write_json
from gendistil.common.flags import markdown_table
from gendistil.common.rng import stream
from gendistil.data import Dataset, Spec, Split
from gendistil.matching import build, method_for, origin
from gendistil.matching.methods import GENERATOR
from gendistil.matching.networks import make_pool
from gendistil.matching.unroll import SGD, unroll
from generators import RECIPES, make_trainer
from pools import build_classifier

WORDS = {"dm": "DM", "idc": "IDC", "default": "stage 2"}
"""The methods whose steps are taken, and what the table calls them."""
WAYS = {"one step": "graph of one step at a time", "whole": "graph of the whole training"}
"""How a training is differentiated, and what the table calls it."""


def take_steps(method, classes, class_batch, size, ipc, real, precision="fp32", width=None):
    """A function `step(number)` that takes one step of a method at so many classes; `width` None is the recipe's own."""
    engine = Engine(make_accelerator(precision))
    engine.choose("off")
    row = method_for(method, "noise", ipc, size)
    random = "random" if row.pool_training == "pretrained" else row.pool_training
    method = replace(row, match_batch=real, match_classes=0, class_batch=class_batch, select="random", pool_training=random,
                     pool=("convnet4" if size > 32 else "convnet",))
    dataset = make_dataset(classes, max(real, ipc * method.factor**2), size).to(engine.accelerator.device)
    state = {}
    if method.learn == GENERATOR:
        recipe = RECIPES["pyramid"]
        recipe = replace(recipe, width=width or recipe.width)
        state = make_trainer(engine.accelerator, dataset.spec, recipe, 0, engine).state_dict()
    learner = build.make_learner(build.Begin(method, origin.Start(ipc=ipc), 0, engine, dataset, state, Path("new")))
    pool = make_pool(method, None, 0, dataset, engine)
    learner.begin(dataset, method, pool)
    matching = build.make_matcher(method, learner, dataset).begin(pool)

    def step(number):
        learner.step(number, matching)

    return step


def whole_graph(loss, optimizer, weights, inputs, rates, steps, terminal, window=0):
    """What `unroll` gives, by the graph of all steps that are differentiated."""
    learned, count, first = [x.clone().requires_grad_() for x in (*inputs, rates)], len(weights), steps - (window or steps)
    state = [*weights, *optimizer.begin(weights)]
    for step in range(steps):
        at = [x.clone().requires_grad_(True) if not x.requires_grad else x for x in state[:count]]
        inside = step >= first
        found = torch.autograd.grad(loss(at, learned[:-1], step), at, create_graph=inside)
        state = optimizer(at, state[count:], found, learned[-1][step % len(rates)], step)
        state = state if inside else [x.detach() for x in state]
    value = terminal(state[:count])
    return value.detach(), torch.autograd.grad(value, learned)


def differentiate(way, steps, images, size, width=128):
    """A function `step(number)` that trains a ConvNet for `steps` steps on noise, all `images` in each, by SGD, and
    differentiates how far it comes from other weights, in float32; `way` is a key of `WAYS`."""
    draw, device = stream(0, "noise"), make_accelerator("fp32").device
    network, other = (build_classifier("convnet", 3, size, 10, generator=stream(0, name), width=width).to(device)
                      for name in "ab")
    names, weights = zip(*((name, weight.detach()) for name, weight in network.named_parameters()))
    seen, labels = torch.randn(images, 3, size, size, generator=draw).to(device), torch.arange(images, device=device) % 10
    run = whole_graph if way == "whole" else unroll

    def loss(weights, inputs, step):
        return F.cross_entropy(functional_call(network, dict(zip(names, weights)), (inputs[0],)), labels)

    def terminal(weights):
        return sum((x - y.detach()).square().sum() for x, y in zip(weights, other.parameters()))

    def step(number):
        run(loss, SGD(), [*weights], [seen], torch.full((1,), 0.01, device=device), steps, terminal)

    return step


def make_dataset(classes, per_class, size):
    """`per_class` images of noise of every class."""
    spec = Spec("noise", tuple(map(str, range(classes))), 3, size, (0.5,) * 3, (0.25,) * 3, True)
    images = torch.randint(256, (classes * per_class, 3, size, size), dtype=torch.uint8)
    split = Split(images, torch.arange(classes).repeat_interleave(per_class))
    return Dataset(spec, split, split, split)


def measure(repeats, **options):
    """One row of the results: seconds of each timed step, and the most memory that its process has held, in MiB."""
    build = differentiate if "way" in options else take_steps
    name = ", ".join(f"{value}" if isinstance(value, str) else f"{key} {value}" for key, value in options.items())
    try:
        with contextlib.closing(Contestant(name, build, options)) as contestant:
            for _ in range(repeats):
                contestant.time_step()
            return {**options, "seconds": contestant.seconds, "mib": contestant.reports[-1]["mib"]}
    except UserError:  # killed for its memory, most likely; what it wrote stands above
        return {**options, "seconds": None, "mib": None}


def unroll_table(results):
    """The markdown table of trainings that were differentiated."""
    rows = {(row["way"], row["steps"]): row for row in results["rows"]}
    lines = [[str(steps), *(_cell(rows.get((way, steps))) for way in WAYS)] for steps in sorted({steps for _, steps in rows})]
    first, text = results["rows"][0], markdown_table(["steps", *WAYS.values()], lines)
    return (f"{text}\n\nA ConvNet-3, {first['images']} images of {first['size']} pixels a step, SGD. "
            f"{results['device']}, torch {results['torch']}, fp32.")


def table(path):
    """The markdown table of a file that this script wrote."""
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    if "way" in results["rows"][0]:
        return unroll_table(results)
    rows = {(row["method"], row["classes"], row["class_batch"]): row for row in results["rows"]}
    batches = sorted({batch for *_, batch in rows})
    heads = ["all at once" if batch == 0 else f"{batch} at once" for batch in batches]
    lines = []
    for method, words in WORDS.items():
        for classes in sorted({classes for name, classes, _ in rows if name == method}):
            lines.append([words, str(classes), *(_cell(rows.get((method, classes, batch))) for batch in batches)])
    first, text = results["rows"][0], markdown_table(["step", "classes", *heads], lines)
    return (f"{text}\n\n{first['size']} pixels; of each class, stored images: {first['ipc']}, real ones: {first['real']}. "
            f"{results['device']}, torch {results['torch']}, {first['precision']}.")


def _cell(row):
    if row is None:
        return ""
    return "did not fit" if row["seconds"] is None else f"{statistics.median(row['seconds']):.3g} s, {row['mib']:,.0f} MiB"


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=WORDS, default=list(WORDS), help="whose steps are taken")
    parser.add_argument("--classes", type=COUNT, nargs="+", default=[100, 200], help="classes of the data")
    parser.add_argument("--class-batch", type=number(int, 0), nargs="+", default=[0, 10], help="classes at once, 0 for all")
    parser.add_argument("--unroll", type=COUNT, nargs="+", metavar="STEPS", help="in place of all that: trainings of so many "
                        "steps that are differentiated, with --ipc images of ten classes in each")
    parser.add_argument("--size", type=number(int, 8, LARGEST), default=32, help="side of the images, in pixels")
    parser.add_argument("--ipc", type=COUNT, default=1, help="stored images of each class")
    parser.add_argument("--real", type=COUNT, default=8, help="real images of each class in a step")
    parser.add_argument("--repeats", type=COUNT, default=2, help="timed steps of each kind")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="arithmetic of the networks")
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="what was measured; what is there stays")
    args = parser.parse_args()
    if args.unroll and args.precision not in ("auto", "fp32"):
        parser.error(f"--precision {args.precision}: trainings of --unroll are measured in fp32: leave it out")
    accelerator = make_accelerator(args.precision)
    facts = {"device": device_name(accelerator.device), "torch": torch.__version__}
    make_folder(args.output.parent)
    earlier = read_json(args.output) if args.output.exists() else {**facts, "rows": []}
    rows = earlier.pop("rows", None)
    if earlier != facts or not isinstance(rows, list):
        raise UserError(f"--output {args.output} was measured on {earlier.get('device')}, torch {earlier.get('torch')}: give "
                        "another")
    shared = {"size": args.size, "ipc": args.ipc, "real": args.real,
              "precision": accelerator.mixed_precision.replace("no", "fp32")}
    if args.unroll:
        wanted = [{"way": way, "steps": steps, "images": 10 * args.ipc, "size": args.size}
                  for steps in args.unroll for way in WAYS]
    else:
        wanted = [{"method": method, "classes": classes, "class_batch": class_batch, **shared}
                  for method in args.methods for classes in args.classes for class_batch in args.class_batch]
    for options in wanted:
        same = [row for row in rows if options.items() <= row.items()]
        if not any(row["seconds"] for row in same):  # what did not fit is tried again
            rows = [*(row for row in rows if row not in same), measure(args.repeats, **options)]
            write_json(args.output, {**facts, "rows": rows})


if __name__ == "__main__":
    run_script(main)
