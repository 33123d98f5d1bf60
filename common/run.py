"""A run: one folder that holds everything a command did, written by the main process alone."""

import importlib.metadata
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torchvision.utils import save_image

from common.device import process_mean
from common.errors import UserError

CONFIG, CHECKPOINT = "config.json", "checkpoint.pt"


def _versions():
    packages = ("torch", "torchvision", "diffusers", "accelerate", "numpy", "scipy")
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in packages}}


def _commit():
    root = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def write_json(path, value):
    """Write `value` to `path` so that a reader sees the old file or the new one and never a part."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(partial, path)


def read_json(path):
    """The JSON object in `path`; a UserError names a file that cannot be read."""
    try:
        value = json.loads(Path(path).read_text())
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({type(error).__name__}): the run is damaged, make it again") from None


def save_checkpoint(path, state):
    """Save a nested dict of tensors and plain values, replacing the file only once the new one is complete."""
    partial = Path(path).with_name(Path(path).name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path):
    """Load, on the CPU, what `save_checkpoint` or the published code saved. Only tensors and plain containers are unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a run's folder or a checkpoint file") from None
    except Exception as error:  # torch raises many kinds for truncated, foreign and unsafe files
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}): it may be truncated or hold "
                        "something other than weights") from None


# What --resume may be given anew; everything else decides the weights and stays as the run was started.
_MAY_CHANGE = {"resume", "overwrite", "output_dir", "tag", "data_dir", "steps", "epochs", "precision", "lr", "lr_critic",
               "log_interval", "sample_interval", "save_interval", "eval_interval"}


def check_folder(args):
    """UserError unless `Run(args, ...)` may write to its folder: ask before long work starts."""
    folder = Path(args.output_dir) / args.tag
    started, resumed = (folder / CONFIG).exists(), getattr(args, "resume", False)
    parent = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not parent.is_dir():
        raise UserError(f"--output-dir: {parent} is a file: choose another --output-dir or --tag")
    if resumed and not started:
        raise UserError(f"--resume: {folder} holds no run: check --tag and --output-dir")
    if started and not resumed and not args.overwrite:
        raise UserError(f"{folder} already holds a run: choose another --tag, or pass --overwrite to replace it")
    return folder


def resume_state(args):
    """The checkpoint from which `--resume` continues, or None without that flag.

    Raises UserError if there is none, or if a flag that decides the weights is not what the run was started with.
    """
    folder = check_folder(args)
    if not args.resume:
        return None
    config = read_json(folder / CONFIG)
    given = json.loads(json.dumps(vars(args), default=str))
    for name in given:
        if name not in _MAY_CHANGE and config.get(name) != given[name]:
            raise UserError(f"--resume: --{name.replace('_', '-')} is not what the run was started with ({config.get(name)})")
    if not (folder / CHECKPOINT).exists():
        raise UserError(f"--resume: {folder} was stopped before its first checkpoint: start again with --overwrite")
    return load_checkpoint(folder / CHECKPOINT)


class Run:
    """`<output-dir>/<tag>/`: config.json, metrics.jsonl, TensorBoard events, samples/*.png, checkpoint.pt and the model.

    Every process makes one; only the main process touches the disk. An existing run is never overwritten unless
    `--overwrite` asks for it; with `--resume` it is continued.
    """

    def __init__(self, args, accelerator, **facts):
        self.dir = check_folder(args)
        self.accelerator, self.is_main = accelerator, accelerator.is_main_process
        self.resumed = getattr(args, "resume", False)
        self._writer = None
        accelerator.wait_for_everyone()  # every process has looked before the first one writes
        if self.is_main:
            try:
                if (self.dir / CONFIG).exists() and not self.resumed:
                    shutil.rmtree(self.dir)
                (self.dir / "samples").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--output-dir: {self.dir} cannot be written ({error.strerror})") from None
            self.config = {"command": Path(sys.argv[0]).name, "argv": sys.argv[1:], **vars(args), **facts,
                           "processes": accelerator.num_processes, "device": device_name(accelerator.device),
                           "mixed_precision": accelerator.mixed_precision, "versions": _versions(), "commit": _commit(),
                           "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            write_json(self.dir / CONFIG, self.config)
        accelerator.wait_for_everyone()

    def log(self, metrics, step):
        """Append a dict of numbers to metrics.jsonl and TensorBoard; one that is not finite becomes null in the file."""
        if not self.is_main:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # a second's import that many commands never need
            self._writer = SummaryWriter(str(self.dir))
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        with open(self.dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def images(self, name, images, columns, step):
        """Write signed images [N, C, H, W] as one grid to samples/<name>-<step>.png and to TensorBoard."""
        if not self.is_main:
            return
        path = self.dir / "samples" / f"{name}-{step:06d}.png"
        save_image(images.float().cpu(), path, nrow=columns, normalize=True, value_range=(-1, 1), padding=1)
        if self._writer is not None:
            from torchvision.io import read_image
            self._writer.add_image(name, read_image(str(path)), step)

    def save(self, state):
        """Replace the checkpoint from which `--resume` continues."""
        if self.is_main:
            save_checkpoint(self.dir / CHECKPOINT, state)

    def close(self):
        if self._writer is not None:
            self._writer.close()


def device_name(device):
    """The device in words: the GPU's name, or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] \
        if cpuinfo.exists() else []
    return f"{models[0]}, {torch.get_num_threads()} threads" if models else device.type


class Meter:
    """Means of what a step reports, kept on the device and read once per log interval."""

    def __init__(self):
        self._clear()

    def _clear(self):
        self._sums, self._counts, self._first_bad, self._steps = {}, {}, None, 0

    def add(self, step, **values):
        """Add 0-dim tensors; nothing is copied to the host. `step` is remembered if one of them is not finite."""
        values = {name: value.detach().float() for name, value in values.items()}
        finite = torch.stack([value.isfinite() for value in values.values()]).all()
        self._steps += 1
        if self._steps == 1:
            self._began = time.perf_counter()
        never = torch.full_like(finite, 2**62, dtype=torch.int64)
        bad = torch.where(finite, never, torch.full_like(never, step))
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1  # a penalty is not reported at every step

    def check(self):
        """Raise UserError in every process, naming the first such step, if a value has been NaN or infinite in any."""
        if self._first_bad is None:
            return
        if dist.is_initialized():
            dist.all_reduce(self._first_bad, dist.ReduceOp.MIN)
        first_bad = int(self._first_bad)
        if first_bad < 2**62:
            raise UserError(f"a loss was NaN or infinite at step {first_bad}: lower --lr or use --precision fp32 "
                            "(the last checkpoint, if there is one, is kept: --resume continues from it)")

    def read(self):
        """The means since the last read, over all processes, as floats, after a `check`.

        `steps_per_second` leaves out the first step, and with it whatever went on between the last read and that step.
        """
        self.check()
        names = list(self._sums)
        means = process_mean(torch.stack([self._sums[name] / self._counts[name] for name in names])).tolist()
        speed = {"steps_per_second": (self._steps - 1) / (time.perf_counter() - self._began)} if self._steps > 1 else {}
        self._clear()
        return dict(zip(names, means)) | speed


class Interruptible:
    """While in this context, Ctrl-C and SIGTERM are only noted, so that a loop can save before it leaves."""

    def __init__(self, accelerator):
        self.accelerator = accelerator

    def __enter__(self):
        self._noted = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self._noted = True

    def requested(self, step):
        """True once a signal came. Several processes agree on it at every tenth step, and all stop there."""
        if self.accelerator.num_processes == 1:
            return self._noted
        return step % 10 == 0 and any_process(self.accelerator, self._noted)

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def any_process(accelerator, flag):
    """Whether `flag` is true in any process; the same answer in all of them."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def find_run(path):
    """The folder of the run that `path` belongs to (a run's folder, or a folder or file inside one), or None."""
    path = Path(path)
    return next((folder for folder in (path, path.parent) if (folder / CONFIG).exists() and
                 "command" in read_json(folder / CONFIG)), None)


def inherit_data(args, weight):
    """Fill --data, --data-dir, --image-size and --held-out from the run that made `weight`, where they were not given."""
    folder = find_run(weight) if weight else None
    config = read_json(folder / CONFIG) if folder else {}
    if args.data is None:
        args.data = config.get("data") or "digits"
        if args.image_size is None:
            args.image_size = config.get("image_size")
        if args.data_dir is None and config.get("data_dir"):
            args.data_dir = Path(config["data_dir"])
    if args.held_out is None:
        args.held_out = config.get("held_out", 0.1)
