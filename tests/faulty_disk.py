"""A process whose n-th change of the disk below a folder fails: it is killed there, or gets an error.

Changes are what Python's audit hooks tell of (opening for writing, renaming, making and removing), and syncs.
Writes themselves are torn by a limit on the size of files.
"""

import errno
import os
import resource
import signal
import sys
from pathlib import Path

import torch

from lmcore.errors import GristmillError

AUDITED = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}
KINDS = {"kill": None, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS}


class Disk:
    """Counts changes below ``folder``; number ``at`` fails as ``kind``, with ``lasting`` all later ones."""

    def __init__(self, folder: Path, at: int, kind: str, *, lasting: bool) -> None:
        self.folder, self.at, self.kind, self.lasting = str(folder), at, kind, lasting
        self.count = 0
        sys.addaudithook(self._audit)
        real = os.fsync
        os.fsync = lambda file: (self._change(f"/proc/self/fd/{file}"), real(file))[1]

    def _audit(self, event, arguments):
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._change(os.fspath(path))
        elif event in AUDITED and isinstance(arguments[0], (str, bytes, os.PathLike)):
            self._change(os.fspath(arguments[0]))

    def _change(self, path):
        path = os.path.realpath(os.fsdecode(path))
        if not path.startswith(self.folder):
            return
        self.count += 1
        if self.count == self.at or (self.lasting and 0 < self.at < self.count):
            if self.kind == "kill":
                os._exit(137)
            number = KINDS[self.kind]
            raise OSError(number, os.strerror(number), path)


def in_a_child(work, folder, at=0, kind="kill", *, lasting=False, max_file_bytes=None):
    """Do ``work`` in a fork on a faulty disk; return the number of changes, and how it ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        torch.set_num_threads(1)
        disk = Disk(folder.resolve(), at, kind, lasting=lasting)
        if max_file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
        told = "ok"
        try:
            work()
        except GristmillError as error:
            told = f"{type(error).__name__}: {error}"
        except BaseException as error:
            told = f"RAW {type(error).__name__}: {error}"
        os.write(write, f"{disk.count} {told}"[:4000].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    count, _, text = told.partition(" ")
    return int(count or 0), text or "died"
