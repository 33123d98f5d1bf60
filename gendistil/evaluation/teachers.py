"""Which teacher labels the images of an evaluation, and the students that are kept to be teachers."""

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate.utils import broadcast_object_list

from gendistil.common.cli import POSITIVE, say
from gendistil.common.errors import UserError
from gendistil.common.flags import from_flags, option, refuse
from gendistil.common.rng import seed_of
from gendistil.common.run import amend, beside, made_by, short
from gendistil.data import Whitened
from gendistil.evaluation.rows import OWN_LABELS, unique
from gendistil.evaluation.students import SAMPLINGS, evaluate
from gendistil.sources import CHOICES, KINDS, RealImages, Rows, Taught, Teacher, draw_set, load_source
from pools import KeptClassifiers, accuracy, keep_classifier, usual_classifier

SNAPSHOTS = ("last", "auto")
"""last: the mean logits of a pool's members at the end of their training; auto: for each IPC and sampling the one snapshot
whose students score best on held-out images, because few images want a teacher that knows less."""

_TRIAL_EPOCHS = 60  # of the student that tries a snapshot, unless the protocol has fewer or asks for more steps
_GROUP = "labels"


@dataclass(frozen=True)
class Labels:
    """What students learn to answer, hard labels first, and whose answers these are.

    Without `own`, labels and step sizes that were learned with images are left out.
    """

    labels: tuple = option("hard: the classes' own (the default); rows: with --sampling fixed or representative, one row of a "
                           "teacher's logits for every image; teacher: the teacher stays, and answers to every image as the "
                           "student sees it", ("hard",),
                           choices=KINDS, nargs="+", group=_GROUP)
    teacher: Path | None = option("the folder of a pool of pretrained classifiers, whose mean logits are the labels, or of a "
                                  "student that --keep-students kept (default: the rows that a run keeps with its images, "
                                  "else the pool that the first of the runs was matched with)", None, type=Path,
                                  metavar="FOLDER", group=_GROUP)
    teacher_snapshots: str = option("last (the default): a pool's members at the end of their training; auto: for each --ipc "
                                    "and --sampling the snapshot that is best on held-out images", "last", choices=SNAPSHOTS,
                                    group=_GROUP)
    own: bool = option("students take the labels and the step size that a source was learned with, where it has them; --lr "
                       "takes the place of the step size", True, group=_GROUP)
    temperature: float = option("by which a teacher's logits are divided (default: 2)", 2.0, type=POSITIVE, group=_GROUP)


def labels_of(args):
    """The `Labels` that the flags name, hard ones first. Raises UserError for flags that do not go together."""
    labels = from_flags(Labels, args)
    for kind in labels.labels:
        if not any(fits(kind, sampling) for sampling in args.sampling):
            raise UserError(f"--labels {kind} needs --sampling fixed or representative")
    if set(labels.labels) == {"hard"}:
        used = ("labels", "own") if args.keep_above is None else ("labels", "own", "teacher")
        why = "is for labels of a teacher: add --labels rows or teacher"
        refuse(args, (Labels,), lambda field: field.name not in used, why)
    if labels.teacher_snapshots == "auto" and len(args.sampling) > 1:
        say("--teacher-snapshots auto may choose another snapshot for each --sampling; random real images have one alone: to "
            "compare with them, give one --sampling at a time")
    return replace(labels, labels=tuple(kind for kind in KINDS if kind in labels.labels))


def fits(kind, sampling):
    """Whether labels of this kind (one of `KINDS`) go with a way of sampling: rows belong to the images of a set."""
    return kind != "rows" or sampling in CHOICES


def open_pool(path, dataset):
    """The pool, or the student as a pool of one, in the folder `path`, on the device of a `Dataset`.

    Raises UserError unless there is one that has learned from the training images alone. One that has also seen held-out images
    could not be chosen by them, nor choose by them.
    """
    pool = KeptClassifiers.open(path, dataset.train.images.device, dataset.spec)
    if not pool.learned_from(dataset.train):
        raise UserError(f"--teacher {path} has not learned from the training images of {dataset.spec.name} with this "
                        "--held-out, and those alone: name a pool, or a student, that has")
    whitened = "whitening" in pool.definition["data"]
    if whitened != isinstance(dataset.spec, Whitened):
        seen = "whitened images" if whitened else "images that are not whitened"
        raise UserError(f"--teacher {path} has learned from {seen}: give the same --whiten, or name another")
    return pool


def named_teachers(runs):
    """The folders of the classifiers that runs, by their paths, were labelled by, or else matched with: a list."""
    named = ([beside(made_by(run).get(name), run) for name in ("teacher", "pool_folder")] for run in runs)
    return unique(filter(None, (labelled or matched for labelled, matched in named)))


def keep_rows(folder, teacher, dataset):
    """Keep what a `Teacher` answers to each of the stored images of the model in `folder`, beside its weights."""
    device = dataset.train.images.device
    source = load_source(folder, device)
    images, _ = draw_set(source, source.max_ipc, 0, device)
    values = teacher.logits(images).half().unflatten(0, (source.num_classes, -1))
    Rows(values, teacher.name, teacher.accuracy(dataset.held_out), networks=teacher.weights).save(folder)


class Teachers:
    """The classifiers that label images, and which of them does.

    Args: labels, a `Labels`; runs, paths, the first of which that names a pool says the default one; sources, to be labelled,
    on the first of which that has enough images the snapshots are tried, for all alike, else on real ones; dataset; engine, an
    `Engine`; protocol and seed, of the students that try the snapshots; chosen, see `settle`.
    Rows that a source keeps label it unless `labels` names a teacher or wants one chosen. Raises UserError where a pool is
    needed and there is none, or one of other images.
    """

    def __init__(self, labels, runs, sources, dataset, *, engine, protocol, seed, chosen=None):
        self.labels, self.dataset, self.engine = labels, dataset, engine
        self.protocol = replace(protocol, epochs=min(protocol.epochs, _TRIAL_EPOCHS))
        self.seed = seed_of(seed, "teacher's trial")  # none of the students that are reported
        self._chosen, self._teachers, self._scores = {}, {}, {}
        self.sources, self.pool = list(sources), None
        if "teacher" not in labels.labels and all(map(self._keeps_rows, self.sources)):
            return
        named = [labels.teacher] if labels.teacher else named_teachers(runs)
        if not named:
            raise UserError("--labels: no run of --pretrain-weight names a pool of pretrained classifiers: give --teacher, the "
                            "folder of one (results/pools/...)")
        path, *others = named
        if others:
            say(f"{path} labels what keeps no rows; other runs of --pretrain-weight name {', '.join(map(str, others))} "
                "(--teacher chooses)")
        self.pool = open_pool(path, dataset)
        self._chosen = {tuple(wanted): tuple(indices) for wanted, indices, pool in chosen or () if pool == self.pool.dir.name}

    def teach(self, source, kind, ipc, sampling, asked=SAMPLINGS):
        """`source` with labels of a kind, as students of `ipc` images of a class see it.

        `asked` are the values of --sampling. Where `sampling` is none of them, as of fixed real images beside fresh ones, the
        teacher is that of fresh images.
        """
        if kind in ("hard", OWN_LABELS):
            return source
        kept = kind == "rows" and self._keeps_rows(source)
        teacher = source.rows if kept else self._teacher(self._choose(kind, ipc, sampling if sampling in asked else "fresh"))
        return Taught(source, teacher, self.labels.temperature, kind == "rows")

    def settle(self, rows, sources, asked, run):
        """Choose the teachers of `rows` of a report, dicts, by one process for all, and keep in the config of their `Run` what
        to give as `chosen` when that goes on: by other sources, or on another device, others might be chosen.

        Args: sources, by the names in the rows; asked, see `teach`.
        """
        if run.is_main:
            for row in rows:
                if row["labels"] in ("rows", "teacher"):
                    self.teach(sources[row["source"]], row["labels"], row["ipc"], row["sampling"], asked)
        self._chosen, = broadcast_object_list([self._chosen])
        if run.is_main and self._chosen:
            amend(run.dir, teachers_chosen=[[*chosen, self.pool.dir.name] for chosen in self._chosen.items()])

    def describe(self, source):
        """A taught source's teacher in words: its networks, what they score on the held-out images, and the temperature."""
        teacher = source.teacher
        if isinstance(teacher, Rows):
            score = teacher.held_out_accuracy
        else:
            networks = tuple(teacher.weights)
            if networks not in self._scores:
                kept = (rows for rows in (source.rows for source in self.sources if self._keeps_rows(source))
                        if rows.of(teacher))  # one teacher has one score, and measured again it may be another decimal
                rows = next(kept, None)
                self._scores[networks] = rows.held_out_accuracy if rows else teacher.accuracy(self.dataset.held_out)
            score = self._scores[networks]
        known = "" if score is None else f", {score:.1f} % of the held-out images"  # it is not of what sample.py has written
        words = f"{teacher.name}{known}, temperature {self.labels.temperature:g}"
        return words if source.stored else f"{words}, asked about images as students see them"

    def _keeps_rows(self, source):
        """Whether the rows that a source keeps are its labels."""
        given = self.labels.teacher is not None or self.labels.teacher_snapshots != "last"
        return source.rows is not None and not source.soft and not given

    def _teacher(self, indices):
        if indices not in self._teachers:
            self._teachers[indices] = Teacher.of(self.pool, indices, self.engine)
        return self._teachers[indices]

    def _choose(self, kind, ipc, sampling):
        """Indices of the snapshots that answer."""
        if self.labels.teacher_snapshots == "last":
            return tuple(self.pool.finished())
        wanted = (kind, ipc, sampling)
        if wanted not in self._chosen:
            scores = {index: self._score(index, *wanted) for index in range(len(self.pool))}
            self._chosen[wanted] = (max(scores, key=scores.get),)
        return self._chosen[wanted]

    def _tried_on(self, ipc):
        """The source of the students that try the snapshots for so many images of a class, and how many they get."""
        source = next((source for source in self.sources if ipc <= (source.max_ipc or ipc)), None)
        if source is None or isinstance(source, RealImages):  # held-out images are no training images of a trial
            source = RealImages(self.dataset.train, self.dataset.spec.num_classes)
        return source, min(ipc, source.max_ipc or ipc)

    def _score(self, index, kind, ipc, sampling):
        source, ipc = self._tried_on(ipc)
        taught = Taught(source, self._teacher((index,)), self.labels.temperature, kind == "rows")
        return evaluate(taught, self.dataset, usual_classifier(self.dataset.spec.size), ipc, sampling, num_eval=1,
                        seed=self.seed, scored_on="held_out", protocol=self.protocol, engine=self.engine).mean


def distilled_from(path, dataset, held_out):
    """The real images that the run at `path` learned from, a `Split`: those of `dataset.train`, held_out being their fraction
    that is left out, or None where its config does not say that it is they."""
    made, spec = made_by(path), json.loads(json.dumps(asdict(dataset.spec)))
    return dataset.train if (made.get("dataset"), made.get("held_out")) == (spec, held_out) else None


def student_name(place, row):
    """What the folder of the first student of a report's row, a dict, is called, by the row's place in the report."""
    words = (f"{place:02d}", row["source"], row["sampling"], row["ipc"] and f"ipc{row['ipc']}", row["model"], row["labels"],
             row.get("augmentation") and "unaugmented")
    return short(re.sub(r"[^\w.-]+", "_", "-".join(filter(None, words))))


def keep_student(folder, result, model_name, dataset, real=None, *, seed, engine, **facts):
    """Keep the first student of a `Result` in `folder`, in place of what an interrupted run may have left there.

    Args: real, the `Split` that its images come from, None where that is not known; facts, what is kept beside it.
    """
    split = dataset.held_out
    score = float(accuracy(result.student, split.images, split.labels, dataset.spec, engine=engine))
    shutil.rmtree(folder, ignore_errors=True)
    keep_classifier(folder, result.student, model_name, dataset, seed=seed, step=result.steps, held_out_accuracy=score,
                    real=real, **facts)
