"""Models on a hub: `hub:owner/name` in place of a path, and uploads.

The hub is that of the package huggingface_hub, or whatever speaks its protocol at $HF_ENDPOINT. What is downloaded is JSON and
safetensors, never pickles.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import (
    HFValidationError,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from huggingface_hub.utils import logging as hub_logging

from gendistil.common.cli import LARGEST
from gendistil.common.errors import UserError
from gendistil.common.source import ROWS

PREFIX, FACTS, CARD = "hub:", "gendistil.json", "README.md"
TIMEOUT = 10
"""Seconds that a hub may take to answer before it counts as out of reach."""

# A model by itself, or in one of the folders of a run.
_FILES = ("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.index.json", ROWS)
_WANTED = [FACTS, *(folder + file for folder in ("", "generator/", "pixels/", "latents/") for file in _FILES)]

# A pipeline of diffusers: what names its parts, and these in a folder each.
_PIPELINE = ["model_index.json", "class_map.json", "*/config.json", "*/scheduler_config.json",
             "*/diffusion_pytorch_model.safetensors", "*/diffusion_pytorch_model-*-of-*.safetensors",
             "*/diffusion_pytorch_model.safetensors.index.json"]


def is_a(kind):
    """A function that says whether a value is of this kind."""
    return lambda value: isinstance(value, kind)


def _list_of(kind):
    return lambda value: isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


INHERITED = {"commands": lambda value: isinstance(value, list) and all(map(_list_of(str), value)), "method": is_a(str),
              "image_size": lambda value: isinstance(value, int) and 8 <= value <= LARGEST,
              "classes": lambda value: _list_of(int)(value) and value and min(value) >= 0,
              "held_out": lambda value: isinstance(value, float) and 0 < value < 1, "whiten": is_a(str), "mirror": is_a(bool),
              "dataset": lambda value: isinstance(value, dict) and _list_of(str)(value.get("classes")) and value.get("name"),
              "versions": is_a(dict), "commit": is_a(str), "kind": is_a(str)}
"""What is uploaded beside a model, by the names that a run's config.json has for it, and whether a value may be one: never a
folder of this machine. `gendistil.data` adds the names of data sets."""


def is_hub(path):
    """Whether `path` (str or Path) names a model on a hub."""
    return str(path).startswith(PREFIX)


def repository(text):
    """An argparse type: `owner/name`."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        text = ""
    if text.count("/") != 1:
        raise argparse.ArgumentTypeError("it must be owner/name, each of letters, digits, '-', '_' and '.'")
    return text


def local_copy(path):
    """`path` as a Path, in which ~ stands for the user's home; for `hub:owner/name`, perhaps with `@revision`, the folder that
    the model was downloaded to.

    Without a network it is the last one downloaded. Raises UserError, in seconds, if there is none.
    """
    if not is_hub(path):
        return Path(os.path.expanduser(path))
    name = Path(path).as_posix()
    found = re.fullmatch(r"hub:([^@]+)(?:@(.+))?", name)
    try:
        repo, revision = repository(found[1] if found else ""), found and found[2]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{name} is no model's name: after hub: {error}; @revision may follow") from None
    api = HfApi(endpoint=_endpoint())
    places = {"revision": revision, "cache_dir": _cache(), "endpoint": api.endpoint, "allow_patterns": [*_WANTED, *_PIPELINE]}
    error = _first_question(api, repo, revision)
    if error is None:
        try:
            with _quiet():
                return Path(snapshot_download(repo, **places))
        except Exception as failure:
            raise UserError(f"{name} could not be downloaded from {api.endpoint} ({_line(failure)}): try again") from None
    if isinstance(error, RevisionNotFoundError):
        raise UserError(f"{name}: this model has no revision '{revision}': name a branch, a tag or a commit")
    if _status(error) in (401, 403, 404):
        raise UserError(f"{name}: {api.endpoint} has no such model, or shows it to its owner alone: check the name, or log in "
                        "by `hf auth login`")
    try:
        with _quiet():
            return Path(snapshot_download(repo, local_files_only=True, **places))
    except Exception:
        raise UserError(f"{name} was not downloaded before, and {_out_of_reach(api, error)}") from None


def public(words):
    """The words of a command without the folders of this machine: of an absolute path, its last part."""
    return [re.sub(r"(^|=)/(?:[^/]*/)*(?=[^/])", r"\1", str(word)) for word in words]


def facts_of(source, config, spec, held_out):
    """What is uploaded beside a model: how it was made, so far as the dict `config` of its run says, and its data set.

    Args: source; spec, a `Spec`; held_out, the fraction of the training images that scored it, where its run does not say one.
    """
    kept = ("commands", "method", "classes", "mirror", "whiten", "versions", "commit")
    made = {key: config[key] for key in kept if config.get(key) is not None}
    if "commands" in made:
        made["commands"] = [public(words) for words in made["commands"]]
    return made | {"kind": source.kind, "data": spec.name, "image_size": spec.size,
                   "held_out": config.get("held_out", held_out),
                   "dataset": dataclasses.asdict(spec)}


def read_facts(path):
    """What was uploaded beside the model at `path`, a folder or `hub:owner/name`: a dict, empty if nothing was, or for no path.

    Only what may be inherited from a stranger's file is in it: values of known names and kinds, and no folder.
    """
    folder = local_copy(path) if path else None
    for name in (FACTS, "config.json") if folder else ():
        try:
            facts = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(facts, dict) and (name == FACTS or "commands" in facts):
            return {key: facts[key] for key, fits in INHERITED.items() if key in facts and fits(facts[key])}
    return {}


def make_repository(name):
    """Make the model repository `owner/name` unless it is there, and return the hub's `HfApi`: ask before long work starts.

    Raises UserError where that is refused, or writing to it is.
    """
    api = HfApi(endpoint=_endpoint())
    error = _first_question(api, name)
    if error and (_status(error) is None or _status(error) >= 500):
        raise UserError(f"--push-to-hub {name}: {_out_of_reach(api, error)}")
    try:
        if error:
            api.create_repo(name, exist_ok=True)
        # How would a card be uploaded? Nothing is, but a token that may not write is refused here.
        api.preupload_lfs_files(name, [CommitOperationAdd(CARD, b"-")])
    except Exception as refusal:
        raise UserError(_refusal(api, name, refusal)) from None
    return api


def push(source, name, card, facts):
    """Upload a source to the repository `owner/name`: config.json and safetensors at its top, the model card and the facts.

    Args: source, anything that `save_pretrained` writes; card, the text of its model card; facts, see `facts_of`. One commit
    holds it all. Other files of the repository stay, but for those of an earlier model. Returns the address. Raises UserError
    where the hub refuses.
    """
    api = make_repository(name)
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(folder)
        if source.rows and not source.soft:  # else they are written with the images
            source.rows.save(folder)
        files = {file.name: file for file in sorted(Path(folder).iterdir())}
        files |= {FACTS: (json.dumps(facts, indent=1, default=str) + "\n").encode(), CARD: card.encode()}
        try:
            stale = [path for path in api.list_repo_files(name) if path not in files and
                     any(fnmatch.fnmatch(path, wanted) for wanted in _WANTED)]
            changes = [*(CommitOperationDelete(path) for path in stale),
                       *(CommitOperationAdd(path, content) for path, content in files.items())]
            with _quiet():
                api.create_commit(name, changes, commit_message="Upload a distilled model")
        except Exception as error:
            raise UserError(_refusal(api, name, error)) from None
    return f"{api.endpoint}/{name}"


def _first_question(api, repo, revision=None):
    """Ask the hub for a model, with a time limit and once, as no later request does: the error, or None if it is there."""
    try:
        api.model_info(repo, revision=revision, timeout=TIMEOUT)
    except Exception as error:  # of a kind that depends on the library by which the hub's client talks
        return error
    return None


@contextlib.contextmanager
def _quiet():
    """The hub's client keeps its warnings for itself, and its progress bars where nobody watches."""
    verbosity, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled() and not sys.stderr.isatty()
    hub_logging.set_verbosity_error()
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _endpoint():
    """The hub's address. The client reads the environment only once, when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _cache():
    if os.environ.get("HF_HUB_CACHE"):
        return os.environ["HF_HUB_CACHE"]
    return os.path.join(os.environ["HF_HOME"], "hub") if os.environ.get("HF_HOME") else None


def _status(error):
    """The status of the response that an error speaks of, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _line(error):
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _out_of_reach(api, error):
    if _status(error):
        return f"{api.endpoint} answers with error {_status(error)}: try again later"
    return f"{api.endpoint} cannot be reached ({type(error).__name__}): check the network, and $HF_ENDPOINT if it is set"


def _refusal(api, name, error):
    """Why an upload failed and what helps, in one line."""
    reasons = {401: "does not know you: log in by `hf auth login`, or set $HF_TOKEN, with a token that may write",
               403: "does not let you write there: check the owner's name and that your token may write"}
    return f"--push-to-hub {name}: {api.endpoint} {reasons.get(_status(error), f'did not take it ({_line(error)}): try again')}"
