"""Command lines: range-checked types, one-line errors, and the flags that every script shares."""

import argparse
import importlib.util
import io
import logging
import os
import sys
import warnings
from pathlib import Path

from gendistil.common.errors import UserError
from gendistil.common.flags import Once

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
COMPILE = ("auto", "on", "off")
LARGEST = 128
"""The largest side, in pixels, of images that the networks are made for."""
LONGEST = 200
"""Bytes of a name that any file system takes, with what is added to it."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a flag's help unless there is none or the text already names one."""

    def _get_help_string(self, action):
        none = action.default is None or action.default is False or action.default == []
        if action.required or none or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and exit code 2, whose help shows defaults, whose flags of several values are
    given once, and whose flags cannot be abbreviated (so that a flag added later never changes what an old command means)."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_Help, allow_abbrev=False, **kwargs)
        self.register("action", None, Once)
        self.register("type", Path, path)  # of every flag that takes one
        self.add_argument("--plugin", type=Path, action="append", metavar="FILE",
                          help="Python file that is run first: it may add rows to the tables of networks, objectives, ...")

    def group(self, title):
        """The group of flags under this heading, which is made at the first call."""
        return next((group for group in self._action_groups if group.title == title), None) or self.add_argument_group(title)

    def error(self, message):
        say(f"{self.prog}: error: {' '.join(message.split())} (see --help)")
        self.exit(2)


def say(line, everyone=False):
    """Write a line to standard error, once for all processes of a machine, or with `everyone` by this one, which it names."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if rank == 0 or everyone:
        print(f"process {rank}: {line}" if rank else line, file=sys.stderr)


def number(kind, low=None, high=None, *, open_low=False, why=""):
    """An argparse type: an `int` or `float` within [low, high], or (low, high] with `open_low`; `why` ends the error."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not {'a whole number' if kind is int else 'a number'}")
        too_low = low is not None and (value <= low if open_low else value < low)
        if value != value or too_low or (high is not None and value > high):
            bounds = [f"{'above' if open_low else 'at least'} {low}"] if low is not None else []
            bounds += [f"at most {high}"] if high is not None else []
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {' and '.join(bounds)}{why}")
        return value

    return parse


COUNT = number(int, 1, 2**31 - 1)
"""A whole number, at least 1."""
NATURAL = number(int, 0, 2**31 - 1)
"""A whole number, at least 0."""
POSITIVE = number(float, 0, 1e6, open_low=True)
"""A number above 0."""
WEIGHT = number(float, 0, 1e6)
"""A number, at least 0."""
FRACTION = number(float, 0, 1)
"""A number between 0 and 1."""
SEED = number(int, 0, 2**31 - 1)
"""A seed: a whole number between 0 and 2^31 - 1."""


def path(text):
    """An argparse type: a path, in which a ~ at the start is the home folder, wherever a shell has left it there."""
    return Path(data_name(text))


def data_name(text):
    """The same for what may be the name of a data set too, as text."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: leave it out, or name something")
    return os.path.expanduser(text)


def tag(text):
    """An argparse type: the name of a run, which becomes one folder."""
    if not text or text in (".", "..") or any(c in text for c in "/\\\0"):
        raise argparse.ArgumentTypeError(f"'{text}' must be the name of one folder, without slashes")
    if text.lower() == "pools":  # which some systems take for one name
        raise argparse.ArgumentTypeError(f"'{text}' is the folder that classifiers are kept in: choose another name")
    if any("\ud800" <= c <= "\udfff" for c in text):  # bytes that are no UTF-8
        raise argparse.ArgumentTypeError(f"{text!a} is no text: choose another name")
    if len(os.fsencode(text)) > LONGEST:
        raise argparse.ArgumentTypeError(f"a name of more than {LONGEST} bytes makes no folder")
    return text


def add_run_arguments(parser, default_tag):
    """The flags that say where a run is kept and how its random draws start."""
    group = parser.add_argument_group("run")
    group.add_argument("--tag", type=tag, default=default_tag, help="name of the run: its folder under --output-dir")
    group.add_argument("--output-dir", type=Path, default=Path("results"), help="folder that holds the runs")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier run of the same tag")
    group.add_argument("--seed", type=SEED, default=3407, help="seed of every random draw, but of the pretraining of "
                       "pools, which runs of all seeds share")
    group.add_argument("--precision", choices=PRECISIONS, default="auto",
                       help="arithmetic of the networks; auto: bf16 where the hardware computes it natively, else fp32")
    group.add_argument("--compile", choices=COMPILE, default="auto",
                       help="compile the networks; auto: where the run is long enough to gain by it and a compiler works")
    return group


def add_data_arguments(parser, whiten=False):
    """The flags that choose the real images, and with `whiten` how classifiers see them."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", "-d", type=data_name, default=None, metavar="NAME|PATH",
                       help="a data set's name, or a folder with train/ and test/ (or val/) in ImageFolder layout "
                            "(default: that of the run that is continued or judged, else digits)")
    group.add_argument("--data-dir", type=Path, default=None,
                       help="where named data sets are downloaded, and the caches of folders that cannot be written to are "
                            "kept (default: $DATA_DIR, else a cache folder)")
    group.add_argument("--image-size", type=number(int, 8, LARGEST, why=", for which the networks are made"), default=None,
                       help="side of the square images, in pixels (default: the data set's own; a folder's: 32, or that "
                            "of its pictures, if every class begins with a square of one larger size)")
    group.add_argument("--classes", type=NATURAL, nargs="+", default=None, metavar="LABEL",
                       help="only these classes, by their labels, in this order (default: those of the run that is continued "
                            "or judged, else all)")
    group.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=None,
                       help="whether images keep their class when they are mirrored, so that augmentations may do it (default: "
                            "that of the run that is continued or judged, else no for digits, mnist, svhn and what is named "
                            "after them, and yes for others)")
    group.add_argument("--held-out", type=number(float, 0.01, 0.5), default=None,
                       help="fraction of the training images held out for model selection (default: that of the run that is "
                            "continued or judged, else 0.1)")
    if whiten:
        group.add_argument("--whiten", choices=("none", "zca"), default=None,
                           help="what classifiers see: images standardised by channel, or whitened by ZCA; what is stored "
                                "stays pictures (default: that of the run that is continued or judged, else none)")
    return group


def _run_plugins(words):
    """Run the files that --plugin names: before the flags are made, whose choices are the tables' keys."""
    joined = (word.partition("=")[::2] for word in words)
    for file in (path(word) for flag, word in (*zip(words, words[1:]), *joined) if flag == "--plugin" and word):
        if not file.is_file():
            raise UserError(f"--plugin {file}: there is no such file")
        name = f"plugin {file.resolve()}"
        if name not in sys.modules:
            if file.suffix != ".py":
                raise UserError(f"--plugin {file}: name a file that ends in .py")
            spec = importlib.util.spec_from_file_location(name, file)
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except Exception:  # whose traceback its author wants
                del sys.modules[name]
                say(f"--plugin {file} ends in an error:")
                raise


_NO_MEMORY = ("out of memory", "can't allocate memory", "DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
"""What torch's RuntimeErrors say where there is none left."""


def first_line(error):
    """What an error says, but for what follows its first line."""
    return str(error).strip().partition("\n")[0]


def run_script(main):
    """Call `main()`; a UserError, or one of files, folders or memory, becomes one line on standard error and exit code 2,
    Ctrl-C exit code 130. Where nobody reads on what is printed, as behind `| head`, that ends it without a word."""
    warnings.filterwarnings("ignore", module="torch.utils.tensorboard")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    name = Path(sys.argv[0]).name
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # folders have names that are no text
    try:
        _run_plugins(sys.argv)
        main()
    except BrokenPipeError:
        sys.exit(1)
    except UserError as error:
        say(f"{name}: error: {' '.join(str(error).split())}", everyone=True)  # others may not have failed
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"{name}: error: {where}{error.strerror or error}: check the path, its permissions and the room there",
            everyone=True)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # of a backward, which is compiled late
            say(f"{name}: error: networks cannot be compiled here ({first_line(error)}): give --compile off", everyone=True)
            sys.exit(2)
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        say(f"{name}: error: out of memory: give a smaller --batch-size, --match-batch, --class-batch (0 is all), --ipc or "
            "--together", everyone=True)
        sys.exit(2)
    except KeyboardInterrupt:
        say(f"{name}: interrupted")
        sys.exit(130)
    finally:
        _flush()


def _flush():
    """Write out what was printed, so that Python need not when it ends, and complain where nobody reads it."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
