"""Checkpoints that are whole or are not there.

    checkpoints/.build-<random>/   being written, or what a killed process left
    checkpoints/.damaged-step-.../ passed over on resuming; gone after the next commit
    checkpoints/step-00000030/     committed:
        *.distcp, .metadata          weights and optimizer state, each process its part (torch DCP)
        state.json                   everything else
        manifest.json                size and SHA-256 of each file above
        COMMIT                       SHA-256 of manifest.json; written last

Nothing is read before its hash was checked: DCP itself loads damaged numbers without a word, and keeps its
index as a pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lmcore.errors import CheckpointError, StorageError
from lmcore.parallel.mesh import World
from lmcore.parallel.parts import local
from lmcore.store import MANIFEST, hash_files, sha256_file

STATE = "state.json"
COMMIT = "COMMIT"
PREFIX = "step-"
SPARE_BYTES = 16_000_000  # for the log, the events and the manifest


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds besides tensors.

    Attributes:
        step: Optimizer steps done; the schedule and the order of the data follow from it.
        loss_scale: Scale, good steps and skipped steps.
        belongs_to: Settings and digests that a run must share to go on from here.
    """

    step: int
    loss_scale: dict[str, Any]
    belongs_to: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        run_dir: The run directory.
        world: All its processes call the methods together.
        keep: Newest ones kept.
        num_replicas: Processes that hold the same tensors, of which one is written.
    """

    def __init__(self, run_dir: Path, world: World, keep: int, num_replicas: int = 1) -> None:
        self.folder = run_dir / "checkpoints"
        self.world = world
        self.keep = keep
        self.num_replicas = num_replicas

    def save(self, tensors: dict[str, Tensor], state: TrainingState) -> Path:
        """Write a checkpoint into a fresh folder and commit it; drop the oldest beyond ``keep``.

        Raises:
            StorageError: the disk has no room for it; the checkpoints before are kept.
        """
        self.require_room(tensors)
        build = self.folder / self._agree(f".build-{uuid.uuid4().hex[:8]}")
        target = self.folder / f"{PREFIX}{state.step:08d}"
        build.mkdir(parents=True, exist_ok=True)
        try:
            with _quietly():
                save(dict(tensors), storage_writer=FileSystemWriter(build), no_dist=self._alone)
        except (CheckpointException, OSError, RuntimeError) as error:  # the first is no Exception
            free = shutil.disk_usage(self.folder).free
            shutil.rmtree(build, ignore_errors=True)
            if free < SPARE_BYTES:
                raise StorageError(
                    f"the disk was full before checkpoint {target.name} was written",
                    found=f"{free / 1e6:.1f} MB free",
                    remedy="Free room there; the same command goes on from the checkpoint before.",
                ) from error
            if isinstance(error, CheckpointException):
                problem = " ".join(str(error).split())[-300:]
                raise CheckpointError(f"checkpoint {target.name} was not written", found=problem) from error
            raise
        self.world.barrier()
        if self.world.is_main:
            _write(build / STATE, asdict(state))
            _write(build / MANIFEST, {"files": hash_files(build)})
            (build / COMMIT).write_text(sha256_file(build / MANIFEST))
            _sync(build)
            shutil.rmtree(target, ignore_errors=True)
            build.rename(target)
            _sync_directory(self.folder)
            self._sweep(target)
        self.world.wait_for_main()  # it reads all that was written once more
        return target

    def require_room(self, tensors: dict[str, Tensor]) -> None:
        """Check that the disk has room for a checkpoint of ``tensors``, what is left of broken saves removed.

        Raises:
            StorageError: it has not.
        """
        if self.world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
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
        for path in self._newest_first():
            damage = self._agree(_damage(path) if self.world.is_main else "")
            if damage:
                passed_over(path.name, damage)
                self._set_aside(path)
                continue
            state = TrainingState(**json.loads((path / STATE).read_text(encoding="utf-8")))
            _check_belongs(path, state.belongs_to, belongs_to, defaults)
            with _quietly():
                load(tensors(), storage_reader=FileSystemReader(path), no_dist=self._alone)
            return state
        return None

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
        for path in [*beyond, *self.folder.glob(".build-*"), *self.folder.glob(".damaged-*")]:
            shutil.rmtree(path, ignore_errors=True)


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
    return ""


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
