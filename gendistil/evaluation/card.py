"""The model card of a distilled model: what it was made from and how, and what students learn from it."""

import json
import re
import shlex

from gendistil.common.hub import facts_of, public, push
from gendistil.common.run import made_by
from gendistil.evaluation.tables import LEGEND, tables

_WHAT = {"generator": "A conditional generator of images", "pixels": "Stored images",
         "latents": "Latents, and the frozen generator that turns them into images,"}  # by a source's `kind`
_SHOWN = 20  # classes that are named; of more, only the number
_USE = """\
```python
from torch.utils.data import DataLoader
from gendistil.sources import DistilledDataset, load_source

source = load_source("hub:{name}")  # source.sample(labels, seed) gives images [B, {channels}, {size}, {size}] in [-1, 1]
loader = DataLoader(DistilledDataset("hub:{name}", ipc=10, seed=0), batch_size=64, shuffle=True)
```

The commands of the suite take `hub:{name}` in place of a path: `python sample.py --pretrain-weight hub:{name} --ipc 10` writes
images, `python validate.py --pretrain-weight hub:{name}` trains students. Labels are the numbers 0 to {last} of the classes.
"""


def card(name, rows, facts, commands):
    """The card of the repository `name` as markdown, with the hub's metadata in front.

    Args: rows, of `validate.py`; facts, see `common.hub.facts_of`; commands, which judged it, lists of words.
    """
    spec = facts["dataset"]
    metadata = {"library_name": "diffusers", "tags": ["gendistil", "dataset-distillation"]}
    if "method" in facts:
        metadata["tags"].append(facts["method"])
    metadata["datasets"] = [re.sub(r"[^\w.-]+", "-", spec["name"])]  # a folder may be called anything, an entry here may not
    if facts["kind"] == "generator":
        metadata["pipeline_tag"] = "unconditional-image-generation"  # the hub's nearest: images of a class, without a prompt
    filtered = " Images that are kept are those that a classifier accepts, which is not in this repository." if any(
        "refined_by" in row for row in rows) else ""
    words = next((row["refinement"] for row in rows if "refinement" in row), None)
    refined = f" Its images were refined ({words}); it makes them as they are where no flag says so." if words else ""
    parts = [
        _front(metadata), f"# {name}",
        f"{_WHAT[facts['kind']]} learned from the data set {spec['name']} with `gendistil`: classifiers are trained on its "
        "images in place of the real ones.",
        "## Data set", _describe(spec),
        "## Method", _method(facts),
        "## Accuracy of students",
        "Students are classifiers that were trained on images of this model and scored on real ones. Bytes are what storing "
        f"the model takes.{refined}{filtered}",
        tables(rows).strip(), LEGEND.strip(), "They were trained and scored by", _lines(commands),
        "## Use", _USE.format(name=name, size=spec["size"], channels=spec["channels"], last=len(spec["classes"]) - 1),
    ]
    return "\n\n".join(parts)


def upload(name, path, source, rows, spec, held_out, commands):
    """Upload `source`, the model at `path` as it is and not refined, with the card of `rows`, to the repository `name`.

    Args: spec and held_out, of the data set; commands, as `card` has them. Returns the repository's address.
    """
    facts = facts_of(source, made_by(path), spec, held_out)
    return push(source, name, card(name, rows, facts, commands), facts)


def _front(metadata):
    """The metadata as YAML, of which JSON's strings and lists are a part."""
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()), "---"])


def _lines(commands):
    """Commands, lists of words, as a block of code, without the folders of this machine."""
    return "\n".join(["```", *(shlex.join(public(words)) for words in commands), "```"])


def _describe(spec):
    classes = spec["classes"]
    named = f" ({', '.join(map(str, classes))})" if len(classes) <= _SHOWN else ""
    return f"{spec['name']}: {len(classes)} classes{named}, images of {spec['channels']}×{spec['size']}×{spec['size']}."


def _method(facts):
    """The commands that made the model, as far as they are recorded."""
    if not facts.get("commands"):
        return "How it was made is not recorded."
    made = [f"Method `{facts['method']}`, by" if "method" in facts else "It was made by", _lines(facts["commands"])]
    versions = [f"{package} {version}" for package, version in facts.get("versions", {}).items()]
    versions += [f"commit {facts['commit']}"] if facts.get("commit") else []
    made += [f"with {', '.join(versions)}."] if versions else []
    made += [f"{100 * facts['held_out']:g} % of the training images were held out, to select what is kept."]
    return "\n\n".join(made)
