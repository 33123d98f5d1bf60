"""Which flags of a method do nothing or do not go together, and what follows for the values that no flag gives."""

import dataclasses
from pathlib import Path

from gendistil.common.errors import UserError
from gendistil.common.flags import Idle, cell, flag_fields, flag_of, markdown_table, override, refuse, refuse_idle
from gendistil.common.inherit import as_begun
from gendistil.matching.build import LEARNED, kind_of
from gendistil.matching.methods import DEFAULT_IPC, DRAWN, METHODS, PIXELS, STORED, Method, method_for
from gendistil.matching.networks import POOLS, not_taken
from gendistil.matching.objectives import OBJECTIVES
from gendistil.matching.origin import Start
from gendistil.matching.selectors import SELECTORS


def _beside(name):
    """The names of the fields that stand in one group with the field `name`, and that itself."""
    groups = {field.name: field.metadata["group"] for field in flag_fields(Method)}
    return {other for other in groups if groups[other] == groups[name]}


def _of_training(method):
    row = OBJECTIVES.get(method.match)
    return row is not None and row.per == "training"


def _learns_nothing(method):
    return method.steps == 0 and kind_of(method) != DRAWN


def _is_new_at_every_step(method):
    return POOLS[method.pool_training].online and method.outer == 1


def _plain(method):
    return method.augmentation == "none"


_OF_SELECTION = {name for row in SELECTORS.values() for name in row.options}
_OF_CLASSES = {"match_classes", "match_real", "aug_setting", "class_batch", "calibrate", "paired_weight"}
_OF_MATCHING = {"paired_weight", *_beside("match")} - {"match", "aug_single"}
# Labels and step sizes are kept as they start, as many as --unroll says.
_OF_UNROLLING = _beside("unroll") - {"unroll", "unroll_optimizer", "unroll_order", "step_size", "step_size_lr", "label_lr"}
_OF_LEARNING = {"syn_batch", "optimizer", "momentum", "lr", "space", "paired_weight", "chunk_steps", "keep", "lr_critic",
                "batch_size", "ema", "tune", "outer", "inner", "pool_images", "pool_mix"}
_OF_TRAINING = {"inner", "pool_images", "pool_batch", "pool_lr", "pool_momentum", "pool_decay", "pool_aug", "pool_cutmix"}
_OF_POOLS = _beside("pool")
_NOTHING = "does nothing at --steps 0, where nothing is learned"

IDLE = (
    Idle(_learns_nothing, _NOTHING, _OF_MATCHING | _OF_UNROLLING | _OF_LEARNING),
    # Labels and a step size are kept as they start, and a generator is left without a pool by --match none.
    Idle(lambda m: _learns_nothing(m) and m.match != "none" and not (_of_training(m) and (m.label_lr or m.step_size_lr)),
         _NOTHING, {"match"}),
    Idle(lambda m: _learns_nothing(m) and (kind_of(m) != PIXELS or m.init in ("noise", "real")), _NOTHING,
         {"pool_warmup", "pool_cutmix"}),
    Idle(lambda m: _learns_nothing(m) and not POOLS[m.pool_training].single, _NOTHING, {"aug_single"}),
    # By classes and images of a generator's step --compile tells how long a run is.
    Idle(lambda m: m.match == "none", "is not for --match none",
         {"aug_single", *_OF_POOLS, *_OF_MATCHING} - {"match_classes", "match_batch"}),
    Idle(lambda m: m.match == "none" and kind_of(m) == DRAWN, "is not for --match none", {"match_classes", "match_batch"}),
    Idle(lambda m: m.match != "none" and kind_of(m) == DRAWN, "does nothing beside --steer, which says how far",
         {"match_weight"}),
    Idle(lambda m: _of_training(m) and OBJECTIVES[m.match].expert and kind_of(m) in STORED, "does nothing beside a --match "
         "of experts, which trains on the stored images: give --syn-batch or --unroll-batch", {"match_batch"}),
    Idle(lambda m: not m.match_aug, "does nothing beside --no-match-aug", {"aug_type"}),
    Idle(_plain, "does nothing beside --no-match-aug or --aug-type none", {"aug_setting"}),
    Idle(lambda m: _plain(m) and not POOLS[m.pool_training].single, "does nothing beside --no-match-aug or --aug-type none",
         {"aug_single"}),
    Idle(lambda m: m.unroll_optimizer != "sgd", "does nothing beside --unroll-optimizer adam", {"unroll_momentum"}),
    Idle(lambda m: m.unroll_order == "steps", "does nothing beside --unroll-order steps", {"unroll_batch"}),
    Idle(lambda m: not m.first_max_start, "does nothing beside --first-max-start 0", {"start_grows"}),
    Idle(lambda m: m.optimizer != "sgd", "does nothing beside --optimizer adam", {"momentum"}),
    Idle(lambda m: m.chunk_steps > 0, "does nothing beside --chunk-steps, by which latents are learned in turn by Adam "
         "and scored once", {"optimizer", "momentum", "keep"}),
    Idle(lambda m: m.factor == 1, "does nothing beside --factor 1", {"decoder"}),
    Idle(lambda m: not m.pull, "does nothing beside --pull 0", {"pull_until"}),
    Idle(lambda m: _is_new_at_every_step(m) and not m.pool_warmup,
         "does nothing where every step has a new network: give --outer, steps that share one",
         {"pool_training", *_OF_TRAINING}),
    Idle(_is_new_at_every_step, "does nothing beside --outer 1, where a network learns by "
         "--pool-warmup alone", {"inner", "pool_images"}),
)
"""What does nothing, beside what the objective of a method does not take."""

_WEIGHTS = {"paired_weight": "embeddings", "calibrate": "embeddings", "mean_weight": "gradients"}
"""Weights of what an objective compares besides, and what it has to compare for them."""


def _is_off(args, field):
    """Whether the flag of a `Method`'s field says that one of these weights is 0, which goes with everything."""
    return field.name in _WEIGHTS and getattr(args, field.name, None) == 0


def _not_taken(method):
    """What the objective of a method does not take."""
    row = OBJECTIVES.get(method.match)
    useless = {name for other in OBJECTIVES.values() for name in other.options}
    if row:
        useless -= {*row.options, "paired_weight", "calibrate"}  # of which `check` says more
    if row and row.per == "training":
        useless |= {*_OF_CLASSES, *(("select", *_OF_SELECTION) if row.expert else ())}
    if row and row.paired == "real":  # whose images are those that the latents stand for
        useless |= {"match_batch", "select", *_OF_SELECTION}
    return useless


def check_kinds(args):
    """Raise UserError for flags, `args`, that are not for what their method learns, or not for the networks of its pool."""
    row = METHODS[args.method]
    learned, pool = LEARNED[row.learn], args.pool_training or row.pool_training
    why = f"is not for --method {args.method}, which learns {learned.words}"
    refuse(args, (Method, Start), lambda field: learned.kind not in field.metadata.get("learns", [learned.kind]), why)
    refuse(args, (Method,), lambda field: field.name in not_taken(pool) and not _is_off(args, field),
           f"is not for networks of --pool-training {pool}, which --method {args.method} has here")
    if learned.kind in STORED and args.match == "none":
        raise UserError(f"--match none {why}")


def check(args):
    """Raise UserError for flags of a run, `args`, that do nothing in its method, and for values of the method that do not go
    together. Flags of a run that goes on are what it was started with."""
    method = method_of(args)
    row = OBJECTIVES.get(method.match)
    useless = (
        *IDLE,
        Idle(lambda m: True, f"does nothing beside --select {method.select}",
             _OF_SELECTION - {*SELECTORS[method.select].options}),
        Idle(lambda m: True, f"is not for --match {method.match}", _not_taken(method)),
        Idle(lambda m: args.control_of, "does nothing beside --control-of", {"match_classes", "match_batch"}),
    )
    if not args.resume:
        refuse_idle(args, method, useless, lambda field: _is_off(args, field), f" (--method {args.method})")
    for weight, seen in _WEIGHTS.items() if row else ():
        if getattr(args if weight == "calibrate" else method, weight) and weight not in row.options:
            names, flag = ", ".join(name for name in OBJECTIVES if weight in OBJECTIVES[name].options), flag_of(weight)
            raise UserError(f"{flag} is for an objective that compares {seen}: --match {names}, or {flag} 0")
    plain = method.unroll_optimizer == "sgd" and not method.unroll_momentum and _plain(method)
    if _of_training(method) and method.unroll_order == "steps" and not plain:
        raise UserError("--unroll-order steps is plain SGD without augmentation, which --protocol replay repeats: give "
                        "--unroll-optimizer sgd, --unroll-momentum 0 and --no-match-aug")
    if row and row.expert and method.pool_training != "expert":
        raise UserError(f"--match {method.match} follows experts, and networks of --pool-training {method.pool_training} are "
                        "none: give --pool-training expert")


def calibrated_if_possible(method):
    """`method` with --calibrate 0 where its objective compares no embeddings or its networks have not learned: its row's value
    falls away there, while `check` and `check_kinds` refuse the flag."""
    row = OBJECTIVES.get(method.match)
    possible = row and "calibrate" in row.options and POOLS[method.pool_training].learned
    return method if possible else dataclasses.replace(method, calibrate=0.0)


def method_of(args, size=32):
    """The method by which the run of these flags learns images of `size` pixels: those that were given, or what the run began
    with, have taken the place of its row's values."""
    name = Path(args.data).resolve().name  # of a data set, or of a folder
    method = override(method_for(args.method, name, args.ipc or 1, size, args.factor), args)
    if args.steps is not None and method.epochs and not args.epochs:
        method = dataclasses.replace(method, epochs=None)  # the row's passes give way to the steps that were asked for
    return as_begun(calibrated_if_possible(method), vars(args), "method_values")


def idle(method):
    """The names of the fields of a `Method` that do nothing in it."""
    kind, named = LEARNED[method.learn].kind, {name for row in IDLE if row.when(method) for name in row.fields}
    others = {field.name for field in flag_fields(Method) if kind not in field.metadata.get("learns", [kind])}
    return named | others | _not_taken(method) | {*not_taken(method.pool_training)}


def table():
    """The table of methods, for `DEFAULT_IPC` images of a class where they are stored, as markdown: one line per method, and a
    dash for what does nothing in it."""
    names = ("learn", "match", "metric", "pool_training", "select", "init", "factor", "aug_type", "aug_single", "match_batch",
             "lr", "steps")
    lines = []
    for name in METHODS:
        method = method_for(name, "", DEFAULT_IPC)
        values = dataclasses.asdict(method) | dict.fromkeys(idle(method))
        values |= {"steps": f"{method.epochs} passes"} if method.epochs else {}
        lines.append([name, *(cell(values[column]) for column in names), method.source])
    return markdown_table(["method", *names, "source"], lines)
