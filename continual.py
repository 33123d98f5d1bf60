"""Judge memories by class-incremental learning: classes come step by step, and students see what is kept of the earlier ones.

    accelerate launch continual.py --tag cl --memory dm="pool_match.py --method dm" replay="gen_condense.py --steps 2000"
"""

import dataclasses
import functools

from tqdm import tqdm

import gen_condense
import pool_match
from gendistil.common.cli import COUNT, Parser, add_data_arguments, add_run_arguments, run_script
from gendistil.common.device import make_accelerator
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.files import write_json
from gendistil.common.flags import add_flags, from_flags
from gendistil.common.inherit import inherit_data, parse_flags
from gendistil.common.rng import seed_of
from gendistil.common.run import Run, beside, check_folder, made_by
from gendistil.data import load_asked
from gendistil.evaluation import PROTOCOLS, Protocol
from gendistil.evaluation.continual import (
    LABELLINGS,
    Continual,
    Memory,
    class_order,
    judge,
    needs_pools,
    open_teacher,
    order_row,
    steps_of,
)
from gendistil.evaluation.protocols import GROUP
from gendistil.evaluation.report import write_report
from gendistil.evaluation.rows import REPORT, row_key
from gendistil.evaluation.settings import add_scored_on, facts_of_all, first_seed, protocol_of, resumed, with_more_students
from gendistil.evaluation.students import lessons_of, side_by_side
from gendistil.evaluation.tables import markdown
from gendistil.sources import forget, load_source
from pools import check_classifiers, one_classifier, usual_classifier

SCRIPTS = {"pool_match.py": pool_match, "gen_condense.py": gen_condense}
"""What makes memories."""


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, "continual")
    add_data_arguments(parser)
    parser.add_argument("--memory", type=functools.partial(Memory.parse, scripts=SCRIPTS), nargs="+", required=True,
                        metavar='NAME="COMMAND"',
                        help="what makes the memory of a step, from its new classes alone: a command of pool_match.py, one of "
                        "gen_condense.py for a generator that replays them, or several with && between them, each of which "
                        "starts from the run of the one before")
    add_flags(parser, Continual, told=True)
    add_scored_on(parser)
    parser.add_argument("--resume", action="store_true", help="continue the evaluation of this tag: what is there stays, and "
                        "what is missing is added: more --orders, --memory, --labels; flags left out stay, but --scored-on")
    students = parser.add_argument_group(GROUP)
    students.add_argument("--eval-model", type=one_classifier, metavar="NAME",
                          help="kind of the students, named as for validate.py --eval-model")
    students.add_argument("--num-eval", type=COUNT, default=3, help="students at every step, which differ in their seed")
    students.add_argument("--together", type=COUNT, help="students trained side by side (default: all on a GPU, one elsewhere)")
    usual = [name for name, row in PROTOCOLS.items() if row.looks == 1 and not lessons_of(name).settle]
    students.add_argument("--protocol", choices=usual, default="default", help="how they are trained; dsa: as DM published it")
    add_flags(parser, Protocol)
    args = parse_flags(parser, argv, but=("scored_on",))
    vars(args).update(dataclasses.asdict(from_flags(Continual, args)))
    args.labels = tuple(dict.fromkeys(args.labels))
    names = [memory.name.lower() for memory in args.memory]  # of folders, which some systems find by any case
    if len({*names}) < len(names):
        parser.error(f"--memory: two memories of {', '.join(names)} have one name: name them apart")
    inherit_data(args, args.output_dir / args.tag if args.resume else None)
    return args


def main(argv=None):
    args = parse_args(argv)
    accelerator = make_accelerator(args.precision)
    device = accelerator.device
    dataset = load_asked(args, accelerator, "cpu")
    spec = dataset.spec
    args.eval_model = args.eval_model or usual_classifier(spec.size)
    protocol = protocol_of(args, spec.name, args.eval_model)
    orders = [steps_of(class_order(index, spec.num_classes), args.steps) for index in range(args.orders)]
    check_classifiers([args.eval_model], spec, "--eval-model")
    stored = {memory.name: memory.check(args, dataset) for memory in args.memory}
    check_folder(vars(args))
    commands = {memory.name: memory.text for memory in args.memory}
    rows, known = resumed(args, commands, "continual")
    if not args.resume and all(stored.values()) and (args.replay_ipc or args.sampling != "fresh"):
        raise UserError("--replay-ipc and --sampling are of what a generator replays, and no --memory is one: leave them out")
    engine = Engine(accelerator)
    replayed = args.replay_ipc or args.ipc
    shown = args.num_eval * protocol.epochs * replayed * spec.num_classes * args.steps // 2  # images, by students of an order
    several = side_by_side(args.num_eval, device, engine, args.together) > 1  # of which none is compiled
    engine.choose(args.compile, 0 if several else shown * spec.size**2)
    run = Run(vars(args), accelerator, spec.num_classes if args.resume else 0, dataset=dataclasses.asdict(spec),
              students=dataclasses.asdict(protocol), sources=known)
    facts = {**facts_of_all(args, spec, args.eval_model, engine), "model": args.eval_model, "kin": "orders of the classes",
             "task": f"{args.steps} steps of new classes, scored on all seen so far; mean and interval over their orders"}

    rows = {key: {"flags": facts["flags"], **row} for key, row in rows.items()}  # whose reports of before say none

    def row_of(memory, kind, seen):
        """What tells the row of a step from others."""
        sampling, ipc = ("fixed", args.ipc) if stored[memory.name] else (args.sampling, replayed)
        return {"source": memory.name, "sampling": sampling, "ipc": ipc, "labels": kind, "teacher": LABELLINGS[kind].words,
                "classes": seen, **facts}

    def student_of(memory, step):
        return run.dir / "students" / f"{memory.name}-{step}"

    units = [(order, memory) for order in range(args.orders) for memory in args.memory]
    for order, memory in tqdm(units, "continual", unit="order", disable=not run.is_main):
        parts, pools, before, seen = [], [], None, []
        for step, classes in enumerate(orders[order]):
            name, seed = f"order{order}-step{step}", seed_of(args.seed, "order", order, "step", step)
            seen += classes
            missing = [row for row in (row_of(memory, kind, len(seen)) for kind in args.labels)
                       if rows.get(row_key(row), {"n": 0})["n"] <= order]
            if missing:
                memory.make(args, name, [args.classes[label] if args.classes else label for label in classes], seed)
                scored = dataset.of(seen).to(device)
            folder = memory.folder(args, name)
            parts.append(load_source(folder, device))
            forget(parts[-1])  # --labels says whose answers students learn
            if needs_pools(args.labels):
                pools.append(open_teacher(beside(made_by(folder)["pool_folder"], folder), device, engine))
            for row in missing:
                labelling, key = LABELLINGS[row["labels"]], row_key(row)
                chained = labelling.needs == "previous"
                previous = open_teacher(student_of(memory, before), device, engine) if chained and before else None
                source = labelling.join(parts, pools, previous)
                result = judge(source, scored, args.eval_model, row["ipc"], row["sampling"],
                               num_eval=args.num_eval, seed=first_seed(seed, args.scored_on), accelerator=accelerator,
                               together=args.together, protocol=protocol, scored_on=args.scored_on, engine=engine,
                               kept=student_of(memory, name) if chained else None)
                row = {**row, "bytes": source.stored_bytes(row["ipc"])}
                rows[key] = with_more_students(rows.get(key), order_row(row, result, rows.get(key)))
                run.log({f"accuracy/{memory.name}, {row['labels']}, order {order}": result.mean}, len(seen))
                if run.is_main:
                    write_json(run.dir / REPORT, [*rows.values()])
            before = name
    if run.is_main:
        write_report([*rows.values()], run.dir, run.commands, {})
    run.close()
    accelerator.print(f"{markdown([*rows.values()])}\nreport: {run.dir / 'report.html'}")


command = functools.partial(run_script, main)
"""What the installed command of this name runs."""

if __name__ == "__main__":
    command()
