"""Flags made from the fields of dataclasses: what a flag means, takes and allows is said once, at its field."""

import argparse
import dataclasses
from collections.abc import Callable

from gendistil.common.errors import UserError

LENGTH_GROUP = "length and reports"
"""A heading of flags that several dataclasses and scripts share."""


def option(help, default=dataclasses.MISSING, **facts):
    """A field that is a flag too: `--` and its name, with dashes.

    Args: help, the flag's text; default, the field's; facts: `type`, `choices`, `nargs`, `metavar` and `action` as argparse has
    them; `group`, the heading that the flag stands under; whatever else a table wants to say. Text and choices may be functions
    that give them, where they are of a table to which a plugin may add.
    """
    return dataclasses.field(default=default, metadata={"help": help, **facts})


def flag_of(name):
    """The flag of the field, or the option, called `name`."""
    return f"--{name.replace('_', '-')}"


_PASSED = ("help", "type", "choices", "nargs", "metavar", "action")  # to argparse, as they are


def _check_once(action, parser, namespace, option_string):
    """Refuse a flag of several values that is given again: those behind the first would be forgotten."""
    if option_string and action.nargs in ("+", "*") and getattr(namespace, action.dest) is not action.default:
        parser.error(f"{option_string} is given twice: write all its values behind one")


class Once(argparse._StoreAction):
    """Keeps the value of a flag as argparse does, but those of a flag of several values only once."""

    def __call__(self, parser, namespace, values, option_string=None):
        _check_once(self, parser, namespace, option_string)
        super().__call__(parser, namespace, values, option_string)


class Flattened(argparse.Action):
    """Keeps the different values of the tuples that a flag's `type` makes of its words, in order, as one list; only once."""

    def __call__(self, parser, namespace, values, option_string=None):
        _check_once(self, parser, namespace, option_string)
        setattr(namespace, self.dest, list(dict.fromkeys(value for several in values for value in several)))


class _Listing(argparse.Action):
    """Prints what its `const` gives, called without arguments, and leaves."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(self.const())
        parser.exit()


def add_listing(parser, flag, table):
    """A flag that prints the text which `table()` gives, and leaves."""
    parser.add_argument(flag, action=_Listing, nargs=0, const=table, help="print a table of their values and leave")


def cell(value):
    """A value as a table shows it: a dash for None, yes or no for what is true or false, else its text."""
    words = {None: "–", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def markdown_table(header, lines):
    """A table as markdown: `header` and each of `lines` are lists of texts, one for each column."""
    first, *others = ("| " + " | ".join(texts) + " |" for texts in (header, *lines))
    return "\n".join([first, "|" + " --- |" * len(header), *others])


def columns(rows):
    """Rows of a table, dataclasses of flags by their names, as markdown: a column for each, a line for each flag."""
    names = dict.fromkeys(field.name for row in rows.values() for field in flag_fields(row))
    return markdown_table(["flag", *rows], [
        [f"`{flag_of(name)}`", *(cell(getattr(row, name, None)) for row in rows.values())] for name in names])


def flag_fields(kind):
    """The fields of a dataclass that are flags."""
    return [field for field in dataclasses.fields(kind) if "help" in field.metadata]


def add_flags(parser, *kinds, told=False):
    """A flag of a `Parser` for every option of the dataclasses `kinds`, under its group; one that several have is made once.

    A flag that is not given is None. With `told` its help says the default that `from_flags` will give it.
    """
    made = {action.dest for action in parser._actions}
    for field in (field for kind in kinds for field in flag_fields(kind) if field.name not in made):
        facts = {key: field.metadata[key] for key in _PASSED if key in field.metadata}
        facts |= {key: facts[key]() for key in ("help", "choices") if callable(facts.get(key))}
        if told and field.default and "default" not in facts["help"]:
            facts["help"] += f" (default: {field.default})"
        if field.type is bool:
            facts["action"] = argparse.BooleanOptionalAction
        parser.group(field.metadata.get("group", "options")).add_argument(flag_of(field.name), **facts)
        made.add(field.name)


def with_tuples(values):
    """The dict `values` with tuples, as fields have them, in place of the lists of command lines and JSON."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def given(kind, args):
    """The values of the options of `kind` that the command line gave: a dict."""
    values = {field.name: getattr(args, field.name, None) for field in flag_fields(kind)}
    return with_tuples({name: value for name, value in values.items() if value is not None})


def override(row, args, takes=lambda field: True):
    """The dataclass `row` with the flags of `args` that were given, and that `takes(field)` lets in, in place of its values."""
    allowed = {field.name for field in flag_fields(type(row)) if takes(field)}
    return dataclasses.replace(row, **{name: value for name, value in given(type(row), args).items() if name in allowed})


def refuse(args, kinds, useless, why):
    """Raise UserError if a flag of `kinds` was given for whose field `useless(field)` is true; `why` ends the sentence."""
    for field in (field for kind in kinds for field in flag_fields(kind) if useless(field)):
        if getattr(args, field.name, None) is not None:
            raise UserError(f"{flag_of(field.name)} {why}")


@dataclasses.dataclass(frozen=True)
class Idle:
    """The names of fields that do nothing in a row of which `when` is true, and what an error says of their flags, with the
    row's values in braces."""

    when: Callable
    words: str
    fields: set


def refuse_idle(args, row, table, but=lambda field: False, end=""):
    """Raise UserError if a flag of the dataclass `row` was given that does nothing in it by an `Idle` of `table`, unless
    `but(field)` is true of its field. The error is the words of that `Idle`, and `end`."""
    for idle in table:
        if idle.when(row):
            why = idle.words.format_map(vars(row)) + end
            refuse(args, (type(row),), lambda field, idle=idle: field.name in idle.fields and not but(field), why)


def from_flags(kind, args):
    """A `kind` from its flags, which the command line gave or which have their fields' defaults."""
    return kind(**given(kind, args))
