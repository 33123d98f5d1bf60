"""What the documents show is what works: every command, every example."""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import continual
import gen_condense
import pool_match
import sample
import validate
from gendistil.common.cli import run_script
from gendistil.data import DATASETS
from gendistil.evaluation import PROTOCOLS
from gendistil.evaluation.tables import markdown
from gendistil.matching import METHODS as METHODS_TABLE
from gendistil.matching import OBJECTIVES
from gendistil.matching.build import LEARNED
from gendistil.matching.networks import POOLS
from gendistil.sources import STORED_SOURCES
from generators import RECIPES, TRAINERS
from pools import CLASSIFIERS, SETS, usual_classifier

ROOT = Path(__file__).parent.parent
SCRIPTS = {script.__name__: script for script in (gen_condense, pool_match, validate, continual, sample)}
README, METHODS = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/methods.md"))
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")

# Appended to a command of the documents where it does not give them itself, so that it takes seconds.
SHORT = {
    "gen_condense": ("--width 8", "--batch-size 8", "--steps 2"),
    "pool_match": ("--match-batch 4", "--steps 2", "--eval-epochs 1", "--eval-ipc 1", "--pool convnet"),
    "validate": ("--ipc 1", "--epochs 1", "--min-steps 1", "--num-eval 1", "--full-epochs 1"),
    "continual": ("--steps 2", "--orders 1", "--ipc 1", "--epochs 1", "--min-steps 1", "--num-eval 1"),
    "sample": (),
}
OF_MATCHING = ("--match-batch", "--pool")
SMALL_POOL = ("--pool-members 1", "--pool-epochs 1", "--pool-snapshots 1")
LESS = {"--steps": 3, "--epochs": 1, "--full-epochs": 1, "--ipc": 2, "--num-eval": 1}
"""What a shortened command gives in place of larger values."""


def shortened(words):
    """(script, words) of a command of the documents, with flags that make it short."""
    words = words[2:] if words[:2] == ["accelerate", "launch"] else words[1:] if words[0] == "python" else words
    script, words = words[0].removesuffix(".py"), words[1:]
    resumed = "--resume" in words
    for place, word in enumerate(words[:-1]):
        if word in LESS and words[place + 1].isdigit():
            words[place + 1] = str(min(int(words[place + 1]), LESS[word] + resumed))
    own_pool = script == "pool_match" and not {"--method", "--pool-training"} & set(words)
    unmatched = "mgd3" in words and "--match" not in words
    whole = re.search(r"--ranking|--compare( whole| --|$)", " ".join(words))
    for flags in (*SHORT.get(script, ()), *(SMALL_POOL if own_pool else ())):
        flag, *values = flags.split()
        if flag not in words and not (unmatched and flag in OF_MATCHING) and (whole or flag != "--full-epochs"):
            words += [flag, *values]
    return script, [memory(word) if script == "continual" and ".py" in word else word for word in words]


def memory(text):
    """A shortened NAME="COMMAND" of continual.py."""
    name, _, commands = text.partition("=")
    parts = [shortened(shlex.split(command)) for command in commands.split("&&")]
    return f"{name}={' && '.join(shlex.join([f'{script}.py', *words]) for script, words in parts)}"


def blocks(text):
    """The fenced blocks of a page: (language, lines)."""
    return [(found[1], found[2].splitlines()) for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)]


KNOWN = re.compile(r"(accelerate launch |python )?(gen_condense|pool_match|validate|continual|sample|growing)\.py\b")
OTHER = re.compile(r"make |pip install |python -m gendistil\.evaluation\.report ")


def commands(text):
    """The command lines of a page, each a list of words."""
    lines = [line.split("#")[0].strip() for language, lines in blocks(text) if not language for line in lines]
    assert all(KNOWN.match(line) or OTHER.match(line) for line in lines if line)
    return [shlex.split(line) for line in lines if KNOWN.match(line)]


def sections(text):
    """The parts of a page by their headings."""
    parts = re.split(r"^## (.+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the files of docs/extending.md, in which its commands run one after another."""
    folder = tmp_path_factory.mktemp("extending")
    for language, lines in blocks(EXTENDING):
        if language == "python":
            (folder / lines[0].removeprefix("# ")).write_text("\n".join(lines))
    return folder


@pytest.fixture
def tables():
    """The tables as they are without plugins, afterwards too."""
    rows = (CLASSIFIERS, DATASETS, LEARNED, METHODS_TABLE, OBJECTIVES, POOLS, PROTOCOLS, RECIPES, STORED_SOURCES, TRAINERS)
    before, modules = [dict(table) for table in rows], set(sys.modules)
    yield
    for table, was in zip(rows, before):
        table.clear()
        table.update(was)
    for name in set(sys.modules) - modules:
        if f"# {name}.py" in EXTENDING:
            del sys.modules[name]


@pytest.mark.parametrize("subject", sections(EXTENDING))
def test_every_example_of_extending_works(command, workshop, tables, monkeypatch, subject):
    monkeypatch.chdir(workshop)
    ran = 0
    for words in commands(sections(EXTENDING)[subject]):
        name, words = shortened(words)
        if name in SCRIPTS:
            command(SCRIPTS[name], *words)
        else:
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
            run_script(runpy.run_path(str(workshop / f"{name}.py"))["main"])
        ran += 1
    assert ran


def test_students_of_a_protocol_of_ones_own_are_not_called_published(workshop, tables):
    runpy.run_path(str(workshop / "brief.py"))
    row = {"source": "random", "data": "digits", "sampling": "fixed", "ipc": 10, "model": "convnet", "mean": 50.0, "std": None,
           "ci95": None, "n": 1, "seconds": 1.0}
    assert "students trained by `--protocol brief`" in markdown([{**row, "protocol": "brief"}])
    assert "students trained as DSA and DM published" in markdown([{**row, "protocol": "dsa"}])


def test_every_command_of_the_readme_works_in_its_order(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    colours = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for name in ("cat", "dog", "owl"):
            folder = tmp_path / "path" / "to" / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(colours.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    lines = commands(README) + commands(METHODS)
    assert len(lines) >= 10
    for words in lines:
        name, words = shortened(words)
        command(SCRIPTS[name], *words)
    code = [lines for language, lines in blocks(README) if language == "python"]
    assert len(code) == 1
    made = {}
    exec("\n".join(code[0]), made)
    images, labels = next(iter(made["loader"]))
    assert images.shape == (64, 1, 8, 8)
    assert labels.shape == (64,)


def test_the_published_command_lines_are_understood():
    table = sections(METHODS)["Published commands and ours"]
    ours = [row.split("|")[2] for row in table.splitlines() if row.startswith("|")]
    lines = [line for cell in ours for line in re.findall(r"`(pool_match\.py [^`]+)`", cell)]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)[1:]
        assert pool_match.parse_args(words).method == words[words.index("--method") + 1]


def equivalents(published, ours):
    """The rows of the table of equivalents for two scripts: pairs of the words of the published command and of ours."""
    rows = re.findall(rf"^\| `{re.escape(published)} ([^`]+)`[^|]*\| `{re.escape(ours)} ([^`]+)`[^|]*\|$",
                      sections(METHODS)["Published commands and ours"], re.M)
    return [tuple(map(shlex.split, row)) for row in rows]


def value(words, flag, default=None):
    return words[words.index(flag) + 1] if flag in words else default


def test_published_continual_learning_is_understood():
    rows = equivalents("CL_DM.py", "continual.py")
    assert [(value(theirs, "--method"), value(theirs, "--steps")) for theirs, _ in rows] == [
        ("random", "5"), ("herding", "5"), ("DSA", "5"), ("DM", "5"), ("DM", "10")]
    for theirs, words in rows:
        args = continual.parse_args(words)
        made, = args.memory
        assert shlex.split(made.text)[1:] == ["--method", value(theirs, "--method").lower()]
        assert (args.steps, args.ipc) == tuple(int(value(theirs, flag)) for flag in ("--steps", "--ipc"))
        # CL_DM.py:23, :17, :26-28 and utils.py: five orders, three networks, 1001 epochs, DSA's augmentation for all.
        assert (args.orders, args.num_eval, args.data) == (5, 3, "cifar100")
        assert (args.eval_model or usual_classifier(32)) == "convnet"
        protocol = PROTOCOLS[args.protocol]
        assert (protocol.epochs, protocol.batch_size, protocol.lr, protocol.aug_single) == (1001, 256, 0.01, True)


MODES = {
    # get_eval_pool, utils.py of VICO-UoE/DatasetCondensation, as our names have it: its ConvNet has width 128, depth 3, ReLU,
    # average pooling and instance norm, and so has its ResNet18.
    "M": "mlp convnet lenet alexnet vgg11 resnet18_full_in",
    "B": "convnet_bn convnet_swish_bn alexnet_bn vgg11_bn resnet18_full",
    "W": "convnet:width=32 convnet:width=64 convnet convnet:width=256",
    "D": "convnet:depth=1 convnet:depth=2 convnet convnet4",
    "A": "convnet:activation=sigmoid convnet convnet:activation=leakyrelu convnet_swish",
    "P": "convnet:pooling=none convnet:pooling=max convnet",
    "N": "convnet:norm=none convnet_bn convnet:norm=layer convnet convnet:norm=group",
    "S": "convnet",
    "SS": "convnet_bn",
}


def test_published_modes_of_evaluation_are_understood():
    rows = [*equivalents("main_DM.py", "validate.py"), *equivalents("main.py", "validate.py")]
    assert {value(theirs, "--eval_mode") for theirs, _ in rows} == set(MODES)
    for theirs, words in rows:
        args = validate.parse_args([*words, "--compare"])
        assert args.eval_model == MODES[value(theirs, "--eval_mode")].split()
        assert args.sampling == ["fixed"]
    assert {value(words, "--protocol") for _, words in rows} == {"dsa", "dc"}


def test_the_published_evaluations_are_understood():
    table = sections(METHODS)["Published commands and ours"]
    lines = re.findall(r"`validate\.py ([^`]+)`", "".join(row.split("|")[2] for row in table.splitlines() if "|" in row))
    assert len(lines) >= 3
    for line in lines:
        assert validate.parse_args([*shlex.split(line), "--compare"]).eval_model


def test_the_table_of_sets_is_that_of_the_code():
    table = sections(METHODS)["Students of several architectures"]
    rows = {cells[1].strip(" `"): tuple(re.findall(r"`([^`]+)`", cells[3])) for cells in
            (line.split("|") for line in table.splitlines() if line.startswith("| `"))}
    assert rows == SETS


@pytest.mark.parametrize(("name", "script"), [("methods", pool_match), ("objectives", pool_match),
                                              ("recipes", gen_condense), ("protocols", validate)])
def test_the_tables_of_what_has_a_name_are_those_of_the_commands(command, capsys, name, script):
    with pytest.raises(SystemExit):
        command(script, f"--list-{name}")
    assert METHODS.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0] == capsys.readouterr().out


def test_the_readme_is_one_page():
    assert len(README.encode()) <= 10_000


def test_an_example_has_sixty_lines_at_most():
    lengths = {lines[0]: len(lines) for language, lines in blocks(EXTENDING) if language == "python"}
    assert len(lengths) == 9
    assert max(lengths.values()) <= 60, lengths


def test_the_package_is_installed_with_its_commands(tmp_path):
    entries = {entry.name: entry.load() for entry in entry_points(group="console_scripts") if entry.name in SCRIPTS}
    assert entries == {name: script.command for name, script in SCRIPTS.items()}
    code = "from gendistil import DistilledDataset, load_dataset; print(len(load_dataset().train))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1000


ROOMS = ("gendistil.evaluation", "gendistil.matching", "gendistil.sources", "generators", "pools", "gendistil.data",
         "gendistil.common")


def room_of(module):
    """The place of a module's room in the list of docs/design.md, None for modules of others."""
    return next((place for place, room in enumerate(ROOMS) if f"{module}.".startswith(f"{room}.")), None)


def test_imports_point_down_the_list_of_rooms():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `([\w/]+?)/?` \|", sections(design)["Rooms"], re.M)) == tuple(
        room.replace(".", "/") for room in ROOMS)
    apart = {ROOMS.index("generators"), ROOMS.index("pools")}
    for path in (path for room in ROOMS for path in (ROOT / room.replace(".", "/")).glob("*.py")):
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        named = [node.module if isinstance(node, ast.ImportFrom) else alias.name for node in tree
                 if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
        assert not {*SCRIPTS, "benchmarks"} & {name.partition(".")[0] for name in named}, path
        for place in filter(None, map(room_of, named)):
            assert place >= own, path
            assert {place, own} != apart, path


def test_a_script_has_200_lines_at_most():
    lengths = {name: len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in SCRIPTS}
    assert max(lengths.values()) <= 200, lengths


class Met(Exception):
    """Carries the parser that a script has made."""


def flags_of(script):
    """The flags of a script, or of a benchmark by its path."""
    module = SCRIPTS.get(script) or importlib.import_module(script.replace("/", "."))

    def meet(parser, *_):
        raise Met(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", meet)
        with pytest.raises(Met) as met:
            module.parse_args([]) if script in SCRIPTS else module.main()
    return {flag for action in met.value.args[0]._actions for flag in action.option_strings}


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_makefile_gives_flags_that_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    names = re.search(r"^\.PHONY: (.*)", makefile, re.M)[1].split()
    told = subprocess.run(["make", "--dry-run", *names], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    told = told.replace("\\\n", " ")
    commands = re.findall(r'"(\w+\.py [^"]*)"', told) + re.split(r"\n|;|&&|\|\|", re.sub(r"\"[^\"]*\"|'[^']*'", "", told))
    given = {}
    for command in commands:
        for script, words in re.findall(r"(?:^| )([\w/]+)\.py (.*)", command):
            given.setdefault(script, set()).update(re.findall(r"(?<= )--[a-z][\w-]*", f" {words}"))
    assert {*SCRIPTS, "benchmarks/objectives", "benchmarks/recipes", "benchmarks/refine", "benchmarks/curves"} <= set(given)
    for script, flags in given.items():
        assert flags <= flags_of(script), script
