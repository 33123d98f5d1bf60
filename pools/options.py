"""Named options of the classifiers."""

from gendistil.common.errors import UserError


def choose(table, name, what):
    """`table[name]`, or a UserError that lists the names."""
    if name not in table:
        raise UserError(f"unknown {what} '{name}': choose from {', '.join(map(str, table))}")
    return table[name]
