"""Which teacher labels the images of an evaluation."""

from dataclasses import replace
from pathlib import Path

from gendistil.common.errors import UserError
from gendistil.common.run import made_by
from gendistil.evaluation.students import evaluate
from gendistil.sources import CHOICES, KINDS, RealImages, Taught, Teacher
from pools import ClassifierPool

SNAPSHOTS = ("last", "auto")
"""last: the mean logits of a pool's members at the end of their training; auto: for each number of images, the one snapshot
whose students score best on held-out images, because few images want a teacher that knows less."""

_TRIAL_EPOCHS = 60  # at most, of the student that tries a snapshot


def fits(kind, sampling):
    """Whether labels of this kind (one of `KINDS`) go with a way of sampling: rows with a set, a teacher with fresh images."""
    return kind == "hard" or (kind == "rows") == (sampling in CHOICES)


class Teachers:
    """The pool whose members label images, and which of them does.

    Args: path, the folder of a pool, None for the one that the first of `runs` (paths) was matched with; source, whose images
    the snapshots are tried on, for all sources alike; dataset; choice, one of `SNAPSHOTS`; temperature, of the labels; engine,
    an `Engine`; protocol and seed, of the students that try the snapshots.
    Raises UserError where there is no such pool, or one of other images.
    """

    def __init__(self, path, runs, source, dataset, *, choice, temperature, engine, protocol, seed):
        path = path or next((made["pool_folder"] for made in map(made_by, runs) if made.get("pool_folder")), None)
        if path is None:
            raise UserError("--labels: no run of --pretrain-weight names a pool of pretrained classifiers: give --teacher, the "
                            "folder of one (results/pools/...)")
        self.pool, self.path = ClassifierPool.open(path, dataset.train.images.device), Path(path)
        # Held-out images are no training images of a trial.
        self.tried_on = RealImages(dataset.train, dataset.spec.num_classes) if isinstance(source, RealImages) else source
        self.dataset, self.choice, self.temperature, self.engine = dataset, choice, temperature, engine
        self.protocol, self.seed = replace(protocol, epochs=min(protocol.epochs, _TRIAL_EPOCHS)), seed
        if not self.pool.learned_from(dataset.train):
            raise UserError(f"--teacher {path} has not learned from the training images of {dataset.spec.name} with this "
                            "--held-out, and those alone: name a pool that has")
        self._chosen, self._teachers, self._scores = {}, {}, {}

    def teach(self, source, kind, ipc, sampling):
        """`source` with labels of a kind, as students of `ipc` images of a class see it."""
        if kind == "hard":
            return source
        return Taught(source, self._teacher(self._choose(kind, ipc, sampling)), self.temperature, kind == "rows")

    def describe(self, source):
        """A taught source's teacher in words: its networks, what they score on the test images, and the temperature."""
        teacher = source.teacher
        if teacher.name not in self._scores:
            self._scores[teacher.name] = teacher.accuracy(self.dataset.test)
        return f"{teacher.name}, {self._scores[teacher.name]:.1f} % of the test images, temperature {self.temperature:g}"

    def _teacher(self, indices):
        if indices not in self._teachers:
            self._teachers[indices] = Teacher.of(self.pool, indices, self.engine)
        return self._teachers[indices]

    def _choose(self, kind, ipc, sampling):
        """Indices of the snapshots that answer."""
        if self.choice == "last":
            return tuple(self.pool.finished())
        if (kind, ipc) not in self._chosen:
            scores = {index: self._score(index, kind, ipc, sampling) for index in range(len(self.pool))}
            self._chosen[kind, ipc] = (max(scores, key=scores.get),)
        return self._chosen[kind, ipc]

    def _score(self, index, kind, ipc, sampling):
        taught = Taught(self.tried_on, self._teacher((index,)), self.temperature, kind == "rows")
        return evaluate(taught, self.dataset, "convnet", ipc, sampling, num_eval=1, seed=self.seed, scored_on="held_out",
                        protocol=self.protocol, engine=self.engine).mean


def kinds_of(names):
    """`names` of labels in the order in which a report shows them, hard ones first."""
    return [kind for kind in KINDS if kind in names]
