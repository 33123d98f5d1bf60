"""Folders that one command at a time writes."""

import os

from gendistil.common.errors import UserError

try:
    import fcntl
except ImportError:  # as on Windows, where no folder is locked
    fcntl = None

_HELD = {}  # by this process: handles by the folders


def check_free(folder):
    """Raise UserError where another process has locked a folder."""
    if folder.resolve() not in _HELD:
        handle = _lock(folder, "LOCK_SH")  # which several that ask at the same time get
        if handle is not None:
            os.close(handle)


def hold(folder):
    """Lock a folder for this process, until it ends or says `release`. Raises UserError where another has done so.

    The lock is the system's, on the folder itself: it leaves no file, and none stays after a kill. Where there is no such lock
    this does nothing.
    """
    key = folder.resolve()
    if _HELD.get(key) is not None and not os.path.samestat(os.fstat(_HELD[key]), os.stat(folder)):
        release(folder)  # it was removed and made again
    if key not in _HELD:
        _HELD[key] = _lock(folder, "LOCK_EX")


def release(folder):
    """End what `hold` began, if it did."""
    handle = _HELD.pop(folder.resolve(), None)
    if handle is not None:
        os.close(handle)


def _lock(folder, kind):
    """A handle whose life is that of the lock, or None where there is none to be had."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # it may not be read
        return None
    try:
        fcntl.flock(handle, getattr(fcntl, kind) | fcntl.LOCK_NB)
        return handle
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"another command is writing {folder}: wait for it, or choose another --tag") from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
