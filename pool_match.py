"""Stage 2: match what is learned with the real images as a pool of classifiers sees them.

    accelerate launch pool_match.py --tag match --weight results/gan
    accelerate launch pool_match.py --tag dm --method dm --data mnist --ipc 10
"""

import argparse
import dataclasses
import functools
import math

from gendistil.common.cli import COUNT, Parser, add_data_arguments, add_run_arguments, run_script
from gendistil.common.device import make_accelerator
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.files import write_json
from gendistil.common.flags import LENGTH_GROUP, add_flags, add_listing, flag_fields, from_flags
from gendistil.common.inherit import LENGTH, inherit_data, parse_flags, resume_state
from gendistil.common.loop import Loop
from gendistil.common.run import CHECKPOINT, CONFIG, Run, check_folder
from gendistil.data import load_asked
from gendistil.evaluation.selection import Judge, Judging
from gendistil.evaluation.teachers import keep_rows, open_pool
from gendistil.matching import METHODS, Method, build, choices, objectives, origin
from gendistil.matching.build import LEARNED, kind_of
from gendistil.matching.methods import DEFAULT_IPC, DRAWN, GENERATOR, PIXELS
from gendistil.matching.networks import make_pool
from gendistil.matching.origin import SUMMARY, Start
from gendistil.sources import ROWS, Teacher
from pools import check_classifiers


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, "match")
    add_data_arguments(parser, whiten=True)
    parser.add_argument("--method", choices=METHODS, default="default", help="published method: a named set of all choices. Of "
                        "itgan, which runs an inversion first, flags are for the second run, --chunk-steps for the first, and "
                        "--pool, --class-batch, --syn-batch and --latent-space for both")
    add_listing(parser, "--list-methods", choices.table)
    add_listing(parser, "--list-objectives", objectives.table)
    add_flags(parser, Method, Start)
    add_flags(parser, Judging, told=True)
    length = parser.group(LENGTH_GROUP)
    length.add_argument("--log-interval", type=COUNT, default=50, help="steps between log entries")
    length.add_argument("--resume", action="store_true", help="continue the run of this tag from its last checkpoint, by "
                        "the flags that it was started with; its length, learning rates and intervals may be given anew")
    args = parse_flags(parser, argv, exclusive=LENGTH)
    origin.check_given(args)
    check(args)
    vars(args).update(dataclasses.asdict(from_flags(Judging, args)))
    folders = [args.output_dir / tag for _, tag in plan(args)[::-1]]
    begun = [folder for folder in folders if args.resume and (folder / CONFIG).exists()]
    inherit_data(args, (begun or [args.control_of or args.weight])[0])
    origin.check_paths(args)
    for run in plan(args):
        choices.check(flags_of(args, *run))
    return args


def check(args):
    """Refuse flags that are not for the method, and fill in what follows from others."""
    if sum(value is not None for value in (args.epochs, args.steps, args.control_of)) > 1:
        raise UserError("--epochs, --steps and --control-of exclude each other: give one")
    row, learned = METHODS[args.method], LEARNED[METHODS[args.method].learn]
    choices.check_kinds(args)
    if args.control_of:
        if args.match not in (None, "none"):
            raise UserError(f"--match {args.match} does nothing beside --control-of, which matches nothing: leave it out")
        args.match = "none"
        origin.read_seconds(args.control_of)  # a run that is none ends here
        origin.train_alike(args)
    if learned.needs_weight and not args.weight:
        raise UserError(f"--method {args.method} starts from a generator: give --weight, a run of gen_condense.py")
    if args.chunk_steps is not None and row.first and len(plan(args)) == 1:
        raise UserError(f"--chunk-steps is for an inversion, which --weight {args.weight} has behind it")
    if args.chunk_steps == 0 and row.first:
        raise UserError(f"--chunk-steps 0 has no end of its own: give 1 or more, or run --method {row.first} by itself")
    if learned.kind in (PIXELS, DRAWN) and args.ipc is None:
        args.ipc = DEFAULT_IPC


def plan(args):
    """The methods to run in turn, each with its tag: one, or two where the first finds what the second starts from."""
    first = METHODS[args.method].first
    found = first is None or origin.holds_latents(args.weight)
    return [*([] if found else [(first, f"{args.tag}-{first}")]), (args.method, args.tag)]


def flags_of(args, name, tag):
    """The flags of the run `tag` by the method `name`: where two run in turn, most are for the second."""
    useless = (lambda goes: not goes) if name != args.method else (lambda goes: goes == "only" and METHODS[name].first)
    unused = {field.name: None for field in flag_fields(Method) if useless(field.metadata.get("first"))}
    given = {key: value for key, value in args.given.items() if key not in unused} | {"method": name}
    values = {**vars(args), **unused, "method": name, "tag": tag, "given": args.given if tag == args.tag else given}
    return argparse.Namespace(**values)


def main(argv=None):
    args = parse_args(argv)
    runs, weight = plan(args), args.weight
    origin.check_runs(args, runs)
    if not args.resume:
        check_folder(vars(args))  # before hours of work
    # Of two runs, the second may not have come to a checkpoint when the first was interrupted.
    last = args.resume and (len(runs) == 1 or origin.under_way(args, runs))
    for name, tag in runs:
        if tag != args.tag and last:
            weight = args.output_dir / tag  # from which the second has started
            continue
        resume = last if tag == args.tag else args.resume and (args.output_dir / tag / CHECKPOINT).exists()
        run = flags_of(args, name, tag)
        run.weight, run.resume, run.overwrite = weight, resume, args.overwrite or resume != args.resume
        match(run)
        weight = args.output_dir / tag


def match(args):
    """One run of the method that its flags name: learn, score, save."""
    start, folder = from_flags(Start, args), args.output_dir / args.tag
    accelerator = make_accelerator(args.precision)
    engine = Engine(accelerator)
    resumed, file = resume_state(vars(args)), folder / CHECKPOINT
    state = resumed or {}
    of_generator = kind_of(METHODS[args.method]) == GENERATOR
    if of_generator:
        state, file = origin.read_weight(args.weight) if not resumed else (state, file)
        origin.check_critic(args, state)
    limit = origin.read_seconds(args.control_of)
    dataset = load_asked(args, accelerator)
    spec = dataset.spec
    method = choices.method_of(args, spec.size)
    build.check_pool(method, spec)
    judging = from_flags(Judging, args)
    check_classifiers([judging.student(spec)], spec, "--eval-model")
    teacher = Teacher.of(open_pool(start.teacher, dataset), engine=engine) if start.teacher else None

    summary = {"train_seconds": 0.0, "held_out_accuracy": 0.0, "best_step": 0, "steps_before": origin.steps_taken(state)}
    summary = resumed["summary"] if resumed else summary
    learner = build.make_learner(build.Begin(method, start, args.seed, engine, dataset, state, file, summary["steps_before"]))
    engine.choose(args.compile, build.count_pixels(args.control_of, method, learner, dataset))
    matching = build.make_matcher(method, learner, dataset)  # what does not go together ends here
    pools, earlier = args.output_dir / "pools", folder if resumed else None
    pool = make_pool(method, pools, args.seed, dataset, engine, earlier) if matching else None
    if not resumed:
        learner.begin(dataset, method, pool)
    if matching:
        matching.begin(pool, resumed and resumed["matching"])
    begun = resumed["step"] if resumed else 0
    run = Run(vars(args), accelerator, begun, method_values=dataclasses.asdict(method), dataset=dataclasses.asdict(spec),
              compiled=engine.compiled, pool_folder=pool.dir if matching else None,
              recipe_values=dataclasses.asdict(learner.trainer.recipe) if of_generator else None,
              kin=origin.kin_of(start.weight, earlier) if of_generator else None)
    judge = Judge(run, engine, dataset, judging, args.seed, method.keep, summary)

    def save(step):
        """Everything that --resume needs."""
        if not (run.dir / learner.folder).exists():  # interrupted before the first score
            run.save_model(learner.source, learner.folder)
        kept = matching.state_dict() if matching else {}
        run.save({"step": step, "summary": summary, "matching": kept, **learner.state_dict()})
        sum_up(step)

    def sum_up(step):
        if run.is_main:
            write_json(run.dir / SUMMARY, {"steps": step, "ended": loop.last, **summary})

    steps = math.inf if args.control_of else build.count_steps(method, learner, dataset)
    loop = Loop(run, begun, steps, args.log_interval, seconds=summary["train_seconds"], limit=limit, compiled=engine.compiled,
                rhythm=matching.selector.interval if matching else 1)
    if run.is_main and not method.label_lr and (begun < steps or teacher):
        (run.dir / learner.folder / ROWS).unlink(missing_ok=True)  # they are of other images, or other answers
    if resumed:
        sum_up(begun)
    elif not steps or of_generator:  # a coreset learns nothing, and a generator may gain nothing
        judge.score(learner, 0)
        save(0)
    with loop:
        for step in loop:
            loop.report(learner.step(step, matching))
            if loop.saves(args.eval_interval):
                (matching or learner).check(loop.done)
                summary["train_seconds"] = loop.seconds
                # Latents that have not had their turn score nothing before the end.
                if loop.last or (loop.due(args.eval_interval) and not method.chunk_steps):
                    judge.score(learner, loop.done)
                save(loop.done)
    if teacher and run.is_main:
        keep_rows(run.dir / learner.folder, teacher, dataset)
    run.close()
    accelerator.print(f"{learner.folder} of step {summary['best_step']}: {run.dir / learner.folder}")
    if of_generator:
        accelerator.print(judge.gain(None if matching else origin.read_matched(args)))


command = functools.partial(run_script, main)
"""What the installed command of this name runs."""

if __name__ == "__main__":
    command()
