"""Members of zip and tar archives: an archive is opened and indexed once for many of them.

fsspec opens an archive anew for each member: 2,000 members of a zip archive took 43 s of processor time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

_PROTOCOLS = ("zip", "tar", "libarchive")
SUFFIXES = {".zip": "zip"} | dict.fromkeys(
    (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst"), "tar"
)
_KEPT = 4  # archives open at a time in each process
_IN_MEMORY = 16 << 20
_archives: OrderedDict[tuple[Any, ...], tuple[Any, threading.Lock]] = OrderedDict()
_lock = threading.Lock()


def is_member(url: str) -> bool:
    """Whether ``url`` is a chained address of a file in an archive."""
    own, joined, _ = url.partition("::")
    return bool(joined) and own.partition("://")[0] in _PROTOCOLS


def forget() -> None:
    """Open archives anew from here on, which may have changed."""
    with _lock:
        _archives.clear()


def open_member(url: str) -> BinaryIO:
    """Open the member of an archive at ``url``; several threads may do so.

    Parquet, which is not read from start to end, and members of tar archives are unpacked first.
    """
    own, _, container = url.partition("::")
    filesystem, reading = _archive(own.partition("://")[0], container, url)
    path = filesystem._strip_protocol(own)
    # To go back in a compressed member is to read it from its start.
    if filesystem.protocol == "zip" and not own.lower().endswith(".parquet"):
        file = cast("BinaryIO", filesystem.open(path, "rb"))
        with contextlib.suppress(AttributeError):  # the archive is closed when nothing holds it
            cast("Any", file).filesystem = filesystem
        return file
    # Members of a tar archive share the place in one file: one of them is read at a time.
    unpacked = cast("BinaryIO", tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
    with reading, filesystem.open(path, "rb") as file:
        shutil.copyfileobj(file, unpacked, 1 << 20)
    unpacked.seek(0)
    return unpacked


def _archive(protocol: str, container: str, url: str) -> tuple[Any, threading.Lock]:
    """The file system of an archive, and the lock for reading what cannot be read by several threads."""
    key = (os.getpid(), protocol, container, _stamp(container))
    with _lock:
        if key not in _archives:
            _archives[key] = (fsspec.url_to_fs(url)[0], threading.Lock())
        _archives.move_to_end(key)
        while len(_archives) > _KEPT:
            _archives.popitem(last=False)
        return _archives[key]


def _stamp(container: str) -> tuple[int, int]:
    """Time and size of an archive on this machine, which tell whether it changed."""
    try:
        stat = Path(container.rpartition("::")[2].removeprefix("file://")).stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
