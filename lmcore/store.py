"""Artifacts: directories named by what made them, committed whole or not at all.

A stage is a pure function to a directory. Its key is the SHA-256 of canonical JSON of the stage's name and
version, the settings that differ from their defaults, the digests of its inputs and the versions of the
libraries that decide its bytes. ``ensure`` returns the artifact of that key, building it if it is not there.

Layout below the store's root::

    <stage>/<key>/manifest.json ...   a committed artifact
    <stage>/.build-<key>-<random>/    a build in progress, or what a killed one left
    <stage>/.lock-<key>               held while that key is built on this machine
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmcore.config import Identity, Json
from lmcore.disk import FAULTS, disk_errors, storage_error
from lmcore.errors import StorageError

MANIFEST = "manifest.json"
_NOT_WRITABLE = (errno.EEXIST, errno.ENOTDIR)
UNICODE = "unicode"
MOST_SHOWN = 60  # characters of a value in a reason
MOST_CHANGES = 3  # within one setting
_WORTH_A_THREAD_BYTES = 4_000_000  # two of them take 2 ms each
DECIDING_LIBRARIES = ("tokenizers", "gigatoken", "pyarrow")

Status = Literal["built", "reused"]
Build = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Artifact:
    """A committed directory, and how it came to be there this time.

    Attributes:
        stage: Name of the stage.
        key: 64 hexadecimal digits.
        path: The directory; treat it as read-only.
        status: ``built`` or ``reused``.
        reason: Why it was built, or what was noticed on reuse; may be empty.
        seconds: Time spent in ``ensure``.
        summary: What the build reported about itself (rows, tokens, books ...).
        digest: SHA-256 over the names and hashes of its files: what a later stage takes as input.
    """

    stage: str
    key: str
    path: Path
    status: Status
    reason: str
    seconds: float
    summary: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Stage:
    """What is to be made, of what: all that a key is made of.

    Attributes:
        name: Name of the stage; a file name.
        version: Raised by hand when the stage's code changes what it makes.
        identity: Settings that decide the result.
        inputs: Digest of each input, by name.
        deciding: Distributions whose versions decide the bytes; ``UNICODE`` is the tables of Python itself.
    """

    name: str
    version: int
    identity: Identity
    inputs: Mapping[str, str]
    deciding: tuple[str, ...] = DECIDING_LIBRARIES

    @functools.cached_property
    def libraries(self) -> dict[str, str]:
        """Installed version of each deciding distribution."""
        return {name: _installed(name) for name in self.deciding}

    @functools.cached_property
    def key(self) -> str:
        """64 hexadecimal digits."""
        return sha256_json(
            {
                "stage": self.name,
                "version": self.version,
                "settings": self.identity.chosen,
                "inputs": dict(self.inputs),
                "libraries": self.libraries,
            }
        )

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps of this."""
        return {
            "stage": self.name,
            "version": self.version,
            "key": self.key,
            "settings": self.identity.values,
            "chosen": self.identity.chosen,
            "inputs": dict(self.inputs),
            "libraries": self.libraries,
        }

    def differences(self, manifest: Mapping[str, Any]) -> list[str]:
        """Say how this differs from that of an earlier artifact, most telling first."""
        texts = _changes(manifest["settings"], self.identity.values)
        texts += _comings_and_goings(manifest, self.identity)
        for name in sorted(self.inputs.keys() | manifest["inputs"].keys()):
            if self.inputs.get(name) != manifest["inputs"].get(name):
                texts.append(f"input {name} changed")
        texts += _changes(manifest["libraries"], self.libraries)
        if manifest["version"] != self.version:
            texts.append(f"stage version went from {manifest['version']} to {self.version}")
        return texts


class Store:
    """A directory of artifacts.

    Args:
        root: Created if missing.
        on_wait: Called once when another process builds what is asked for, before waiting for it.
    """

    def __init__(self, root: Path, on_wait: Callable[[], object] = lambda: None) -> None:
        self.root = Path(root)
        self._on_wait = on_wait

    def ensure(self, stage: Stage, build: Build, *, why: bool | str = True) -> Artifact:
        """Return the artifact of ``stage``; build and commit it if it is not there.

        Args:
            stage: What to make, of what.
            build: Writes the files into the directory it is given and returns a JSON summary.
            why: Whether to find out why it is built: that compares with every artifact of the stage. A text:
                it is why, unless there is one that was damaged.

        Raises:
            StorageError: the disk is full or not writable.
        """
        start = time.monotonic()
        target = self.root / stage.name / stage.key
        with _storage_errors(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target.parent / f".lock-{stage.key}", self._on_wait):
                manifest, damage = self._look(target)
                if manifest is not None:
                    return _artifact(target, manifest, "reused", "", start)
                reason = damage or (self._why_not_reused(stage) if why is True else why or "")
                if damage:
                    target.rename(target.parent / f".damaged-{stage.key}-{uuid.uuid4().hex[:8]}")
                self._sweep(target.parent, stage.key)
                manifest = self._build(stage, target, build)
        return _artifact(target, manifest, "built", reason, start)

    def explain(self, stage: Stage) -> tuple[Artifact | None, str]:
        """Return the artifact that ``ensure`` would reuse; or None, and why it would build."""
        start = time.monotonic()
        target = self.root / stage.name / stage.key
        manifest, damage = self._look(target)
        if manifest is not None:
            return _artifact(target, manifest, "reused", "", start), ""
        return None, damage or self._why_not_reused(stage)

    def find(self, stage: str, key: str) -> Artifact:
        """Open the artifact of ``stage`` whose key starts with ``key``.

        Raises:
            StorageError: none or several match, or the artifact is damaged.
        """
        matches = [path for path in self._committed(stage) if path.name.startswith(key)]
        if len(matches) != 1:
            raise StorageError(
                f"no single artifact of stage {stage} has key {key!r}",
                expected="one",
                found=", ".join(path.name[:12] for path in matches) or "none",
                remedy=f"Keys are the folder names in {self.root / stage}.",
            )
        manifest, damage = _verify(matches[0])
        if manifest is None:
            raise StorageError(
                f"artifact {matches[0]} is damaged", found=damage, remedy="Run its stage again."
            )
        return _artifact(matches[0], manifest, "reused", "", time.monotonic())

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """Manifests of all committed artifacts of ``stage``, oldest first; unreadable ones are left out."""
        read = (_read_manifest(path) for path in self._committed(stage))
        return sorted((m for m in read if m is not None), key=lambda m: m["created"])

    def _committed(self, stage: str) -> list[Path]:
        folder = self.root / stage
        if not folder.is_dir():
            return []
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    @staticmethod
    def _look(target: Path) -> tuple[dict[str, Any] | None, str]:
        return _verify(target) if target.exists() else (None, "")

    def _build(self, stage: Stage, target: Path, build: Build) -> dict[str, Any]:
        work = target.parent / f".build-{stage.key}-{uuid.uuid4().hex[:8]}"
        work.mkdir()
        try:
            started = time.time()
            summary = dict(build(work))
            manifest = {
                **stage.record(),
                "summary": summary,
                "files": hash_files(work),
                "git_commit": git_commit(),
                "created": started,
                "build_seconds": round(time.time() - started, 3),
            }
            manifest["digest"] = _digest_of_files(manifest["files"])
            manifest = json.loads(json.dumps(manifest))  # as it will be read
            manifest["sha256"] = sha256_json(manifest)
            _write_synced(work / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
            _sync_tree(work)
            try:
                work.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                # Another machine won the race for the same key: its copy is as good as ours.
                winner, damage = _verify(target)
                if winner is None:
                    raise StorageError(
                        f"artifact {target} is damaged", found=damage, remedy="Run again."
                    ) from None
                return winner
            _sync_directory(target.parent)
            return manifest
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _sweep(self, folder: Path, key: str) -> None:
        # We hold this key's lock, so a build directory of it belongs to a process that died.
        for leftover in folder.glob(f".build-{key}-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _why_not_reused(self, stage: Stage) -> str:
        earlier = self.manifests(stage.name)
        if not earlier:
            return "nothing built before"
        # The nearest is the one with the fewest differences; of those, the newest.
        differences = [stage.differences(manifest) for manifest in reversed(earlier)]
        return "; ".join(min(differences, key=len)) or "an earlier artifact could not be used"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is another, a text for each setting."""
    changes = []
    for name in sorted(old.keys() & new.keys()):
        found = _changed(name, old[name], new[name])
        if len(found) > MOST_CHANGES:
            found = [*found[:MOST_CHANGES], f"and {len(found) - MOST_CHANGES} more in {name}"]
        changes += ["; ".join(found)] if found else []
    return changes


def _changed(name: str, old: Any, new: Any) -> list[str]:
    """What is another in ``name``: of lists and tables that are alike but for some entries, these."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [change for key in old for change in _changed(f"{name}.{key}", old[key], new[key])]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for i, pair in pairs for change in _changed(f"{name}.{i}", *pair)]
    if max(len(_short(old)), len(_short(new))) < MOST_SHOWN:
        return [f"{name} went from {_short(old)} to {_short(new)}"]
    if isinstance(old, list) and isinstance(new, list):
        return [f"{name} went from {len(old)} to {len(new)} entries"]
    return [f"{name} is another"]


def _comings_and_goings(manifest: Mapping[str, Any], identity: Identity) -> list[str]:
    # A field that came or went with the code matters only where it is not at its default.
    old, new = manifest["settings"], identity.values
    came = [
        f"{name}, not a setting then, is {_short(identity.chosen[name])}"
        for name in sorted(identity.chosen.keys() - old.keys())
    ]
    went = [
        f"{name}, no setting any more, was {_short(manifest['chosen'][name])}"
        for name in sorted(manifest["chosen"].keys() - new.keys())
    ]
    return came + went


def _short(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def _artifact(path: Path, manifest: Mapping[str, Any], status: Status, reason: str, start: float) -> Artifact:
    return Artifact(
        stage=manifest["stage"],
        key=manifest["key"],
        path=path,
        status=status,
        reason=reason,
        seconds=time.monotonic() - start,
        summary=manifest["summary"],
        digest=manifest["digest"],
    )


# --- reading and writing ---------------------------------------------------------------------------


def sha256_json(value: Any) -> str:
    """SHA-256 of canonical JSON (sorted keys, no spaces), in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_file(path: Path) -> dict[str, Any]:
    """Size (bytes) and SHA-256 of a file, as manifests have them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def write_atomically(path: Path, text: str | bytes) -> None:
    """Replace ``path`` by ``text`` (UTF-8) so that a reader sees the old file or the new one, whole.

    Raises:
        StorageError: the disk is full, read-only or broken.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with disk_errors(path, f"{path.name} was written"):
        try:
            _write_synced(temporary, text)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)


@functools.cache
def git_commit() -> str:
    """Commit of the checkout this code runs from, ``-dirty`` appended if it was changed; or empty."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--match", ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def link(source: Path, target: Path) -> None:
    """Let ``target`` be the same file as ``source``, which nobody writes to again; or a copy of it."""
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def hash_files(root: Path) -> dict[str, dict[str, Any]]:
    """Size (bytes) and SHA-256 of every file below ``root`` but its manifest, by relative path."""
    paths = sorted(p for p in root.rglob("*") if p.is_file() and p != root / MANIFEST)
    if sum(path.stat().st_size >= _WORTH_A_THREAD_BYTES for path in paths) < 2:
        hashes = [sha256_file(path) for path in paths]
    else:  # hashlib releases the GIL, so threads use all cores
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(sha256_file, paths))
    return {
        path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }


def _digest_of_files(files: Mapping[str, Any]) -> str:
    return sha256_json({name: entry["sha256"] for name, entry in files.items()})


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict):
        return None
    # It vouches for the other files, so it must vouch for itself.
    vouched = manifest.pop("sha256", None) == sha256_json(manifest)
    return manifest if vouched and manifest["key"] == path.name else None


def _verify(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the manifest of a whole artifact, or None and what is wrong with it."""
    manifest = _read_manifest(path)
    if manifest is None:
        return None, f"the artifact at {path.name[:12]} was damaged: its manifest is not what was written"
    found = hash_files(path)
    for name in sorted(manifest["files"].keys() | found.keys()):
        if manifest["files"].get(name) != found.get(name):
            return None, f"the artifact at {path.name[:12]} was damaged: {name} is not what was written"
    return manifest, ""


@functools.cache
def _installed(distribution: str) -> str:
    if distribution == UNICODE:
        return unicodedata.unidata_version
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _write_synced(path: Path, text: str | bytes) -> None:
    with path.open("wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_directory(path)
    _sync_directory(root)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _storage_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # A build reads other folders too: what goes wrong there is not the store's to explain.
        named = error.filename is not None
        ours = named and Path(str(error.filename)).is_relative_to(_existing(root))
        # Writing and syncing name no file: those are the store's, as nothing else is written.
        if not (error.errno in FAULTS and (ours or not named)) and not (
            ours and error.errno in _NOT_WRITABLE
        ):
            raise
        raise storage_error(
            root, f"an artifact was built: cannot write below {_existing(root)}", error
        ) from error


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
