"""Labels of a teacher in place of the classes' own: what a classifier of the real images answers to the images of a source."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gendistil.common.engine import EAGER
from gendistil.common.errors import UserError
from gendistil.common.files import replacing, writing
from gendistil.common.source import ROWS, Source, index_within_class
from gendistil.data import Whitened, restandardise, standardise, to_signed, to_uint8
from pools.training import answers

KINDS = ("hard", "rows", "teacher")
"""hard: the classes' own labels; rows: one row of a teacher's logits is kept with every image of a set; teacher: the teacher is
kept and answers to every image as a student sees it."""

LEARNED_LABELS = "learned with the images"
"""What `Rows` are called that no teacher answered."""

_AT_ONCE = 512


class Teacher:
    """Classifiers of a data set whose mean logits are the labels of whatever images they are shown.

    Args: networks, a list, in eval mode and frozen; spec, the data set's `Spec`; name, what a report calls it; engine, an
    `Engine`; digests, of the networks' weights. `weights` holds the bytes of each network by its digest. Raises UserError for
    whitened images whose matrix is not there.
    """

    def __init__(self, networks, spec, name, engine=EAGER, digests=None):
        if isinstance(spec, Whitened):
            spec.check()
        self.networks, self.spec, self.name, self.engine = networks, spec, name, engine
        sizes = [sum(value.nbytes for value in network.state_dict().values()) for network in networks]
        self.weights = dict(zip(digests or map(id, networks), sizes))

    @classmethod
    def of(cls, pool, indices=None, engine=EAGER):
        """The members of `KeptClassifiers` at the end of their training, or those at `indices`."""
        indices, table = pool.finished() if indices is None else indices, pool.table()
        alike = [(row["name"], row["step"]) for row in table]
        taken = [alike[index] for index in indices]
        words = " and ".join(
            f"{table[index]['name']} of step {table[index]['step']}"
            + (f", member {table[index]['member']}" if alike.count(alike[index]) > taken.count(alike[index]) else "")
            for index in indices)
        words += f", a student of {pool.definition['student_of']}" if "student_of" in pool.definition else ""
        return cls([pool[index] for index in indices], pool.spec, words, engine, [table[index]["digest"] for index in indices])

    @torch.no_grad()
    def logits(self, images, labels=None):
        """uint8 images [N, C, H, W] -> float32 [N, K], whatever their labels."""
        return torch.cat([self.look(standardise(to_signed(batch), self.spec), self.spec) for batch in images.split(_AT_ONCE)])

    @torch.no_grad()
    def look(self, batch, spec):
        """Images [B, C, H, W] that `spec` standardised -> float32 [B, K]."""
        batch = restandardise(batch, spec, self.spec)
        return sum(answers(network, batch, self.engine) for network in self.networks) / len(self.networks)

    def accuracy(self, split):
        """Percentage of a `Split` that it classifies as it should: a float."""
        return float((self.logits(split.images).argmax(1) == split.labels).float().mean() * 100)


class Rows:
    """A teacher's logits that were kept with stored images: what a `Teacher` is, for these images alone.

    Args: values, [K, m, K], of the m decoded images of every class in their order, kept as float16; name, what a report calls
    the teacher; held_out_accuracy, the percentage of the held-out images that it classified as it should, None where there was
    no teacher; learned, whether they were learned with the images, of which they are then the labels; networks, the digests of
    the teacher's.
    """

    def __init__(self, values, name, held_out_accuracy, learned=False, networks=()):
        self.values, self.name, self.held_out_accuracy, self.learned = values, name, held_out_accuracy, learned
        self.networks = tuple(networks)

    def of(self, teacher):
        """Whether they are answers of this `Teacher`."""
        return self.networks == tuple(teacher.weights)

    @classmethod
    def load(cls, folder, source, device="cpu"):
        """Those in the folder that `source` was saved in, or None. Raises UserError for a file without rows of its images."""
        path = Path(folder) / ROWS
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                rows = cls(file.get_tensor("logits"), **json.loads(file.metadata()["teacher"]))
            if rows.values.shape != (source.num_classes, source.decoded(source.max_ipc), source.num_classes):
                raise ValueError("rows of other images")
            return rows
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} holds no rows of these images ({type(error).__name__}): remove it, and name a "
                            "--teacher") from None

    def save(self, folder):
        """Write them beside the weights in `folder`; a reader sees the whole file or none."""
        facts = {"name": self.name, "held_out_accuracy": self.held_out_accuracy, "learned": self.learned,
                 "networks": self.networks}
        with replacing(Path(folder) / ROWS) as partial, writing(Path(folder) / ROWS):
            save_file({"logits": self.values.half().cpu().contiguous()}, partial, metadata={"teacher": json.dumps(facts)})

    def logits(self, images, labels):
        """The rows of the stored images of `labels` int64 [N], each its class's next one: float32 [N, K]."""
        return self.values[labels, index_within_class(labels)].half().float()


class Taught(Source):
    """A source whose images students answer to as a teacher does, softened by a temperature: float [B, K] that sum to 1.

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015). Images, their number and the step size are those of
    `source`; teacher is a `Teacher` or `Rows`; temperature None leaves the logits as they are; stored says that what is kept of
    the teacher is a float16 row of logits for every image, which are its targets. Else the teacher itself is kept, and
    `answers` asks it about every image as the student sees it (Beyer et al., "Knowledge distillation: a good teacher is patient
    and consistent", 2022); targets are those of `source` until then.
    """

    def __init__(self, source, teacher, temperature, stored):
        self.source, self.teacher, self.temperature, self.stored = source, teacher, temperature, stored
        self.num_classes, self.channels, self.size = source.num_classes, source.channels, source.size
        self.max_ipc, self.step_size, self.varies = source.max_ipc, source.step_size, source.varies

    def sample(self, labels, seed=0):
        return self.source.sample(labels, seed)

    def targets(self, labels, seed=0, images=None):
        if not self.stored:
            return self.source.targets(labels, seed, images)
        logits = self.teacher.logits(to_uint8(self.sample(labels, seed)) if images is None else images, labels)
        return self._soften(logits.half().float())

    @property
    def answers(self):
        return None if self.stored else self._answers

    def _answers(self, batch, targets, spec):
        return self._soften(self.teacher.look(batch, spec))

    def _soften(self, logits):
        return logits if self.temperature is None else (logits / self.temperature).softmax(1)

    def decoded(self, ipc):
        return self.source.decoded(ipc)

    def stored_bytes(self, ipc):
        """Those of the source without labels of its own, and the rows or the teacher, unless the source keeps it already."""
        images = self.source.stored_bytes(ipc) - self.source.label_bytes(ipc)
        if self.stored:
            return images + 2 * self.num_classes * self.num_classes * self.decoded(ipc)
        return images + sum(size for digest, size in self.teacher.weights.items() if digest not in self.source.classifiers)
