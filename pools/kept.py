"""Trained classifiers that are kept in a folder: a record, pool.json or student.json, and their weights as safetensors."""

import hashlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from gendistil.common.errors import UserError
from gendistil.common.files import read_json, replacing, write_json
from gendistil.common.rng import stream
from gendistil.data import spec_of
from pools.classifiers import build_classifier

FORMAT = 1  # raise it when the same definition comes to mean other weights
POOL, STUDENT = "pool.json", "student.json"
_IN_MEMORY = 2**30  # bytes of weights: an expert pool has thousands of networks


class OtherFormat(UserError):
    """Kept by another version: sound, but not to be read."""


class KeptClassifiers:
    """Classifiers that are kept in a folder, `len(kept)` in all; `kept[i]` is one, on the device, frozen, in eval mode.

    Args: folder, `dir`; definition, what its record says, or will say, of all of them; spec, the `Spec` of the images that they
    see; device. Their rows are those of the record once `take` has been given it.
    """

    def __init__(self, folder, definition, spec, device):
        self.dir, self.definition, self.spec, self.device = Path(folder), definition, spec, torch.device(device)
        self._members = [name for name in definition["names"] for _ in range(definition["members"])]
        self._models, self._held, self._rows = {}, 0, []  # networks, their bytes, and what is known of all

    @staticmethod
    def open(folder, device="cpu", spec=None):
        """The `KeptClassifiers` of the pool in `folder`, or the one of the student that `keep_classifier` kept there.

        `spec` takes the place of the recorded one, which has no matrix to whiten images by. Raises UserError where neither is
        there, and for a pool of which members are still to be trained.
        """
        if not record_file(folder).exists():
            raise UserError(f"{folder} holds no pool of classifiers: give --teacher, the folder of one (results/pools/...)")
        record = read_record(folder)
        try:
            recorded = spec_of(record["data"])
            kept = KeptClassifiers(folder, record, spec or recorded, device)
            kept.take(record)
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{record_file(folder)} does not describe a pool: name a folder inside results/pools") from None
        return kept

    def take(self, record):
        """Take the rows of a record. Raises UserError unless every member has as many."""
        counts = Counter(row["member"] for row in record["snapshots"])
        whole = sum(count == max(counts.values()) for count in counts.values())
        if whole < len(self._members):
            raise UserError(f"the pool {self.dir} is not complete: {whole} of its {len(self._members)} classifiers are there: "
                            "run the command that makes it again, or wait until that has ended")
        self._rows = record["snapshots"]

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        model = self._models.pop(index, None)
        if model is None:
            model = self.load(index)
            self._held += _bytes_of(model)
        self._models[index] = model  # behind those that were asked for before it
        while self._held > _IN_MEMORY and len(self._models) > 1:
            self._held -= _bytes_of(self._models.pop(next(iter(self._models))))
        return model

    def load(self, index):
        """Member `index` from its file, and not kept in memory."""
        row = self._rows[index]
        model = self.build(row["member"])
        try:
            data = (self.dir / row["file"]).read_bytes()
            model.load_state_dict(safetensors.torch.load(data))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{self.dir / row['file']} holds no weights of a {row['name']} ({type(error).__name__}): name "
                            "another folder of classifiers, or make this one again") from None
        if digest_of(data) != row["digest"]:
            raise UserError(f"{self.dir / row['file']} was replaced since this command began, perhaps by another that makes "
                            "the same pool: start again when that has ended")
        return model.to(self.device).eval().requires_grad_(False)

    def build(self, member):
        """A member as it was before it learned, on the CPU."""
        name, spec = self._members[member], self.spec
        return build_classifier(name, spec.channels, spec.size, spec.num_classes,
                                generator=stream(self.definition["seed"], "pool", member, "weights"),
                                **self.definition["options"].get(name, {}))

    def table(self):
        """One dict per snapshot, in index order: member, name, step, held_out_accuracy (per cent), file and its digest."""
        return [dict(row) for row in self._rows]

    def finished(self):
        """The indices of the members at the end of their training."""
        last = max(row["step"] for row in self._rows)
        return [index for index, row in enumerate(self._rows) if row["step"] == last]

    def learned_from(self, split):
        """Whether they were trained on just the images and labels of a `Split`."""
        return self.definition["images"] == fingerprint(split)


def keep_classifier(folder, model, name, dataset, *, seed, step, held_out_accuracy, real=None, **facts):
    """Keep a trained classifier in `folder`, as student.json and safetensors, so that `KeptClassifiers.open` opens it.

    Args: name, by which `build_classifier` made it; dataset, the `Dataset` of its classes; seed; step, how many it took;
    held_out_accuracy, per cent; real, the `Split` that it, or the source of its images, learned from, None where
    that is not known; facts, what student.json also says.
    """
    folder.mkdir(parents=True)
    row = {"member": 0, "name": name, "step": step, "held_out_accuracy": held_out_accuracy, "file": "weights.safetensors",
           "digest": write_weights(folder / "weights.safetensors", model)}
    write_json(folder / STUDENT, {
        "format": FORMAT, "data": asdict(dataset.spec), "images": fingerprint(real) if real else None, "names": [name],
        "members": 1, "seed": seed, "options": {}, **facts, "snapshots": [row]})


def record_file(folder):
    """The file that describes what is kept in `folder`: pool.json, or the student.json of one that was a student."""
    return Path(folder) / (STUDENT if (Path(folder) / STUDENT).exists() else POOL)


def read_record(folder):
    """What that file holds. Raises UserError for one that another version wrote."""
    record = read_json(record_file(folder))
    if record.get("format", FORMAT) != FORMAT:
        raise OtherFormat(f"the classifier pool {folder} has format {record['format']} and this version reads format {FORMAT}: "
                          "remove the folder, and it is trained again")
    return record


def _bytes_of(model):
    return sum(value.nbytes for value in model.state_dict().values())


def digest_of(data):
    """A name for these bytes: text."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def fingerprint(split):
    """A digest of the images and labels of a `Split`: text."""
    digest = hashlib.blake2b(digest_size=16)
    for values in (split.images, split.labels):
        digest.update(values.cpu().contiguous().numpy())  # as it lies in memory: a copy of all images may be a gigabyte
    return digest.hexdigest()


def write_weights(path, model):
    """Write the weights so that a reader sees all of the file or nothing, and return the digest of its bytes."""
    data = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    with replacing(path) as partial:
        partial.write_bytes(data)
    return digest_of(data)
