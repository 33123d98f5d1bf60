"""Export a distilled set: IPC images of every class as pictures, as one tensor file and as a contact sheet.

    python sample.py --pretrain-weight results/match --ipc 10 --seed 0 --output-dir results/set

The seed names the set: the same command writes the same bytes. (It always draws on the CPU, because a GPU may round otherwise
from one run to the next.)
"""

import functools
import json
import os
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.utils import make_grid
from tqdm import tqdm

from gendistil.common.cli import COUNT, SEED, Parser, run_script, say
from gendistil.common.errors import UserError
from gendistil.common.files import replacing, writing
from gendistil.common.flags import add_flags, from_flags, given
from gendistil.common.run import made_by, same_moments
from gendistil.data.folders import folder_names, same_classes
from gendistil.evaluation.ranking import RankingExport
from gendistil.sources import (
    CHOICES,
    SET,
    Reading,
    Refined,
    Refinement,
    Taught,
    Teacher,
    balanced_labels,
    check_fits,
    check_read,
    draw_set,
    file_of_set,
    load_source,
    refine,
)
from pools import KeptClassifiers

DDRANKING, PIPELINE = "ddranking", "pipeline"
_SHEET = "sheet.png"
_REPLACED = ("images", DDRANKING, PIPELINE)


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--pretrain-weight", type=Path, required=True, metavar="PATH",
                        help="a run's folder, a saved model's folder, hub:OWNER/NAME, a checkpoint file or a set of "
                             "published code, or a folder with pictures of each class in a folder")
    parser.add_argument("--ipc", type=COUNT, default=10, help="images per class")
    parser.add_argument("--seed", type=SEED, default=0,
                        help="name of the set: another seed, other images, but of stored ones; student i of validate.py "
                             "--sampling fixed learns from that of its --seed + i")
    parser.add_argument("--sampling", choices=CHOICES, default="fixed",
                        help="representative: chosen among 500 or more of each class by clustering them")
    parser.add_argument("--teacher", type=Path, metavar="FOLDER",
                        help="also keep, as float16 `logits` in set.safetensors, what the classifiers in this folder answer to "
                             "every image: a student that validate.py kept, or the mean of a pool's members at the end of "
                             "their training (default: the rows that a run keeps with its images, if it does)")
    parser.add_argument("--format", choices=("pictures", DDRANKING, PIPELINE), default="pictures",
                        help="ddranking: also a folder of that name with what the package ddranking 0.2.0 takes, for the data "
                             "sets that it knows; pipeline: with a flow itself, as a pipeline of diffusers")
    add_flags(parser, Refinement, Reading)
    parser.add_argument("--output-dir", type=Path, default=Path("results/set"), help="folder for images/, set.safetensors "
                        "and sheet.png; an earlier set there is replaced")
    return parser.parse_args(argv)


def describe(path, source):
    """What is known of the data set that the source at `path` was distilled from: a dict with `classes` at least."""
    spec, count = source.facts or made_by(path).get("dataset"), source.num_classes
    if isinstance(spec, dict) and len(spec.get("classes", ())) == count:
        return spec
    return {"classes": [f"{label:0{len(str(count - 1))}d}" for label in range(count)]}


def open_teacher(weight, facts, folder):
    """The pool, or the kept student, in `folder`, which is to answer for images of `weight`, of which `describe` knows `facts`.

    Raises UserError for one of other images, or of images that are not known.
    """
    pool = KeptClassifiers.open(folder)
    spec = pool.spec
    if pool.definition["images"] is None:
        raise UserError(f"--teacher {folder} was a student of images that are not known: name a pool, or another student")
    same = list(spec.classes) == facts["classes"] and same_moments(facts, vars(spec)) is not False
    if same_classes(facts["classes"], spec.classes) not in (None, [*range(spec.num_classes)]):
        raise UserError(f"{folder} has learned the classes of --pretrain-weight {weight} in another order: name another "
                        "--teacher")
    if "name" in facts and not same:
        raise UserError(f"{folder} has learned from images of {spec.name}, and not from those of {facts['name']} that "
                        f"--pretrain-weight {weight} was distilled from: give --teacher, a folder of classifiers that have")
    return pool


def to_picture(image):
    """A uint8 tensor [C, H, W] as a PIL image."""
    return Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).contiguous().numpy())


def write_pictures(folder, by_class, classes):
    """Write images uint8 [K, n, C, H, W] as PNG files, in a folder for each of the named classes."""
    for name, members in zip(folder_names(classes), tqdm(by_class, "sample", unit="class")):
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(members):
            to_picture(image).save(folder / name / f"{index:05d}.png")


def contact_sheet(by_class):
    """The first ten images of every class of uint8 [K, n, C, H, W], a row each, as a PIL image; tiny ones in larger pixels."""
    columns, zoom = min(by_class.shape[1], 10), max(1, 32 // by_class.shape[-1])
    shown = by_class[:, :columns].flatten(0, 1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return to_picture(make_grid(shown, nrow=columns, padding=2))


def prepare(folder, inputs):
    """Make the output folder. Raises UserError where a set cannot be written, or would take the place of what is none, or of
    one of the paths `inputs`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir {folder} cannot be made ({error.strerror}): name another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--output-dir {folder} cannot be written: name another folder")
    for name in (*_REPLACED, _SHEET, SET):
        if (folder / name).exists() and not (folder / SET).exists():
            raise UserError(f"--output-dir {folder} holds {name}, and no earlier set: name another folder")
        for path in filter(None, inputs):
            if (folder / name).resolve() in (path.resolve(), *path.resolve().parents):
                raise UserError(f"--output-dir {folder}: {path} would be removed with the earlier set: name another folder")


def main(argv=None):
    args = parse_args(argv)
    source = load_source(args.pretrain_weight, reading=from_flags(Reading, args))
    check_read(args, [source])
    if source.channels not in (1, 3):
        raise UserError(f"--pretrain-weight {args.pretrain_weight} makes images of {source.channels} channels: "
                        "pictures are grey or RGB")
    facts = describe(args.pretrain_weight, source) | {"seed": args.seed, "ipc": args.ipc, "sampling": args.sampling}
    if args.format == PIPELINE and not hasattr(source, "as_pipeline"):
        raise UserError(f"--format pipeline is for a flow, and --pretrain-weight {args.pretrain_weight} is none: name a run of "
                        "gen_condense.py --recipe flow or shortcut")
    if "whitening" in facts:
        say("the pictures are plain ones, learned for networks that see them whitened: whiten them as --whiten zca does")
    flow = source if args.format == PIPELINE else None
    export = RankingExport(facts, source) if args.format == DDRANKING else None
    tensors, teacher = {}, source.rows
    opened = functools.partial(open_teacher, args.pretrain_weight, dict(facts))
    if args.teacher:
        teacher = Teacher.of(opened(args.teacher))
        check_fits(source, teacher.spec, f"--pretrain-weight {args.pretrain_weight}", "name another --teacher")
    source = refine(source, args.pretrain_weight, opened, given(Refinement, args), args.teacher)
    if isinstance(source, Refined):
        facts["refined"] = source.refinement.words
    rates = torch.as_tensor(0.0 if source.step_size is None else source.step_size)
    if source.step_size is not None and (not rates.dim() or (args.ipc, args.sampling) == (source.max_ipc, "fixed")):
        facts["step_size"] = rates.tolist()  # several are of all its images in their order
    if args.ipc > (source.max_ipc or args.ipc):
        raise UserError(f"{args.pretrain_weight} has {source.max_ipc} images of a class, fewer than {args.ipc}: lower --ipc")
    prepare(args.output_dir, (args.pretrain_weight, file_of_set(args.pretrain_weight), args.teacher))
    drawn = Taught(source, teacher, None, stored=True) if teacher else source
    images, targets = draw_set(drawn, args.ipc, args.seed, choice=args.sampling)
    if teacher:
        facts["teacher"], tensors["logits"] = teacher.name, targets.half()
        targets = balanced_labels(source.num_classes, source.decoded(args.ipc))
    with replacing(args.output_dir / SET) as partial, writing(args.output_dir / SET):
        # One entry of metadata, because the file keeps several in no particular order.
        save_file({"images": images, "labels": targets, **tensors}, partial,
                  metadata={"set": json.dumps(facts, sort_keys=True)})
    for name in _REPLACED:  # of an earlier set, which stays where this one cannot be drawn or has no room
        shutil.rmtree(args.output_dir / name, ignore_errors=True)
    by_class = images.unflatten(0, (source.num_classes, -1))  # K,N,C,H,W
    write_pictures(args.output_dir / "images", by_class, facts["classes"])
    if flow:
        drawing = source.refinement.sampling if isinstance(source, Refined) else {}
        if isinstance(source, Refined) and (source.refinement.noise_std != 1 or source.teacher):
            say("the pipeline draws images as they are: it has no --noise-std and no --keep-above")
        flow.as_pipeline(**drawing).save_pretrained(args.output_dir / PIPELINE)
    if export:
        learned = source.soft and not args.teacher
        export.write(args.output_dir / DDRANKING, args.ipc, images, targets, tensors.get("logits"), learned)
    contact_sheet(by_class).save(args.output_dir / _SHEET)
    print(f"{len(targets)} images: {args.output_dir}")


command = functools.partial(run_script, main)
"""What the installed command of this name runs."""

if __name__ == "__main__":
    command()
