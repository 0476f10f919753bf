"""Errors of disks, told with the path, the room that is left there, and what to do."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from lmcore.errors import StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EFBIG, errno.EREMOTEIO})
FAULTS = FULL | READ_ONLY | BROKEN
OCCUPIED = frozenset({errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP})
_KINDS = (
    (OCCUPIED, "had something else in that place", "Choose another path"),
    (FULL, "was full", "Free room there, or set GRISTMILL_HOME to another disk"),
    (
        READ_ONLY,
        "may not be written",
        "Mount it for writing or mend its permissions, or set GRISTMILL_HOME to another disk",
    ),
    (
        BROKEN,
        "failed",
        "See the system's log (`dmesg`) and check the disk, or set GRISTMILL_HOME to another",
    ),
)


@contextlib.contextmanager
def disk_errors(path: Path, done: str, kept: str = "what was finished is kept") -> Iterator[None]:
    """Raise an ``OSError`` inside that is the disk's as a ``StorageError``.

    Args:
        path: What is read or written; an error that names a path tells of that one.
        done: What was not done, as in "the disk was full before checkpoint step-00000020 was written".
        kept: What is not lost.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FAULTS:
            raise
        raise storage_error(path, done, error, kept) from error


def storage_error(
    path: Path, done: str, error: BaseException, kept: str = "what was finished is kept"
) -> StorageError:
    """The error to raise for ``error``: the path, why, and the bytes that are free there."""
    number = getattr(error, "errno", None)
    named = getattr(error, "filename", None)
    where = Path(str(named)) if named else Path(path)
    free = free_bytes(where)
    if number is None and free is not None and free < 1_000_000:
        number = errno.ENOSPC  # what wraps an error of the disk may have lost its number
    _, happened, remedy = next((kind for kind in _KINDS if number in kind[0]), _KINDS[-1])
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[-300:] or type(error).__name__
    details = [f"errno {number}"] if number else []
    details += [] if free is None else [f"{free / 1e6:,.1f} MB free"]
    return StorageError(
        f"the disk {happened} before {done}",
        expected="room, and permission to write",
        found=f"{why} at {where}" + (f" ({', '.join(details)})" if details else ""),
        remedy=f"{remedy}; {kept}.",
    )


def free_bytes(path: Path) -> int | None:
    """Bytes that are free where ``path`` is or would be; None: the disk does not say."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None
