"""The pool: classifiers pretrained on the real images and kept, from early to late in their training, on disk."""

import copy
import json
import math
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from gendistil.common.device import send
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.files import replacing, write_json
from gendistil.common.rng import stream
from gendistil.data import Augment
from pools.base import Pool
from pools.kept import FORMAT, POOL, KeptClassifiers, OtherFormat, digest_of, fingerprint, read_record, write_weights
from pools.training import accuracy, calibrated, count_batches, embed_images, epoch_batches, train_classifier

_FIRST_SNAPSHOT = 1 / 16  # of the training steps
_USUAL = {"momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "aug_single": False, "initial": False}


class ClassifierPool(KeptClassifiers, Pool):
    """Snapshots of pretrained classifiers as `KeptClassifiers`, which are trained where they are not there yet.

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

    def __init__(self, dataset, folder, accelerator, *, names=("convnet",), members=4, epochs=20, snapshots=5, batch_size=64,
                 lr=0.01, aug_type="color_crop_cutout_flip_scale_rotate", seed=0, options=None, mix=False,
                 engine=None, known=None, **training):
        self.mix, self._dataset, self._engine = mix, dataset, engine or Engine(accelerator)
        self._mixed, self._looks, self._seen = {}, Counter(), {}
        definition = {
            "format": FORMAT, "data": asdict(dataset.spec), "images": fingerprint(dataset.train), "names": list(names),
            "members": members, "epochs": epochs, "snapshots": snapshots, "batch_size": batch_size, "lr": lr,
            "aug_type": aug_type, "seed": seed, "options": options or {},
            **{name: value for name, value in training.items() if value != _USUAL[name]},
            **_precision(self._engine),
        }
        definition = _as_known(definition, known) if known else definition
        name = digest_of(json.dumps(definition, sort_keys=True).encode())
        super().__init__(Path(folder) / name, definition, dataset.spec, accelerator.device)
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
        self.take(read_record(self.dir))

    def segment(self, generator, starts, epochs):
        """A piece of a member's trajectory, by the next draws of `generator`: networks `epochs` epochs apart.

        `starts` are the epochs, a range, at one of which it begins; all members and starts are equally likely. For
        snapshots="epochs".
        """
        member, place = (int(torch.randint(count, (), generator=generator, device=generator.device))
                         for count in (len(self._members), len(starts)))
        index = member * (self.definition["epochs"] + 1) + starts[place]
        return self.load(index), self.load(index + epochs)  # not kept: there are thousands

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
            self._mixed[member] = self.build(member).to(self.device).eval().requires_grad_(False)
        for mixed, start, end in zip(*(x.state_dict().values() for x in (self._mixed[member], self[index], self[later]))):
            mixed.copy_(torch.lerp(start, end, share) if mixed.is_floating_point() else end)
        return self._mixed[member]

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
                write_json(self.dir / POOL, {**self.definition, "snapshots": rows})

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
        model = self.build(member).to(self.device)
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
                             "file": file, "digest": write_weights(self.dir / file, shown)})

        def on_step(step):
            progress.update()
            keep(step)

        keep(0)
        train_classifier(model, batches, epochs=settings["epochs"], engine=self._engine, on_step=on_step, flag="--pool-lr",
                         **{name: settings[name] for name in ("lr", "momentum", "weight_decay", "schedule")})
        return [{**row, "held_out_accuracy": row["held_out_accuracy"].item()} for row in rows]

    def _recorded(self):
        """The rows of pool.json; none where there is no such file yet, or a damaged one."""
        try:
            return [row for row in read_record(self.dir)["snapshots"] if {"member", "step", "file", "digest"} <= row.keys()]
        except OtherFormat:
            raise
        except (UserError, KeyError, TypeError, AttributeError):
            return []

    def _sound_rows(self):
        """Those whose file is as it was written."""
        return [row for row in self._recorded() if (self.dir / row["file"]).is_file()
                and digest_of((self.dir / row["file"]).read_bytes()) == row["digest"]]


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
        found = json.loads((Path(folder) / POOL).read_text())
    except (OSError, ValueError):
        return definition
    plain = lambda facts: {name: value for name, value in facts.items() if name not in ("precision", "snapshots")}
    if plain(found) != plain(json.loads(json.dumps(definition))):
        return definition
    own = {"precision": found["precision"]} if "precision" in found else {}
    return {**{name: value for name, value in definition.items() if name != "precision"}, **own}
