"""Which flags of a method go together, and what follows for the values that no flag gives."""

import dataclasses

from gendistil.common.errors import UserError
from gendistil.common.flags import override, refuse
from gendistil.common.inherit import as_begun
from gendistil.matching.methods import DRAWN, METHODS, ONLINE, STORED, TRAINED, Method
from gendistil.matching.objectives import OBJECTIVES

_OF_CLASSES = ("match_classes", "match_real", "aug_setting", "class_batch", "calibrate", "paired_weight")
_OF_MATCHING = ("metric", "match_weight", "match_batch", "match_aug", "aug_type", "aug_single", "pool", "pool_training")
_OF_SELECTORS = ("select", "select_interval", "select_candidates", "select_nearest")


_IDLE = (("optimizer", "adam", "--optimizer adam", ["momentum"]),
         ("unroll_optimizer", "adam", "--unroll-optimizer adam", ["unroll_momentum"]),
         ("unroll_order", "steps", "--unroll-order steps", ["unroll_batch"]),
         ("match_aug", False, "--no-match-aug", ["aug_type", "aug_setting"]), ("factor", 1, "--factor 1", ["decoder"]),
         ("select", "random", "--select random", ["select_interval", "select_candidates", "select_nearest"]),
         ("pull", 0, "--pull 0", ["pull_until"]), ("first_max_start", 0, "--first-max-start 0", ["start_grows"]))
"""Fields of a method, values of theirs, the flags that say so, and the fields that then do nothing."""


_WEIGHTS = {"paired_weight": ("--own-weight (--paired-weight)", "embeddings"), "calibrate": ("--calibrate", "embeddings"),
            "mean_weight": ("--mean-weight", "gradients")}
"""Weights of what an objective compares besides: their flags, and what it has to compare for them."""


def is_off(args, field):
    """Whether the flag of a `Method`'s field says that one of these weights is 0, which goes with everything."""
    return field.name in _WEIGHTS and getattr(args, field.name, None) == 0


def check_match(args, match, pool):
    """Raise UserError for flags that are not for the objective `match`, or beside the value of another flag or of the method,
    and for networks (`pool`) that are not."""
    for name, value, words, idle in _IDLE:
        chosen = getattr(METHODS[args.method] if getattr(args, name) is None else args, name)
        if chosen == value:
            refuse(args, (Method,), lambda field, idle=idle: field.name in idle,
                   f"does nothing beside {words}, which --method {args.method} has here")
    row = OBJECTIVES.get(match)
    taken, elsewhere = row.options if row else (), {name for row in OBJECTIVES.values() for name in row.options}
    useless = elsewhere - set(taken)
    if row:
        useless -= {"paired_weight", "calibrate"}  # of which more is said below
    if row and row.per == "training":
        useless |= {*_OF_CLASSES, *(_OF_SELECTORS if row.expert else ())}
    if row and row.paired == "real":  # whose images are those that the latents stand for
        useless |= {*_OF_SELECTORS}
    if match == "none" and METHODS[args.method].learn == DRAWN:  # of a generator the steps without it are a control's
        useless |= {*_OF_CLASSES, *_OF_SELECTORS, *_OF_MATCHING}
    elif METHODS[args.method].learn == DRAWN:
        refuse(args, (Method,), lambda field: field.name == "match_weight", "does nothing beside --steer, which says how far")
    refuse(args, (Method,), lambda field: field.name in useless and not is_off(args, field), f"is not for --match {match}")
    values = override(METHODS[args.method], args)
    if values.chunk_steps and METHODS[args.method].first is None:
        refuse(args, (Method,), lambda field: field.name in ("optimizer", "momentum"),
               "does nothing beside --chunk-steps, which learns latents by Adam")
    if row and row.expert and values.learn in STORED:
        refuse(args, (Method,), lambda field: field.name == "match_batch",
               f"does nothing beside --match {match}, which trains on the stored images: give --syn-batch or --unroll-batch")
    for weight, (flag, seen) in _WEIGHTS.items() if row else ():
        if getattr(args if weight == "calibrate" else values, weight) and weight not in taken:
            names = ", ".join(name for name, row in OBJECTIVES.items() if weight in row.options)
            raise UserError(f"{flag} is for an objective that compares {seen}: --match {names}, or {flag.split()[0]} 0")
    plain = values.unroll_optimizer == "sgd" and not values.unroll_momentum and not values.match_aug
    if row and values.unroll_order == "steps" and not plain:
        raise UserError("--unroll-order steps is plain SGD without augmentation, which --protocol replay repeats: give "
                        "--unroll-optimizer sgd, --unroll-momentum 0 and --no-match-aug")
    if row and row.expert and pool != "expert":
        raise UserError(f"--match {match} follows experts, and networks of --pool-training {pool} are none: give "
                        "--pool-training expert")


def calibrated_if_possible(method):
    """`method`, whose own --calibrate is 0 where its objective sees no embeddings or its networks have not learned; of a flag
    `check_match` says so."""
    row = OBJECTIVES.get(method.match)
    possible = row and "calibrate" in row.options and method.pool_training in TRAINED
    return method if possible else dataclasses.replace(method, calibrate=0.0)


def settled(method, options):
    """`method`, in which the flags have taken the place of its row's values, as the run with these `options` learns by it."""
    if options["steps"] is not None and method.epochs and not options["epochs"]:
        method = dataclasses.replace(method, epochs=None)  # the row's passes give way to the steps that were asked for
    return as_begun(calibrated_if_possible(method), options, "method_values")


def check_online(args, method):
    """Raise UserError for flags of how an online network learns where it never does, because every step has a new one."""
    if method.pool_training in ONLINE and method.outer == 1 and not method.pool_warmup:
        names = {"inner", "pool_images", "pool_batch", "pool_lr", "pool_momentum", "pool_decay", "pool_aug", "pool_cutmix"}
        if METHODS[args.method].pool_training not in ONLINE:  # DC's own network is new in every step at one image of a class
            names.add("pool_training")
        refuse(args, (Method,), lambda field: field.name in names,
               "does nothing where every step has a new network: give --outer, steps that share one")
