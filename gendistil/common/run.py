"""A run: one folder that holds everything a command did, written by the main process alone."""

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from torchvision.io import read_image
from torchvision.utils import save_image

from gendistil.common.cli import LONGEST
from gendistil.common.device import device_name
from gendistil.common.errors import UserError
from gendistil.common.files import load_checkpoint, read_json, replacing, save_checkpoint, save_model, write_json
from gendistil.common.flags import flag_of
from gendistil.common.hub import INHERITED, is_a, read_facts
from gendistil.common.lock import check_free, hold, release

CONFIG, CHECKPOINT, METRICS, SAMPLES = "config.json", "checkpoint.pt", "metrics.jsonl", "samples"
FORMAT = 1
"""Of a checkpoint; raise it when the same names come to hold something else. One without a number has this format."""


def _versions():
    packages = ("torch", "torchvision", "diffusers", "accelerate", "numpy", "scipy")
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in packages}}


def _commit():
    root = Path(__file__).parent
    try:
        ask = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, check=False)
        ours = ask(["git", "ls-files", "--error-unmatch", __file__]).returncode == 0  # and not of who has installed it
        return ask(["git", "rev-parse", "HEAD"]).stdout.strip() or None if ours else None
    except OSError:  # no git
        return None


def training_state(path):
    """The checkpoint of a run of this suite or of the published code. UserError for one that another version wrote."""
    state = load_checkpoint(path)
    written = state.get("format", FORMAT) if isinstance(state, dict) else FORMAT
    if written != FORMAT:
        raise UserError(f"{path} has format {written} and this version reads format {FORMAT}: use the version that wrote it "
                        "(versions and commit stand in the run's config.json), or make the run again")
    return state


def _check_outside(folder, flag, path):
    if folder.resolve() in (path.resolve(), *path.resolve().parents):
        raise UserError(f"{flag} {path} lies in the folder that --tag {folder.name} writes: choose another --tag")


def _several(value):
    return value if isinstance(value, (list, tuple)) else [] if value is None else [value]


def check_folder(options):
    """The folder of a run with these `options`. UserError unless `Run` may write to it: ask before long work starts.

    What holds files and is no run stays as it is, whatever --overwrite says.
    """
    folder = Path(options["output_dir"]) / options["tag"]
    started, resumed = find_run(folder) == folder, options.get("resume", False)
    if options["overwrite"]:
        for name in ("data", "data_dir", "plugin"):
            for path in _several(options.get(name)):
                if name != "data" or os.sep in str(path):  # without one it may be a data set's name
                    _check_outside(folder, flag_of(name), Path(os.path.expanduser(path)))
    if resumed and options["overwrite"]:
        raise UserError("--resume goes on with a run, and --overwrite replaces it: give one of them")
    parent = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not parent.is_dir():
        raise UserError(f"--output-dir: {parent} is a file: choose another --output-dir or --tag")
    if folder.is_dir():
        check_free(folder)
    if resumed and not started:
        raise UserError(f"--resume: {folder} holds no run: check --tag and --output-dir")
    if not started and folder.is_dir() and not all(map(_is_remnant, folder.iterdir())):
        raise UserError(f"{folder} holds files, and no run that could be replaced: choose another --tag or --output-dir")
    if started and not resumed and not options["overwrite"]:
        raise UserError(f"{folder} already holds a run: choose another --tag, or pass --overwrite to replace it")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output-dir: {parent} cannot be written: choose another")
    return folder


def _is_remnant(path):
    """Whether it is what a run that was killed at once may have left: no samples yet, and a draft of its config.json."""
    no_samples = path.name == SAMPLES and path.is_dir() and not any(path.iterdir())
    return no_samples or re.fullmatch(r"\.config\.\d+\.partial\.json", path.name) is not None


def _empty(folder):
    """Remove what an earlier run has left, but for its config.json, by which it stays a run if this one is killed now. Its
    checkpoint goes first: a run that goes on has all that belongs to it."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    for path in (*folder.iterdir(), *(folder / SAMPLES).iterdir()):
        if path.name not in (CONFIG, SAMPLES):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


class Run:
    """`<output-dir>/<tag>/`: config.json, metrics.jsonl, TensorBoard events, samples/*.png, checkpoint.pt and the model.

    Every process makes one; only the main process writes to it, and keeps other commands out until `close`. An existing run is
    never overwritten unless `--overwrite` asks for it; with `--resume` it is continued.

    Args: options, the flags by their names, and all that resuming must find the same; accelerator; step, the one that the run
    continues from (what its files say of later steps is forgotten: they are taken again); facts, what config.json also holds.
    """

    def __init__(self, options, accelerator, step=0, **facts):
        self.dir, self.name = check_folder(options), Path(sys.argv[0]).stem
        self.accelerator, self.is_main, self.step = accelerator, accelerator.is_main_process, step
        resumed, self.commands = options.get("resume", False), [[Path(sys.argv[0]).name, *sys.argv[1:]]]
        if resumed:
            _check_images(read_config(self.dir).get("dataset"), facts.get("dataset"))
        accelerator.wait_for_everyone()  # every process has looked before the first one writes
        if self.is_main:
            try:
                (self.dir / SAMPLES).mkdir(parents=True, exist_ok=True)
                hold(self.dir)
                if not resumed:
                    _empty(self.dir)
            except OSError as error:
                raise UserError(f"--output-dir: {self.dir} cannot be written ({error.strerror or error}): choose another")
            if resumed:
                _forget(self.dir / METRICS, step)
                for draft in [*self.dir.glob(".*.partial*"), *self.dir.glob("*/.*.partial*")]:  # which a kill has left
                    shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
            kept = made_by(self.dir) if resumed else {}  # such as a refinement that was found for it
            self.commands = [*(words for words in kept.get("commands", ()) if words != self.commands[0]), *self.commands]
            self.config = {**kept, "commands": self.commands, **options, **facts,
                           "processes": accelerator.num_processes, "device": device_name(accelerator.device),
                           "mixed_precision": accelerator.mixed_precision, "versions": _versions(), "commit": _commit(),
                           "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            self.config["begun"] = kept.get("begun") or kept.get("started") or self.config["started"]  # before all resuming
            write_json(self.dir / CONFIG, self.config)
        accelerator.wait_for_everyone()

    def log(self, metrics, step):
        """Append a dict of numbers to metrics.jsonl and TensorBoard; one that is not finite becomes null in the file."""
        if not self.is_main:
            return
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        with open(self.dir / METRICS, "a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        for key, value in metrics.items():
            self._events.add_scalar(key, value, step)

    def images(self, name, images, columns, step):
        """Write signed images [N, C, H, W] as one grid to samples/<name>-<step>.png and to TensorBoard."""
        if not self.is_main:
            return
        path = sample_path(self.dir, name, step)
        with replacing(path) as partial:
            save_image(images.float().cpu(), partial, nrow=columns, normalize=True, value_range=(-1, 1), padding=1)
        self._events.add_image(name, read_image(str(path)), step)

    def save(self, state):
        """Replace the checkpoint from which `--resume` continues."""
        if self.is_main:
            save_checkpoint(self.dir / CHECKPOINT, {"format": FORMAT, **state})

    def save_model(self, model, name):
        """Replace the model in the folder `name` of the run."""
        if self.is_main:
            save_model(model, self.dir / name)

    @functools.cached_property
    def _events(self):
        """The writer of TensorBoard's events, made when it is first needed."""
        from torch.utils.tensorboard import SummaryWriter  # a second's import that many commands never need
        return SummaryWriter(str(self.dir), purge_step=self.step + 1 if self.step else None)

    def close(self):
        if "_events" in vars(self):
            self._events.close()
        release(self.dir)


def sample_path(folder, name, step):
    """Where the run in `folder` keeps the images called `name` of a step; a slash in a name becomes a minus."""
    return Path(folder) / SAMPLES / f"{short(name.replace('/', '-'))}-{step:06d}.png"


def short(name):
    """A name of a file, of which one that is too long ends in its digest."""
    if len(os.fsencode(name)) > LONGEST:
        return f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return name


def same_moments(one, other):
    """Whether two descriptions of a data set, dicts, have one mean and one std; None where one does not say them."""
    try:
        pairs = [(one[key], other[key]) for key in ("mean", "std")]
        return all(len(a) == len(b) and all(map(functools.partial(math.isclose, rel_tol=1e-5), a, b)) for a, b in pairs)
    except (KeyError, TypeError):
        return None


def _check_images(before, now):
    """Raise UserError where the facts of a data set say that a run would go on with other images than it began with."""
    if not before or not now:
        return
    alike = all(before.get(key) == json.loads(json.dumps(now[key])) for key in ("classes", "channels", "size"))
    if not alike or not same_moments(before, now):
        raise UserError(f"--resume: the images of {now['name']} are no longer those that the run was started with: give "
                        "another --tag")


def _forget(path, step):
    """Drop the entries of a metrics.jsonl that speak of steps after `step`, and half of a line at its end."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line + "\n")
    with replacing(path) as partial:
        partial.write_text("".join(kept))


def find_run(path):
    """The folder of the run that `path` belongs to (a run's folder, or a folder or file inside one), or None."""
    path = Path(path)
    for folder in (path, path.parent):
        try:
            # The second key is of the oldest runs.
            if (folder / CONFIG).exists() and {"commands", "command"} & read_json(folder / CONFIG).keys():
                return folder
        except UserError:
            if folder == path or (folder / CHECKPOINT).exists():  # and not the file of whatever else lies there
                raise
    return None


def made_by(path):
    """How the model at `path` was made: its run's config, or what was uploaded beside it to a hub; a dict, empty if neither."""
    folder = find_run(path) if path else None
    return read_config(folder) if folder else read_facts(path)


_FITS = {name: INHERITED[name] for name in ("commands", "image_size", "classes", "mirror", "held_out", "whiten")} | {
    "given": is_a(dict), "plugin": is_a(list), "data": is_a(str), "data_dir": is_a(str), "recipe_values": is_a(dict),
    "method_values": is_a(dict), "refinement": is_a(dict), "pool_folder": is_a(str),
    "dataset": lambda value: isinstance(value, dict) and isinstance(value.get("classes", []), list)}
_NEVER_NULL = ("commands", "given", "held_out")


def read_config(folder):
    """The config.json of a run. Raises UserError for a value that no run writes."""
    config = read_json(folder / CONFIG)
    for name, fits in _FITS.items():
        missing = name not in config or (config[name] is None and name not in _NEVER_NULL)
        if not missing and not fits(config[name]):
            raise UserError(f"{folder / CONFIG}: '{name}' is {json.dumps(config[name])[:40]}, which no run writes: repair it, "
                            "or make the run again")
    return config


def beside(folder, path):
    """The pool in `folder`, which the config of the run at `path` names, or the one of this name beside that run, where both
    were moved; None for none."""
    run = find_run(path) if folder else None
    moved = run.resolve().parent / "pools" / Path(folder).name if run else None
    return moved if moved and moved.exists() and not Path(folder).exists() else folder


def check_outside(args, flag, path):
    """Raise UserError for a `path` of `flag` that lies in the folder which the run of `args` writes, and may empty first."""
    _check_outside(args.output_dir / args.tag, flag, path)


def amend(run, **facts):
    """Add `facts` to the config.json of a run's folder, which is replaced whole."""
    write_json(run / CONFIG, {**read_json(run / CONFIG), **facts})
