"""The exceptions that a user is meant to read."""


class UserError(Exception):
    """Bad input. Its message is one line that names the flag or file and the remedy; the scripts print it and exit 2."""


class Diverged(UserError):
    """A training whose loss is no longer finite."""
