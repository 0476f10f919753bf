"""A run's inputs are what their stage wrote: checked once at the start, by the manifest beside them.

What a process maps from a file is never looked at as a whole, so a flipped bit would be trained on. The main
process hashes the files before anything is read, for a bounded time, and keeps stamps (size, time and inode)
of those that were whole, so that a resumed run hashes only what has changed since.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmcore.disk import disk_errors
from lmcore.errors import DataError
from lmcore.store import MANIFEST, sha256_json, write_atomically

CHUNK_BYTES = 1 << 22
STAMPS = ".verified.json"
THREADS = 4


@dataclass
class Verified:
    """What was found whole.

    Attributes:
        hashed_bytes: Read and compared now.
        known_bytes: Of files that were compared before and have not changed since.
        left: Files that there was no time for.
        without: Directories that have no manifest.
    """

    hashed_bytes: int = 0
    known_bytes: int = 0
    left: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What was not verified, for the log; empty if all was."""
        texts = [f"note: {path} has no {MANIFEST}: its files are read unverified" for path in self.without]
        if self.left:
            shown = ", ".join(self.left[:3]) + (" ..." if len(self.left) > 3 else "")
            texts.append(
                f"warning: {len(self.left)} file(s) were not verified within launch.verify_seconds: {shown}"
            )
        return texts


def verify_inputs(
    directories: Iterable[tuple[Path, tuple[str, ...]]], run_dir: Path, seconds: float, digest: str = ""
) -> Verified:
    """Compare the files of artifacts with their manifests.

    Args:
        directories: Of artifacts, and the folders in each that are used; none: all.
        run_dir: Where stamps are kept.
        seconds: Most that may be spent on hashing; sizes are always compared. 0: nothing is done.
        digest: What the first artifact's is to be; empty: not known.

    Raises:
        DataError: a file is missing, or is not what was written.
    """
    found = Verified()
    if not seconds:
        return found
    known, deadline = _read_stamps(run_dir), time.monotonic() + seconds
    stamps: dict[str, list[Any]] = {}
    for number, (directory, folders) in enumerate(directories):
        manifest = _read_manifest(directory)
        if manifest is None:
            found.without.append(str(directory))
            continue
        if number == 0 and digest and manifest.get("digest", digest) != digest:
            raise _damaged(directory, f"artifact {manifest['digest'][:12]}, not {digest[:12]}")
        wanted = {n: e for n, e in manifest["files"].items() if not folders or n.split("/")[0] in folders}
        _verify(directory, wanted, known, stamps, deadline, found)
    if stamps != known:
        with disk_errors(run_dir / STAMPS, "stamps of verified files were written"):
            write_atomically(run_dir / STAMPS, json.dumps(stamps))
    return found


def _verify(
    directory: Path,
    files: dict[str, dict[str, Any]],
    known: dict[str, list[Any]],
    stamps: dict[str, list[Any]],
    deadline: float,
    found: Verified,
) -> None:
    todo = []
    for name, expected in files.items():
        path = directory / name
        stamp = [*_stamp(path, directory), expected["sha256"]]
        if stamp[0] != expected["bytes"]:
            raise _damaged(path, f"{stamp[0]:,} bytes, not {expected['bytes']:,}")
        if known.get(str(path.absolute())) == stamp:
            found.known_bytes += stamp[0]
            stamps[str(path.absolute())] = stamp
        else:
            todo.append((path, stamp))
    with ThreadPoolExecutor(THREADS) as pool:
        for (path, stamp), digest in zip(todo, pool.map(lambda t: _hash(t[0], deadline), todo), strict=True):
            if digest is None:
                found.left.append(path.relative_to(directory).as_posix())
                continue
            if digest != stamp[-1]:
                raise _damaged(path, "another SHA-256")
            found.hashed_bytes += stamp[0]
            stamps[str(path.absolute())] = stamp


def _hash(path: Path, deadline: float) -> str | None:
    """SHA-256 of a file; None if the time was up before its end."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                if time.monotonic() > deadline:
                    return None
                digest.update(chunk)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    return digest.hexdigest()


def _stamp(path: Path, directory: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise _damaged(directory, f"no {path.name} ({error.strerror})") from None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _read_stamps(run_dir: Path) -> dict[str, list[Any]]:
    try:
        stamps = json.loads((run_dir / STAMPS).read_text(encoding="utf-8"))
        return stamps if isinstance(stamps, dict) else {}
    except (OSError, ValueError):
        return {}


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of an artifact or of a model; None if there is none."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        vouched = manifest.pop("sha256") == sha256_json(manifest)
        files = manifest["files"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if not vouched or not isinstance(files, dict):
        raise _damaged(path, "another content")
    return manifest


def _damaged(path: Path, found: str) -> DataError:
    return DataError(
        f"{path} is not what its stage wrote",
        expected=f"the size and SHA-256 in the {MANIFEST} of its artifact",
        found=found,
        remedy="Run the command again: the stage is built anew where it is damaged.",
    )
