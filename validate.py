"""Stage 3: judge what was distilled by the test accuracy of students trained on it.

    accelerate launch validate.py --tag test --pretrain-weight results/match
"""

import dataclasses
import functools

from accelerate.utils import gather_object
from tqdm import tqdm

from gendistil.common.cli import COUNT, Parser, add_data_arguments, add_run_arguments, run_script
from gendistil.common.device import make_accelerator
from gendistil.common.engine import Engine
from gendistil.common.files import write_json
from gendistil.common.flags import Flattened, add_flags, add_listing, columns, from_flags, given
from gendistil.common.hub import make_repository, repository
from gendistil.common.inherit import inherit_data, parse_flags
from gendistil.common.run import Run, check_folder
from gendistil.data import load_asked
from gendistil.evaluation import PROTOCOLS, SAMPLINGS, Protocol, evaluate, evaluate_full
from gendistil.evaluation.card import upload
from gendistil.evaluation.page import draw_sheets, find_sheets
from gendistil.evaluation.protocols import GROUP
from gendistil.evaluation.ranking import complete
from gendistil.evaluation.report import controls, write_report
from gendistil.evaluation.rows import PLAIN, REAL, REPORT, WHOLE, curve_of, row_key
from gendistil.evaluation.settings import (
    add_scored_on,
    check_students,
    count_pixels,
    facts_of_all,
    first_seed,
    full_protocol,
    names_its_row,
    resumed,
    with_more_students,
)
from gendistil.evaluation.students import lessons_of, settled, side_by_side
from gendistil.evaluation.tables import markdown
from gendistil.evaluation.teachers import Labels, distilled_from, keep_student, labels_of, student_name
from gendistil.evaluation.validation import (
    compared,
    kept_bytes,
    list_rows,
    load_sources,
    made_as,
    make_teachers,
    named_paths,
    real_images,
)
from gendistil.sources import Reading, Refinement, diversity, load_source
from pools import CLASSIFIERS, SETS, some_classifiers


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, "test")
    add_data_arguments(parser, whiten=True)
    what = parser.add_argument_group("what is judged")
    what.add_argument("--pretrain-weight", nargs="+", default=[], metavar="[NAME=]PATH",
                      help="runs' folders, saved models' folders, hub:OWNER/NAME, checkpoint files or sets of published code, "
                           "or folders with one of pictures for each class; NAME is what the report calls one, else its own")
    what.add_argument("--compare", nargs="*", choices=("random", "whole", "none"), default=None,
                      help=f"also judge {REAL} and the {WHOLE}, or one (default: none, but random beside a teacher's labels)")
    what.add_argument("--ranking", action="store_true", help="also train students without augmentation, and report the scores "
                      "of DD-Ranking, beside all real images and as many random ones: implies --compare")
    what.add_argument("--ipc", type=COUNT, nargs="+", default=[1, 10, 50], help="images per class: of stored ones the first")
    what.add_argument("--sampling", choices=SAMPLINGS, nargs="+", default=["fresh"],
                      help="fixed: a student sees one set of --ipc images of every class; representative: one chosen, by "
                           "clustering, among 500 of its class or more; fresh: a new one every epoch")
    add_scored_on(what)
    what.add_argument("--resume", action="store_true", help="continue the evaluation of this tag: what is there stays, "
                      "and what is missing is added: more --num-eval, --ipc, sources; flags left out stay, but --scored-on")
    what.add_argument("--push-to-hub", type=repository, metavar="OWNER/NAME",
                      help="then upload the one model of --pretrain-weight there, with the report as its card")
    add_flags(parser, Labels, Refinement, Reading)
    students = parser.add_argument_group(GROUP)
    students.add_argument("--eval-model", type=some_classifiers, action=Flattened, nargs="+", metavar="NAME",
                          help=f"kinds of students: {', '.join(CLASSIFIERS)}, torchvision:NAME or timm:NAME, each with options "
                               f"if need be (convnet:width=256,norm=batch), or sets of them: {', '.join(SETS)} (default: "
                               "convnet, from 64 pixels on convnet4)")
    students.add_argument("--num-eval", type=COUNT, default=3, help="students of each kind, which differ in their seed")
    students.add_argument("--together", type=COUNT, help="students trained side by side (default: all on a GPU, one elsewhere)")
    students.add_argument("--protocol", choices=PROTOCOLS, default="default", help="all but the default as published, scored "
                          "once, at the last step; dim: the best of five looks at the test set, and labelled so; replay: the "
                          "steps that --method dd learned its images for")
    students.add_argument("--full-epochs", type=COUNT,
                          help=f"passes over the {WHOLE} (default: the steps of the largest --ipc)")
    students.add_argument("--keep-students", action="store_true", help="keep the first student of every row, for --teacher; "
                          "what --compare shows has no held-out images, because a teacher must not have seen them")
    add_listing(students, "--list-protocols", functools.partial(columns, PROTOCOLS))
    add_flags(parser, Protocol)
    args = parse_flags(parser, argv, but=("scored_on",))
    args.ipc, args.sampling = (list(dict.fromkeys(values)) for values in (sorted(args.ipc), args.sampling))
    vars(args).update(dataclasses.asdict(labels_of(args)))
    complete(args)
    args.compare = compared(args)
    if not args.pretrain_weight and not args.compare:
        parser.error("nothing to judge: give --pretrain-weight PATH, or --compare for real images alone")
    if args.push_to_hub and len(args.pretrain_weight) != 1:
        parser.error(f"--push-to-hub uploads one model: give one --pretrain-weight, not {len(args.pretrain_weight)}")
    lessons = lessons_of(args.protocol)
    if not {*args.sampling} <= {*lessons.samplings} or (lessons.settle and (args.compare or given(Protocol, args))):
        parser.error(f"--protocol {args.protocol} {lessons.words}")
    return args


def main(argv=None):
    args = parse_args(argv)
    paths = named_paths(args)
    inherit_data(args, *paths.values())
    accelerator = make_accelerator(args.precision)
    device = accelerator.device
    dataset = load_asked(args, accelerator)
    protocols = check_students(args, dataset.spec)  # wrong names end here, before the run's folder is made
    real = functools.cache(functools.partial(real_images, args, dataset))  # a copy of all of them where held-out ones are in it
    sources, paths = load_sources(args, paths, dataset, real)
    check_folder(vars(args))
    rows, known = resumed(args, paths, stored=[name for name, source in sources.items() if not source.varies])
    made, against = made_as(paths, rows.values()), controls(known)
    plan, engine = list_rows(args, sources), Engine(accelerator)
    at_once = side_by_side(args.num_eval, device, engine, args.together)  # and of several none is compiled
    pixels = 0 if at_once > 1 else count_pixels(args, plan, protocols, dataset.spec)
    engine.choose(args.compile, pixels // accelerator.num_processes)
    teachers = make_teachers(args, known.values(), sources.values(), dataset, engine)
    if args.push_to_hub and accelerator.is_main_process:
        make_repository(args.push_to_hub)  # a refusal comes before the work, and after everything else that may be refused
    seen = max((row["ipc"] or 0 for row in rows.values()), default=0)  # entries of the log go by IPC
    run = Run(vars(args), accelerator, seen, dataset=dataclasses.asdict(dataset.spec), sources=known,
              students={model: dataclasses.asdict(protocol) for model, protocol in protocols.items()})
    facts = facts_of_all(args, dataset.spec, args.eval_model[0], engine) | {"seed": first_seed(args.seed, args.scored_on, rows)}
    rows = {key: {"flags": facts["flags"], **row} for key, row in rows.items()}  # whose reports of before say none

    units = [(row, first) for row in plan  # of work: some students of a row
             for first in range(rows.get(row_key(row), {"n": 0})["n"], args.num_eval, at_once)]
    if teachers:
        teachers.settle([row for row, _ in units], sources, args.sampling, run)

    @names_its_row
    def judge(row, first):
        settings = {"num_eval": min(at_once, args.num_eval - first), "seed": facts["seed"] + first, "engine": engine,
                    "together": at_once, "scored_on": args.scored_on, "on_epoch": lambda done, of: bar.update(1 / of)}
        protocol = protocols[row["model"]]
        if row.get("augmentation"):
            protocol = dataclasses.replace(protocol, aug_type=PLAIN, cutmix=0.0)
        if row["ipc"] is None:
            whole = full_protocol(args, protocol, dataset.spec, real(), plan, sources, rows.get(row_key(row)))
            result = evaluate_full(dataset, row["model"], split=real(), protocol=whole, **settings)
            return {**result.row(), **kept(row, first, result), "lr": whole.lr}
        source, ipc = sources[row["source"]], row["ipc"]
        taught = teachers.teach(source, row["labels"], ipc, row["sampling"], args.sampling) if teachers else source
        result = evaluate(taught, dataset, row["model"], ipc, row["sampling"], protocol=protocol, **settings)
        words = {} if taught is source else {"teacher": teachers.describe(taught)}
        return {**result.row(), **kept(row, first, result), **words, **kept_bytes(row, taught),
                "lr": settled(source, ipc, protocol).lr, "diversity": spread(row["source"], ipc),
                **made[row["source"]]}

    def kept(row, first, result):
        if not args.keep_students or first:
            return {}
        path, name = paths.get(row["source"]), student_name(plan.index(row), row)
        learned = distilled_from(path, dataset, args.held_out) if path else real()
        keep_student(run.dir / "students" / name, result, row["model"], dataset, learned, seed=facts["seed"], engine=engine,
                     student_of=row["source"], **{key: row[key] for key in ("sampling", "ipc", "labels")})
        return {"student": name}

    @functools.cache
    def spread(name, ipc):
        return diversity(sources[name], ipc, device)

    draw_sheets(run, sources, device)
    rounds = range(0, len(units), accelerator.num_processes)
    form = "validate: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=len(rounds), bar_format=form, disable=not run.is_main) as bar:
        for first in rounds:
            index = first + accelerator.process_index  # every process judges students of its own
            judged = [{**row, **facts, **judge(row, first)} for row, first in units[index:index + 1]]
            for row in gather_object(judged):
                rows[row_key(row)] = row = with_more_students(rows.get(row_key(row)), row)
                run.log({f"accuracy/{curve_of(row)}": row["mean"]}, row["ipc"] or 0)
            if run.is_main:
                write_json(run.dir / REPORT, [*rows.values()])
    if run.is_main:
        write_report([*rows.values()], run.dir, run.commands, find_sheets(rows.values(), run.dir), against)
    run.close()
    accelerator.print(f"{markdown([*rows.values()], against)}\nreport: {run.dir / 'report.html'}")
    if args.push_to_hub and run.is_main:
        path, = paths.values()
        source = load_source(path, reading=from_flags(Reading, args), spec=dataset.spec)  # not refined
        address = upload(args.push_to_hub, path, source, [*rows.values()], dataset.spec, args.held_out, run.commands)
        print(f"uploaded: {address}")


command = functools.partial(run_script, main)
"""What the installed command of this name runs."""

if __name__ == "__main__":
    command()
