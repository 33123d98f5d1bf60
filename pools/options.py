"""Named options of the classifiers."""

from gendistil.common.errors import UserError

_ANSWERS = {"yes": True, "no": False}


def choose(table, name, what):
    """`table[name]`, or a UserError that lists the names."""
    if name not in table:
        raise UserError(f"unknown {what} '{name}': choose from {', '.join(map(str, table))}")
    return table[name]


def read_option(text, default, what):
    """What `text` says in place of `default`: a number above 0, yes or no, or a word, as `default` is one.

    Raises UserError, which says `what`, for any other text, and for a `default` that is none of these.
    """
    if isinstance(default, bool):
        return choose(_ANSWERS, text, what)
    if isinstance(default, str):
        return text
    if not isinstance(default, (int, float)):
        raise UserError(f"{what} cannot be given in a name: build the classifier in Python, or give it a name by --plugin")
    try:
        value = type(default)(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise UserError(f"'{text}' is no {what}, which is a {'whole ' if isinstance(default, int) else ''}number above 0")
    return value


def write_option(value):
    """The text from which `read_option` reads `value`."""
    return next((text for text, answer in _ANSWERS.items() if answer is value), str(value))
