"""Every error gristmill raises on purpose.

GristmillError
├── ConfigError         a recipe or setting is wrong; nothing was started
├── DataError           the input is missing, broken, or the books do not balance
├── StorageError        an artifact is damaged, or the disk is full or read-only
├── CheckpointError     a checkpoint is missing, incomplete or of another model
├── LaunchError         processes could not be started, or were stopped
│   └── ProcessDied     they died; another try may help
├── OutOfMemory         a step does not fit into the memory of its device
├── TrainingDiverged    the loss is no longer a number worth training on
│   └── ReplicasDiffer  replicas of the model hold other bits: memory or a device fails
└── ServiceError        a server we need (Prefect, MLflow) is away, or its port is taken
"""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path


class GristmillError(Exception):
    """An error that tells what is wrong, what was expected, what was found, and what to do.

    Args:
        problem: One clause that names the setting, file or step.
        expected: What would have been right.
        found: What was there instead.
        remedy: What to do about it, as an instruction.
    """

    def __init__(self, problem: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.found = found
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        details = [f"expected {self.expected}"] if self.expected else []
        details += [f"found {self.found}"] if self.found else []
        text = self.problem + (": " + ", ".join(details) if details else "")
        return f"{text}. {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process pools; the default would replay __init__ with the message alone.
        return (_rebuild, (type(self), self.problem, self.expected, self.found, self.remedy))


def nearest(path: str | Path) -> str:
    """Say of a path that is not there where it leaves what is, and what of that is called most alike."""
    missing = Path(path).expanduser().resolve()
    folder = next((above for above in missing.parents if above.is_dir()), Path("/"))
    names: list[str] | None = None
    with contextlib.suppress(OSError):
        names = sorted(one.name for one in folder.iterdir())
    shown = [name for name in names or () if not name.startswith(".")]
    wanted = missing.relative_to(folder).parts[0] if missing != folder else ""
    near = difflib.get_close_matches(wanted, shown, n=3, cutoff=0.3) or shown[:3]
    holds = f", which holds {', '.join(near)}" if near else ", which is empty" if names == [] else ""
    return f"no such file or folder; the nearest folder that is there is {folder}{holds}"


def _rebuild(
    kind: type[GristmillError], problem: str, expected: str, found: str, remedy: str
) -> GristmillError:
    return kind(problem, expected=expected, found=found, remedy=remedy)


class ConfigError(GristmillError):
    """A recipe or setting is wrong; nothing was started."""


class DataError(GristmillError):
    """The input is missing, broken, or the books do not balance."""


class StorageError(GristmillError):
    """An artifact is damaged, or the disk is full or read-only."""


class CheckpointError(GristmillError):
    """A checkpoint is missing, incomplete or of another model."""


class LaunchError(GristmillError):
    """Processes could not be started, or were stopped."""


class ProcessDied(LaunchError):  # noqa: N818 - what happened, as TrainingDiverged
    """Processes died; another try may help."""


class OutOfMemory(GristmillError):  # noqa: N818 - what happened, as TrainingDiverged
    """A step does not fit into the memory of its device."""


class TrainingDiverged(GristmillError):  # noqa: N818 - the field says "diverged"
    """The loss is no longer a number worth training on."""


class ReplicasDiffer(TrainingDiverged):
    """Replicas of the model no longer hold the same bits."""


class ServiceError(GristmillError):
    """A server we need (Prefect, MLflow) is away, or its port is taken."""
