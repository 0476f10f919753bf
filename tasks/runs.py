"""What a run directory says of itself: the record that MLflow is made to agree with, and its events."""

from __future__ import annotations

import contextlib
import getpass
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import psutil
from prefect.context import FlowRunContext
from pydantic import BaseModel, ConfigDict

from lmcore.store import Artifact, git_commit, write_atomically

RECORD = "tracking.json"

RunStatus = Literal["running", "finished", "failed", "killed"]


class Dataset(BaseModel):
    """Data that a run read: ``digest`` is at most 36 characters."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    name: str
    digest: str
    source: str
    context: str
    profile: dict[str, Any] = {}


class RunRecord(BaseModel):
    """What the MLflow run of a run directory should look like; kept as its ``tracking.json``.

    ``place`` is the MLflow it belongs to (its URI; empty: the home's own) and ``parent`` the run directory of
    the parent run. ``files`` maps a name below the run's artifacts to a local file; ``metrics`` are final
    values, logged once at step ``metrics_step``.
    """

    id: str
    name: str
    kind: str
    experiment: str
    place: str = ""
    parent: str = ""
    status: RunStatus = "running"
    started: float
    ended: float | None = None
    pid: int
    pid_started: float
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    metrics_step: int = 0
    datasets: list[Dataset] = []
    files: dict[str, str] = {}

    @classmethod
    def read(cls, run_dir: Path) -> RunRecord:
        """Read the record of ``run_dir``."""
        return cls.model_validate_json((run_dir / RECORD).read_text(encoding="utf-8"))

    def write(self, run_dir: Path) -> None:
        """Replace the record of ``run_dir``."""
        write_atomically(run_dir / RECORD, self.model_dump_json(indent=1))

    @property
    def outcome(self) -> RunStatus:
        """Its status; ``killed`` if it says ``running`` but the process that wrote it is gone."""
        return "killed" if self.abandoned else self.status

    @property
    def abandoned(self) -> bool:
        """Whether it says ``running`` but the process that wrote it is gone."""
        if self.status != "running":
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.pid_started) > 1
        except psutil.NoSuchProcess:
            return True


def open_run(run_dir: Path, **fields: Any) -> RunRecord:
    """Record that ``run_dir`` is running in this process; a later attempt is the same MLflow run."""
    this = psutil.Process()
    previous = RunRecord.read(run_dir) if (run_dir / RECORD).exists() else None
    record = RunRecord(
        id=previous.id if previous else uuid.uuid4().hex,
        started=previous.started if previous else time.time(),
        pid=this.pid,
        pid_started=this.create_time(),
        **fields,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    record.write(run_dir)
    return record


def update_run(run_dir: Path, **changes: Any) -> RunRecord:
    """Change fields of the record; mappings and lists are added to, the rest is replaced."""
    record = RunRecord.read(run_dir)
    merged: dict[str, Any] = {}
    for name, value in changes.items():
        old = getattr(record, name)
        merged[name] = {**old, **value} if isinstance(old, dict) else value
    record = RunRecord.model_validate({**record.model_dump(), **merged})
    record.write(run_dir)
    return record


def close_run(run_dir: Path, status: RunStatus) -> None:
    """Record that the run has ended."""
    update_run(run_dir, status=status, ended=time.time())


# --- following events ------------------------------------------------------------------------------


def read_events(path: Path, offset: int, *, max_bytes: int = 4_000_000) -> tuple[list[dict[str, Any]], int]:
    """Return the whole rows of ``events.jsonl`` after byte ``offset``, and the offset behind them.

    A last line without its end is left for later; a line that is not JSON (a torn write before a crash) is
    passed over.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(max_bytes)
    end = block.rfind(b"\n") + 1
    rows = []
    for line in block[:end].splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)], offset + end


def new_rows(
    rows: list[dict[str, Any]], last_step: dict[str, int]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Drop rows of steps already seen (a resumed run replays some); return the rest and the new marks."""
    marks = dict(last_step)
    fresh = []
    for row in rows:
        if not row.get("values"):
            continue
        kind = row["kind"]
        if row["step"] > marks.get(kind, -1):
            marks[kind] = row["step"]
            fresh.append(row)
    return fresh, marks


def flow_run_name() -> str:
    """Prefect's name of the flow run that this is part of; empty outside of one."""
    context = FlowRunContext.get()
    return context.flow_run.name if context and context.flow_run else ""


def datasets_of(recipe_name: str, tokens: Artifact, contexts: Mapping[str, str]) -> list[Dataset]:
    """The splits of ``tokens`` as data that a run read, each for what ``contexts`` says."""
    return [
        Dataset(
            name=f"{recipe_name}-{split}",
            digest=tokens.digest[:32],
            source=str(tokens.path / split),
            context=context,
            profile={"num_tokens": tokens.summary[f"{split}_tokens"]},
        )
        for split, context in contexts.items()
    ]


def standard_tags() -> dict[str, str]:
    """Tags of every run: who started it, from what, the commit, and the Prefect flow run it belongs to."""
    commit = git_commit()
    tags = {
        "gristmill.git_commit": commit,
        # By MLflow's own names its pages show them as Created by and Source.
        "mlflow.source.name": "gristmill",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
    }
    with contextlib.suppress(OSError, KeyError):  # a container may run as a number without a name
        tags["mlflow.user"] = getpass.getuser()
    if (flow_run := FlowRunContext.get()) and flow_run.flow_run:
        tags["prefect.flow_run_id"] = str(flow_run.flow_run.id)
        tags["prefect.flow_run_name"] = flow_run.flow_run.name
    return tags
