"""What is wrong with a data folder, in one sentence for the person who runs the broker: where, what, what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
_TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)


def describe_failure(folder: Path, error: BaseException, free_bytes: int | None = None) -> str:
    """The sentence for an error that ends the use of a data folder, or keeps it from being used at all.

    Args:
        error: what was raised. If an OSError is at the bottom of it, the sentence says what to do about that.
        free_bytes: how much could still be written there; None if that is not known.
    """
    cause = os_error_of(error)
    if cause is None:
        return f"data directory {folder} cannot be used: {reason_of(error)}"
    free = "" if free_bytes is None else f" ({free_bytes:,} bytes are free)"
    return f"data directory {folder} cannot be used{free}: {reason_of(error)}; {_advice(cause, folder)}"


def os_error_of(error: BaseException | None) -> OSError | None:
    """The OSError that an error was made from, or is."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error


def reason_of(error: BaseException) -> str:
    """What an error says, with the file that an OSError is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or repr(error)


def _advice(error: OSError, folder: Path) -> str:
    if error.errno in _FULL:
        return "make room there, or move the folder to a larger disk, and start the broker again"
    if error.errno in _FORBIDDEN:
        return f"let user {os.geteuid()} read and write it, and start the broker again"
    if error.errno in _TOO_MANY_OPEN:
        return "let the process open more files (ulimit -n), and start the broker again"
    if error.errno == errno.EFBIG:
        return "let the process write larger files (ulimit -f), and start the broker again"
    if error.errno in _NO_FOLDER:
        return "choose another --data"
    if not folder.exists():
        return "something has removed it: restore it, or start the broker again without what it held"
    return "look at the disk (its errors are in the kernel's log), and start the broker again"
