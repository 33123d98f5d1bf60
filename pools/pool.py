"""The pool: classifiers pretrained on the real images and kept, from early to late in their training, on disk."""

import copy
import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm

from gendistil.common.device import send
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.common.run import read_json, replacing, write_json
from gendistil.data import Augment, spec_of
from pools.base import Pool
from pools.classifiers import build_classifier
from pools.training import accuracy, calibrated, count_batches, embed_images, epoch_batches, train_classifier

_FORMAT = 1  # raise it when the same definition comes to mean other weights
_POOL, _STUDENT = "pool.json", "student.json"
_IN_MEMORY = 64  # networks: an expert pool has thousands
_FIRST_SNAPSHOT = 1 / 16  # of the training steps
_USUAL = {"momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "aug_single": False, "initial": False}


class _OtherFormat(UserError):
    """A pool of another version: sound, but not to be read."""


class ClassifierPool(Pool):
    """Snapshots of pretrained classifiers, `len(pool)` in all; `pool[i]` is one of them, on the device, frozen, in eval mode.

    Args:
        dataset: a `Dataset`; members learn from `train` and are scored on `held_out`.
        folder: the pool lies in a folder of its own inside, named by a hash of all that defines the pool, as pool.json and
            safetensors. A pool that is there already is used as it is; only members that miss a sound file are trained.
        accelerator: the Accelerate `Accelerator`; its main process trains and writes while the others wait.
        names: of classifiers, see `full_name`.
        members: networks of each name, different in weights and in order of the images.
        epochs, batch_size (images), lr, aug_type: of the pretraining; momentum, weight_decay, schedule, aug_single too, and
            initial, whether each member is also kept as it was before, which are part of what defines the pool where they are
            not those of `_USUAL`.
        snapshots: kept of each member, at steps that grow geometrically from a sixteenth of its training to all of it; or
            "epochs": before the first step and after each epoch, so that a member is a trajectory (MTT, arXiv 2203.11932).
        seed: of all draws.
        mix: whether `draw` gives networks between two snapshots of a member, whose weights are interpolated (NCFM,
            arXiv 2502.20653). It is no part of what defines the pool.
        options: keywords of `build_classifier` for a name, e.g. `{"convnet": {"width": 64}}`.
        engine: the `Engine` that runs what is trained (default: that of the accelerator); its precision, where that is not
            float32, is a part of what defines the pool.
        known: the folder of a pool that is taken, whatever the precision it was trained in, if it is this one in all else.
    Raises UserError for bad options and a folder that cannot be written.
    """

    mix = False

    def __init__(self, dataset, folder, accelerator, *, names=("convnet",), members=4, epochs=20, snapshots=5, batch_size=64,
                 lr=0.01, aug_type="color_crop_cutout_flip_scale_rotate", seed=0, options=None, mix=False,
                 engine=None, known=None, **training):
        self.mix = mix
        self._dataset, self._engine = dataset, engine or Engine(accelerator)
        definition = {
            "format": _FORMAT, "data": asdict(dataset.spec), "images": _fingerprint(dataset.train), "names": list(names),
            "members": members, "epochs": epochs, "snapshots": snapshots, "batch_size": batch_size, "lr": lr,
            "aug_type": aug_type, "seed": seed, "options": options or {},
            **{name: value for name, value in training.items() if value != _USUAL[name]},
            **_precision(self._engine),
        }
        definition = _as_known(definition, known) if known else definition
        self._describe(definition, Path(folder) / _digest(json.dumps(definition, sort_keys=True).encode()), dataset.spec,
                       accelerator.device)
        steps_per_epoch = count_batches(len(dataset.train), batch_size)
        self._steps = ([epoch * steps_per_epoch for epoch in range(epochs + 1)] if snapshots == "epochs"
                       else [0] * training.get("initial", False) + snapshot_steps(epochs * steps_per_epoch, snapshots))
        if mix and len(self._steps) < 2:
            raise UserError("--pool-mix interpolates between the snapshots of a network: give --pool-snapshots 2 or more, or "
                            "--pool-initial")
        if accelerator.is_main_process:
            try:
                self._pretrain(dataset)
            except OSError as error:
                raise UserError(f"the classifier pool {self.dir} cannot be written ({error.strerror}): choose another folder")
        accelerator.wait_for_everyone()
        self._rows = self._complete(self._record())

    @classmethod
    def open(cls, folder, device="cpu"):
        """The pool that lies in `folder`, as it is: without the images that it learned from, so it cannot `embed` them. A
        student that `keep_classifier` kept there is a pool of one.

        Raises UserError where there is neither, and for a pool of which members are still to be trained.
        """
        pool = cls.__new__(cls)
        pool.dir = Path(folder)
        if not pool._file().exists():
            raise UserError(f"{folder} holds no pool of classifiers: give --teacher, the folder of one (results/pools/...)")
        record = pool._record()
        try:
            pool._describe(record, pool.dir, spec_of(record["data"]), torch.device(device))
            pool._rows = pool._complete(record)
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{pool._file()} does not describe a pool: name a folder inside results/pools") from None
        return pool

    def _describe(self, definition, folder, spec, device):
        self.definition, self.dir, self.spec, self.device = definition, folder, spec, device
        self._members = [name for name in definition["names"] for _ in range(definition["members"])]
        self._models, self._mixed, self._looks, self._seen = {}, {}, Counter(), {}

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        model = self._models.pop(index) if index in self._models else self._load(index)
        self._models[index] = model  # behind those that were asked for before it
        if len(self._models) > _IN_MEMORY:
            del self._models[next(iter(self._models))]
        return model

    def _load(self, index):
        row = self._rows[index]
        model = self._build(row["member"])
        try:
            data = (self.dir / row["file"]).read_bytes()
            model.load_state_dict(safetensors.torch.load(data))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{self.dir / row['file']} holds no weights of a {row['name']} ({type(error).__name__}): name "
                            "another folder of classifiers, or make this one again") from None
        if _digest(data) != row["digest"]:
            raise UserError(f"{self.dir / row['file']} was replaced since this command began, perhaps by another that makes "
                            "the same pool: start again when that has ended")
        return model.to(self.device).eval().requires_grad_(False)

    def segment(self, generator, starts, epochs):
        """A piece of a member's trajectory, by the next draws of `generator`: networks `epochs` epochs apart.

        `starts` are the epochs, a range, at one of which it begins; all members and starts are equally likely. For
        snapshots="epochs".
        """
        member, place = (int(torch.randint(count, (), generator=generator, device=generator.device))
                         for count in (len(self._members), len(starts)))
        index = member * (self.definition["epochs"] + 1) + starts[place]
        return self._load(index), self._load(index + epochs)  # not kept: there are thousands

    def embed(self, network, rows, whole=False):
        """Embeddings of the training images `rows` (int64 [n]) as `network`, a member, sees them: [n, D], float16 as float32.

        Once a member has looked at as many images as there are, it looks at all of them, and what it saw stays beside its
        weights for whoever asks again. With `whole` it does so at once, so that last bits, which hang on what is seen together,
        are always the same.
        """
        images = self._dataset.train.images
        index = next((index for index, model in self._models.items() if model is network), None)
        if index is None:  # a network between two members
            return self._embed(network, images, rows)
        path = self.dir / f"{self._rows[index]['digest']}-{self._engine.precision}.npy"
        self._looks[index] += len(rows)
        if index not in self._seen and path.exists():
            try:
                self._seen[index] = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError):  # it was cut off
                path.unlink(missing_ok=True)
        if index not in self._seen:
            if self._looks[index] < (0 if whole else len(images)):
                return self._embed(network, images, rows)
            try:
                with replacing(path) as partial, partial.open("wb") as file:
                    np.save(file, self._embed(network, images).half().cpu().numpy())
            except OSError:  # no room: they are not kept then
                self._looks[index] = -math.inf
                return self._embed(network, images, rows)
            self._seen[index] = np.load(path, mmap_mode="r")
        return send(torch.from_numpy(self._seen[index][rows.cpu().numpy()]), self.device).float()

    def _embed(self, network, images, rows=None):
        return embed_images(network, images, self.spec, engine=self._engine, rows=rows).half().float()

    def last(self, generator):
        """A member at the end of its training, all equally likely, by the next draw of `generator`."""
        finished = self.finished()
        return self[finished[int(torch.randint(len(finished), (), generator=generator, device=generator.device))]]

    def learned_from(self, split):
        """Whether it was trained on just the images and labels of a `Split`."""
        return self.definition["images"] == _fingerprint(split)

    def finished(self):
        """The indices of the members at the end of their training."""
        last = max(row["step"] for row in self._rows)
        return [index for index, row in enumerate(self._rows) if row["step"] == last]

    def draw(self, generator):
        """A member and snapshot, all equally likely, or with `mix` any network between one and the member's next, by the next
        draws of `generator`."""
        finished = self.finished()
        first = [index for index in range(len(self)) if index not in finished] if self.mix else []
        index = int(torch.randint(len(first) or len(self), (), generator=generator, device=generator.device))
        if not first:
            return self[index]
        index, later = first[index], first[index] + 1
        member = self._rows[index]["member"]
        share = float(torch.rand((), generator=generator, device=generator.device))
        if member not in self._mixed:
            self._mixed[member] = self._build(member).to(self.device).eval().requires_grad_(False)
        for mixed, start, end in zip(*(x.state_dict().values() for x in (self._mixed[member], self[index], self[later]))):
            mixed.copy_(torch.lerp(start, end, share) if mixed.is_floating_point() else end)
        return self._mixed[member]

    def table(self):
        """One dict per snapshot, in index order: member, name, step, held_out_accuracy (per cent), file and its digest."""
        return [dict(row) for row in self._rows]

    def _build(self, member):
        name, spec = self._members[member], self.spec
        return build_classifier(name, spec.channels, spec.size, spec.num_classes,
                                generator=stream(self.definition["seed"], "pool", member, "weights"),
                                **self.definition["options"].get(name, {}))

    def _pretrain(self, dataset):
        """Train the members that lack a sound snapshot, and record each as soon as it is done.

        Another run may be making the same pool: what that has recorded meanwhile is taken over.
        """
        before = {row["digest"] for row in self._recorded()}
        rows = self._sound_rows()
        missing = [member for member in range(len(self._members)) if not self._is_whole(member, rows)]
        if not missing:
            return
        self.dir.mkdir(parents=True, exist_ok=True)
        dataset = dataset.to(self.device)
        with tqdm(total=len(missing) * self._steps[-1], desc="pretraining the pool", unit="step") as progress:
            for member in missing:
                rows += self._of_others(rows, before)
                if self._is_whole(member, rows):
                    progress.update(self._steps[-1])
                    continue
                rows = [row for row in rows if row["member"] != member] + self._train_member(member, dataset, progress)
                rows += self._of_others(rows, before)
                rows.sort(key=lambda row: (row["member"], row["step"]))
                write_json(self.dir / _POOL, {**self.definition, "snapshots": rows})

    def _is_whole(self, member, rows):
        """Whether the rows have all the snapshots of a member."""
        return [row["step"] for row in rows if row["member"] == member] == self._steps

    def _of_others(self, rows, before):
        """The recorded rows of members that `rows` do not have, but for those whose digests were there `before`."""
        known = {row["member"] for row in rows}
        return [row for row in self._recorded() if row["member"] not in known and row["digest"] not in before]

    def _train_member(self, member, dataset, progress):
        """Train one member, write its snapshots and return their rows."""
        settings, spec = {**_USUAL, **self.definition}, self.spec
        model = self._build(member).to(self.device)
        augment = Augment(settings["aug_type"], spec, settings["aug_single"])
        rows = []

        def batches(epoch):
            generator = stream(settings["seed"], "pool", member, "epoch", epoch)
            return epoch_batches(dataset.train.images, dataset.train.labels, spec, augment, settings["batch_size"], generator)

        def keep(step):
            if step in self._steps:
                name = re.sub(r"[^\w.-]+", "_", self._members[member])  # a file's name has no colons
                file = f"{member:02d}-{name}-{step:06d}.safetensors"
                shown = model if step else calibrated(copy.deepcopy(model), dataset.train, spec,
                                                      stream(settings["seed"], "pool", member, "calibration"))
                scored = accuracy(shown, dataset.held_out.images, dataset.held_out.labels, spec, engine=self._engine)
                rows.append({"member": member, "name": self._members[member], "step": step, "held_out_accuracy": scored,
                             "file": file, "digest": _write_weights(self.dir / file, shown)})

        def on_step(step):
            progress.update()
            keep(step)

        keep(0)
        train_classifier(model, batches, epochs=settings["epochs"], engine=self._engine, on_step=on_step, flag="--pool-lr",
                         **{name: settings[name] for name in ("lr", "momentum", "weight_decay", "schedule")})
        return [{**row, "held_out_accuracy": row["held_out_accuracy"].item()} for row in rows]

    def _file(self):
        """The file that describes it: pool.json, or the student.json of one that was a student."""
        return self.dir / (_STUDENT if (self.dir / _STUDENT).exists() else _POOL)

    def _record(self):
        """What its file holds. UserError for one that another version wrote."""
        record = read_json(self._file())
        if record.get("format", _FORMAT) != _FORMAT:
            raise _OtherFormat(f"the classifier pool {self.dir} has format {record['format']} and this version reads format "
                               f"{_FORMAT}: remove the folder, and it is trained again")
        return record

    def _recorded(self):
        """The rows of pool.json; none where there is no such file yet, or a damaged one."""
        try:
            return [row for row in self._record()["snapshots"] if {"member", "step", "file", "digest"} <= row.keys()]
        except _OtherFormat:
            raise
        except (UserError, KeyError, TypeError, AttributeError):
            return []

    def _sound_rows(self):
        """Those whose file is as it was written."""
        return [row for row in self._recorded() if (self.dir / row["file"]).is_file()
                and _digest((self.dir / row["file"]).read_bytes()) == row["digest"]]

    def _complete(self, record):
        """The rows of a record. UserError unless every member has as many."""
        rows = record["snapshots"]
        counts = Counter(row["member"] for row in rows)
        whole = sum(count == max(counts.values()) for count in counts.values())
        if whole < len(self._members):
            raise UserError(f"the pool {self.dir} is not complete: {whole} of its {len(self._members)} classifiers are there: "
                            "run the command that makes it again, or wait until that has ended")
        return rows


def keep_classifier(folder, model, name, dataset, *, seed, step, held_out_accuracy, real=None, **facts):
    """Keep a trained classifier in `folder`, as student.json and safetensors, so that `ClassifierPool.open` opens it.

    Args: name, by which `build_classifier` made it; dataset, the `Dataset` of its classes; seed; step, how many it took;
    held_out_accuracy, per cent; real, the `Split` that it, or the source of its images, learned from, None where
    that is not known; facts, what student.json also says.
    """
    folder.mkdir(parents=True)
    row = {"member": 0, "name": name, "step": step, "held_out_accuracy": held_out_accuracy, "file": "weights.safetensors",
           "digest": _write_weights(folder / "weights.safetensors", model)}
    write_json(folder / _STUDENT, {
        "format": _FORMAT, "data": asdict(dataset.spec), "images": _fingerprint(real) if real else None, "names": [name],
        "members": 1, "seed": seed, "options": {}, **facts, "snapshots": [row]})


def snapshot_steps(total, count):
    """`count` different steps up to `total`, growing geometrically from a sixteenth of it; only the last one if `count` is 1.

    Raises UserError if there are fewer steps than that.
    """
    if total < count:
        raise UserError(f"--pool-snapshots {count}: a classifier of the pool is trained for {total} steps only, which cannot "
                        "give so many: lower it, or give more --pool-epochs")
    steps = []
    for index in range(count):
        wanted = round(total * _FIRST_SNAPSHOT ** (1 - index / (count - 1))) if count > 1 else total
        earliest, latest = (steps[-1] if steps else 0) + 1, total - (count - 1 - index)
        steps.append(min(max(wanted, earliest), latest))
    return steps


def _precision(engine):
    """What the precision of its training adds to the definition of a pool: nothing for float32."""
    return {} if engine.precision == "no" else {"precision": engine.precision}


def _as_known(definition, folder):
    """`definition` in the precision of the pool in `folder`, if that is alike in all else."""
    try:
        found = json.loads((Path(folder) / _POOL).read_text())
    except (OSError, ValueError):
        return definition
    plain = lambda facts: {name: value for name, value in facts.items() if name not in ("precision", "snapshots")}
    if plain(found) != plain(json.loads(json.dumps(definition))):
        return definition
    own = {"precision": found["precision"]} if "precision" in found else {}
    return {**{name: value for name, value in definition.items() if name != "precision"}, **own}


def _digest(data):
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _fingerprint(split):
    """A digest of the images and labels of a `Split`."""
    digest = hashlib.blake2b(digest_size=16)
    for values in (split.images, split.labels):
        digest.update(values.cpu().contiguous().numpy())  # as it lies in memory: a copy of all images may be a gigabyte
    return digest.hexdigest()


def _write_weights(path, model):
    """Write the weights so that a reader sees all of the file or nothing, and return the digest of its bytes."""
    data = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    with replacing(path) as partial:
        partial.write_bytes(data)
    return _digest(data)
