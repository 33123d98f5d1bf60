"""Stage 1: train a conditional generator on the real images.

    accelerate launch gen_condense.py --tag gan
"""

import dataclasses
import functools

from gendistil.common.cli import COUNT, Parser, add_data_arguments, add_run_arguments, run_script, say
from gendistil.common.device import make_accelerator, own_rows
from gendistil.common.engine import Engine, compiles
from gendistil.common.errors import UserError
from gendistil.common.flags import LENGTH_GROUP, add_flags, add_listing, columns, from_flags, override, refuse, refuse_idle
from gendistil.common.inherit import LENGTH, as_begun, inherit_data, parse_flags, resume_state
from gendistil.common.loop import Loop
from gendistil.common.rng import Shuffle
from gendistil.common.run import CHECKPOINT, Run, made_by
from gendistil.data import load_asked, to_signed
from gendistil.evaluation.selection import Stopping, StoppingJudge
from gendistil.matching import GeneratorLearner
from gendistil.sources import MODEL_FOLDER
from generators import RECIPES, TRAINERS, make_trainer
from generators.trainer import GROUP
from pools import check_classifiers


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, "gan")
    add_data_arguments(parser)
    named = parser.group(GROUP)
    named.add_argument("--recipe", choices=RECIPES, default="pyramid", help="named set of its values; dim: as published")
    add_listing(named, "--list-recipes", functools.partial(columns, RECIPES))
    kinds = [trainer.recipe_class for trainer in TRAINERS.values()]
    add_flags(parser, *kinds)
    length = parser.group(LENGTH_GROUP)
    length.add_argument("--steps", type=COUNT, help="steps, in place of --epochs")
    length.add_argument("--log-interval", type=COUNT, default=50, help="steps between log entries")
    length.add_argument("--sample-interval", type=COUNT, default=500, help="steps between image grids")
    length.add_argument("--save-interval", type=COUNT, default=500, help="steps between checkpoints")
    add_flags(parser, Stopping, told=True)
    length.add_argument("--resume", action="store_true", help="continue the run of this tag from its last checkpoint, by "
                        "the flags that it was started with; its length, learning rates and intervals may be given anew")
    args = parse_flags(parser, argv, exclusive=LENGTH)
    if args.epochs and args.steps:
        parser.error("--epochs and --steps exclude each other: give one")
    if args.resume and args.auto_stop is False and made_by(args.output_dir / args.tag).get("auto_stop"):
        raise UserError("--resume: --no-auto-stop would lose what scored best so far: give more --patience")
    own = {field.name for field in dataclasses.fields(RECIPES[args.recipe])}
    refuse(args, kinds, lambda field: field.name not in own, f"is not for --recipe {args.recipe}")
    recipe = override(RECIPES[args.recipe], args)
    refuse_idle(args, recipe, recipe.idle)
    refuse(args, (Stopping,), lambda field: not args.auto_stop and field.name != "auto_stop", "is for --auto-stop")
    inherit_data(args, args.output_dir / args.tag if args.resume else None)
    return args


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator(args.precision)
    state, recipe = resume_state(vars(args)), as_begun(override(RECIPES[args.recipe], args), vars(args), "recipe_values")
    if recipe.batch_size % accelerator.num_processes:
        raise UserError(f"--batch-size {recipe.batch_size} must be a multiple of the {accelerator.num_processes} processes")
    dataset = load_asked(args, accelerator)
    spec, real = dataset.spec, dataset.train
    if args.auto_stop:
        check_classifiers([from_flags(Stopping, args).student(spec)], spec, "--eval-model")
    steps = args.steps or max(1, recipe.epochs * len(real) // recipe.batch_size)
    engine = Engine(accelerator)
    engine.choose(args.compile, steps * recipe.batch_size * spec.size**2)
    trainer = make_trainer(accelerator, spec, recipe, args.seed, engine)
    if state:
        trainer.load_state_dict(state, args.output_dir / args.tag / CHECKPOINT)
    start = state["step"] if state else 0
    if args.compile == "on" and not args.auto_stop and not any(compiles(network) for network, _ in trainer.trained.values()):
        say("--compile on changes nothing here: these networks run as they are")
    run = Run(vars(args), accelerator, start, recipe_values=dataclasses.asdict(recipe), dataset=dataclasses.asdict(spec),
              compiled=engine.compiled)
    judge, over = None, False
    if args.auto_stop:
        judge = StoppingJudge(run, engine, dataset, from_flags(Stopping, args), args.seed, (state or {}).get("summary"))
        learner, over = GeneratorLearner(trainer, dataset), judge.over()

    shuffle = Shuffle(len(real), recipe.batch_size, args.seed, "real")
    with Loop(run, start, start if over else steps, args.log_interval, compiled=engine.compiled) as loop:
        for step in loop:
            images, labels = real.batch(own_rows(accelerator, shuffle.indices(step)))
            trainer.pace(step / steps)
            loop.report(trainer.step(to_signed(images), labels, step))
            if loop.due(args.sample_interval):
                run.images(MODEL_FOLDER, *trainer.grid(), loop.done)
            scored = judge and loop.due(judge.judging.eval_interval)
            if scored:
                trainer.check(loop.done)
                judge.score(learner, loop.done)
                over = judge.over()
                loop.last = loop.last or over
            if loop.saves(1 if scored else args.save_interval):  # the model that a score kept goes with its checkpoint
                trainer.check(loop.done)
                if not judge or not judge.summary["best_step"]:
                    run.save_model(trainer.source, MODEL_FOLDER)
                run.save({"step": loop.done, **({"summary": judge.summary} if judge else {}), **trainer.state_dict()})
    run.close()
    if judge:
        accelerator.print(judge.verdict(loop.done, over))
    accelerator.print(f"generator: {run.dir / MODEL_FOLDER}")


command = functools.partial(run_script, main)
"""What the installed command of this name runs."""

if __name__ == "__main__":
    command()
