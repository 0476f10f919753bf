"""Checkpoints that are whole or are not there.

    checkpoints/.build-<random>/   being written, or what a killed process left
    checkpoints/.damaged-step-.../ passed over on resuming; gone after the next commit
    checkpoints/step-00000030/     committed:
        *.distcp, .metadata          weights and optimizer state, each process its part (torch DCP)
        state.json                   everything else: the step, and the run that wrote it
        manifest.json                size and SHA-256 of each file above
        COMMIT                       SHA-256 of manifest.json; written last
    checkpoints/.replaced-step-.../ the one before of the same step, until the new one is in its place

Nothing is read before its hash was checked: DCP itself loads damaged numbers without a word. Nor is anything
executed that was made to fit its hashes (``lmcore.train.shards``). A folder under the name of another step is
passed over.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lmcore.disk import disk_errors, free_bytes, storage_error
from lmcore.errors import CheckpointError, GristmillError, StorageError
from lmcore.parallel.mesh import World
from lmcore.parallel.parts import local
from lmcore.store import MANIFEST, hash_files, sha256_file, write_atomically
from lmcore.train.shards import ShardReader, TensorPlanner, read_index

STATE = "state.json"
COMMIT = "COMMIT"
PREFIX = "step-"
REPLACED = ".replaced-"
RUN = ".run-id"
SPARE_BYTES = 16_000_000  # for the log, the events and the manifest


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds besides tensors.

    Attributes:
        step: Optimizer steps done; the schedule and the order of the data follow from it.
        loss_scale: Scale, good steps and skipped steps.
        belongs_to: Settings and digests that a run must share to go on from here.
        run: Id of the run that wrote it; empty: of an earlier version, which did not say.
    """

    step: int
    loss_scale: dict[str, Any]
    belongs_to: dict[str, Any]
    run: str = ""


class Checkpoints:
    """The checkpoints of a run.

    Args:
        run_dir: The run directory.
        world: All its processes call the methods together.
        keep: Newest ones kept.
        num_replicas: Processes that hold the same tensors, of which one is written.
    """

    def __init__(self, run_dir: Path, world: World, keep: int, num_replicas: int = 1) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / "checkpoints"
        self.world = world
        self.keep = keep
        self.num_replicas = num_replicas

    def save(self, tensors: dict[str, Tensor], state: TrainingState) -> Path:
        """Write a checkpoint into a fresh folder and commit it; drop the oldest beyond ``keep``.

        One of the same step stays until the new one is in its place.

        Raises:
            StorageError: the disk has no room for it, or fails; the checkpoints before are kept.
        """
        self.require_room(tensors)
        state = replace(state, run=self.run_id())
        build = self.folder / self._agree(f".build-{uuid.uuid4().hex[:8]}")
        target = self.folder / f"{PREFIX}{state.step:08d}"
        done = f"checkpoint {target.name} was written"
        kept = "the same command goes on from the checkpoint before"
        with disk_errors(build, done, kept):
            build.mkdir(parents=True, exist_ok=True)
        try:
            with _quietly():
                save(dict(tensors), storage_writer=FileSystemWriter(build), no_dist=self._alone)
        except (CheckpointException, OSError, RuntimeError) as error:  # the first is no Exception
            failure = self._not_written(build, done, kept, error)
            shutil.rmtree(build, ignore_errors=True)
            raise failure from error
        self.world.barrier()
        if self.world.is_main:
            with disk_errors(build, done, kept):
                self._commit(build, target, state)
        self.world.wait_for_main()  # it reads all that was written once more
        return target

    def _not_written(self, build: Path, done: str, kept: str, error: BaseException) -> GristmillError:
        """The error to raise for what DCP raised: it wraps that of the disk, or of another process."""
        causes = list(error.failures.values()) if isinstance(error, CheckpointException) else [error]
        for cause in [cause[0] if isinstance(cause, tuple) else cause for cause in causes]:
            if (found := _of_the_disk(cause)) is not None:
                return storage_error(build, done, found, kept)
        if (free_bytes(self.folder) or SPARE_BYTES) < SPARE_BYTES:  # torch says of a full disk what it likes
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return storage_error(build, done, full, kept)
        return CheckpointError(f"an error came before {done}", found=" ".join(str(error).split())[-300:])

    def _commit(self, build: Path, target: Path, state: TrainingState) -> None:
        _write(build / STATE, asdict(state))
        _write(build / MANIFEST, {"files": hash_files(build)})
        (build / COMMIT).write_text(sha256_file(build / MANIFEST))
        _sync(build)
        if target.exists():
            # Not removed before the new one is there: killed in between, the old one is put back.
            target.rename(self.folder / f"{REPLACED}{target.name}")
        try:
            build.rename(target)
        except OSError:
            self._put_back()
            raise
        _sync_directory(self.folder)
        self._sweep(target)

    def run_id(self) -> str:
        """Id of this run, the same for all attempts at it; made when the first one asks."""
        path, found = self.run_dir / RUN, ""
        if self.world.is_main:
            with contextlib.suppress(FileNotFoundError):
                found = path.read_text(encoding="utf-8").strip()
            if not found:
                found = uuid.uuid4().hex
                with disk_errors(path, "the id of the run was written"):
                    write_atomically(path, found + "\n")
        return self._agree(found)

    def require_room(self, tensors: dict[str, Tensor]) -> None:
        """Check that the disk has room for a checkpoint of ``tensors``, what is left of broken saves removed.

        Raises:
            StorageError: it has not.
        """
        if self.world.is_main:
            with disk_errors(self.folder, "the folder of checkpoints was made"):
                self.folder.mkdir(parents=True, exist_ok=True)
            self._put_back()
            for leftover in self.folder.glob(".build-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        (held,) = self.world.add_up([float(sum(local(t).nbytes for t in tensors.values()))])
        needed = held / self.num_replicas
        free = self._agree(shutil.disk_usage(self.folder).free if self.world.is_main else 0)
        if free < needed + SPARE_BYTES:
            raise StorageError(
                f"no room for a checkpoint in {self.folder}",
                expected=f"{(needed + SPARE_BYTES) / 1e6:,.0f} MB free",
                found=f"{free / 1e6:,.0f} MB",
                remedy="Free room there, or set GRISTMILL_HOME to another disk; what was saved is kept.",
            )

    def load_newest(
        self,
        tensors: Callable[[], dict[str, Tensor]],
        belongs_to: dict[str, Any],
        passed_over: Callable[[str, str], None],
        defaults: Collection[str] = (),
    ) -> TrainingState | None:
        """Load the newest whole checkpoint into ``tensors``; None if there is none.

        Args:
            tensors: Makes the tensors to load into.
            belongs_to: What the checkpoint must have been made for.
            passed_over: Told the name of each damaged one, and what is wrong.
            defaults: What of ``belongs_to`` has its default; a checkpoint that does not name one of these was
                made before there was such a setting.

        Raises:
            CheckpointError: it is of another model, other data or another order.
        """
        if self.world.is_main:
            self._put_back()
        for path in self._newest_first():
            damage = self._agree(_damage(path) if self.world.is_main else "")
            if damage:
                passed_over(path.name, damage)
                self._set_aside(path)
                continue
            state = TrainingState(**json.loads((path / STATE).read_text(encoding="utf-8")))
            _check_belongs(path, state.belongs_to, belongs_to, defaults)
            self._load(path, tensors())
            return state
        return None

    def _load(self, path: Path, tensors: dict[str, Tensor]) -> None:
        try:
            with _quietly(), disk_errors(path, f"checkpoint {path.name} was read"):
                load(tensors, storage_reader=ShardReader(path), planner=TensorPlanner(), no_dist=self._alone)
        except CheckpointException as error:  # no Exception, so that nobody would tell of it
            problem = " ".join(str(error).split())[-300:]
            raise CheckpointError(f"checkpoint {path.name} could not be read", found=problem) from error

    def newest(self) -> str:
        """Name of the newest checkpoint; empty if there is none."""
        return max((path.name for path in self.folder.glob(f"{PREFIX}*")), default="")

    def _put_back(self) -> None:
        """Put a checkpoint that was about to be replaced back to its place, unless the new one is there."""
        for path in self.folder.glob(f"{REPLACED}*"):
            target = self.folder / path.name.removeprefix(REPLACED)
            with contextlib.suppress(OSError):
                if target.exists():
                    shutil.rmtree(path)
                else:
                    path.rename(target)

    @property
    def _alone(self) -> bool:
        return self.world.size == 1

    def _newest_first(self) -> list[Path]:
        names = [p.name for p in self.folder.glob(f"{PREFIX}*")] if self.folder.is_dir() else []
        return [self.folder / name for name in self._agree(sorted(names, reverse=True))]

    def _agree(self, value: Any) -> Any:
        """Return what the main process found: file systems do not look the same to all at all times.

        It may take longer over it than a stall: to find damage it reads a whole checkpoint.
        """
        box = [value]
        if not self._alone:
            dist.broadcast_object_list(box, src=0, group=self.world.patient)
        return box[0]

    def _set_aside(self, path: Path) -> None:
        # Under its own name it would count as one of the newest, and push out a whole one of a lower step.
        if self.world.is_main:
            with contextlib.suppress(OSError):
                path.rename(self.folder / f".damaged-{path.name}-{uuid.uuid4().hex[:8]}")

    def _sweep(self, newest: Path) -> None:
        others = sorted(p for p in self.folder.glob(f"{PREFIX}*") if p != newest)
        beyond = others[: max(0, len(others) - self.keep + 1)]
        leftovers = [self.folder.glob(f"{start}*") for start in (".build-", ".damaged-", REPLACED)]
        for path in [*beyond, *itertools.chain(*leftovers)]:
            shutil.rmtree(path, ignore_errors=True)


def _of_the_disk(error: BaseException | None) -> OSError | None:
    """The error of the disk that led to ``error``, if one did."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    # DCP warns that a single process is a single process.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _damage(path: Path) -> str:
    """Say what is wrong with the checkpoint at ``path``; empty if it is whole."""
    try:
        committed = (path / COMMIT).read_text(encoding="utf-8").strip()
        if committed != sha256_file(path / MANIFEST):
            return f"{MANIFEST} is not what was committed"
        expected = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        found = hash_files(path)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    found.pop(COMMIT, None)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            return f"{name} is not what was written"
    return _misplaced(path)


def _misplaced(path: Path) -> str:
    """Say what a checkpoint whose files are whole is not; empty if it is the one of its name."""
    try:
        step = TrainingState(**json.loads((path / STATE).read_text(encoding="utf-8"))).step
        read_index(path)
    except (OSError, ValueError, TypeError) as error:
        return f"{STATE} is none of ours: {error}"
    except CheckpointError as error:
        return str(error)
    expected = f"{PREFIX}{step:08d}"
    return "" if path.name == expected else f"it is a copy of {expected} under another name"


def _check_belongs(
    path: Path, found: dict[str, Any], expected: dict[str, Any], defaults: Collection[str]
) -> None:
    older = {name: expected[name] for name in defaults if name in expected}
    found = {**older, **found}
    different = [name for name in sorted(expected) if found.get(name) != expected[name]]
    if different:
        raise CheckpointError(
            f"checkpoint {path.name} is of another run",
            expected=", ".join(f"{name} {_short(expected[name])}" for name in different),
            found=", ".join(f"{name} {_short(found.get(name))}" for name in different),
            remedy="Go on with the settings it was made with, or train in a fresh run directory.",
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(folder)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
