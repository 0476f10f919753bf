"""The one door to MLflow: make it agree with what the run directories say.

Nothing is sent to MLflow as it happens. A run directory holds ``tracking.json`` (what its MLflow run should
look like) and ``events.jsonl`` (its metrics), and ``sync`` brings MLflow up to that: it creates the run if
it is missing, sends the events after a stored watermark, uploads files that changed, and ends the run. It
may be called at any time, by any process, any number of times, so a server that was away is simply caught
up with, and a restart duplicates nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lmcore.config import check_tracking_uri
from lmcore.disk import free_bytes
from lmcore.errors import ConfigError, GristmillError, ServiceError
from lmcore.home import Home
from lmcore.store import sha256_file, sha256_json, write_atomically
from tasks.machine import FILE as MACHINE_FILE
from tasks.relocation import use_files
from tasks.runs import RECORD, Dataset, RunRecord, new_rows, read_events

MAX_METRICS_A_BATCH = 1_000
MAX_PARAMS_A_BATCH = 100
MAX_PARAM_CHARS = 6_000
SYNC_EVERY_SECONDS = 5.0
RETRY_SECONDS = 2.0
MAX_FAILURES = 3
HOME_SERVER = "GRISTMILL_MLFLOW_SERVER"
GROWING = ("log.txt",)
# What MLflow answers when a run is not there, or is deleted; and for other faults of what was sent.
_MAY_BE_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
# Without a kind MLflow takes a project without traces for one of agents, and opens its pages for those.
_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "Language models from raw text, by gristmill. A run of the pipeline holds one of training and one of "
        "evaluation; `bits_per_byte` of held-out text is what models are compared by (less is better)."
    ),
    "mlflow.experiment.primaryMetric.name": "bits_per_byte",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
}


class Watermark(BaseModel):
    """How far one MLflow server has been told about one run directory."""

    run_id: str = ""
    offset_bytes: int = 0
    system_bytes: int = 0
    last_step: dict[str, int] = {}
    params: list[str] = []
    uploaded: dict[str, str] = {}
    described: str = ""
    ended: str = ""


class Tracker:
    """One MLflow server or database.

    Args:
        uri: Tracking URI; empty for the SQLite file in ``home``.
        home: Where run directories are.
    """

    def __init__(self, uri: str, home: Home) -> None:
        # A server that is away must cost seconds, not minutes: everything is retried later anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        try:
            check_tracking_uri(uri)
        except ValueError as error:
            raise ConfigError(f"tracking.uri or MLFLOW_TRACKING_URI: {error}") from None
        self.home = home
        self.embedded = not uri
        # The server that `gristmill up` puts before the home's own database is the same place.
        self.place = "" if uri in ("", os.environ.get(HOME_SERVER)) else uri
        self.uri = uri or f"sqlite:///{home.mlflow_database}"
        self._client: Any = None
        self._experiments: dict[str, str] = {}

    @property
    def client(self) -> Any:
        """The ``MlflowClient``, made at first use."""
        if self._client is None:
            import logging

            # We say it once ourselves, in a line: not with a traceback for each try on a full disk.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # we say it once ourselves
            from mlflow import MlflowClient

            self.home.root.mkdir(parents=True, exist_ok=True)
            if self.embedded:
                use_files(self.home)  # a server may have been here before
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def experiment_id(self, name: str) -> str:
        """Id of the experiment ``name``, created if missing."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                location = (self.home.mlflow_artifacts / name).as_uri() if self.embedded else None
                found = self.client.get_experiment(
                    self.client.create_experiment(name, artifact_location=location)
                )
            self._experiments[name] = found.experiment_id
            for key, value in _EXPERIMENT_TAGS.items():
                if key not in found.tags:  # what a person wrote stays
                    self.client.set_experiment_tag(found.experiment_id, key, value)
        return self._experiments[name]

    def run_id(self, run_dir: Path) -> str:
        """MLflow's id of the run of ``run_dir``; empty if it is not there yet."""
        return self._watermark(run_dir).run_id

    def link(self, run_dir: Path) -> str:
        """Address of the run's page; empty when MLflow is a file and no server shows it."""
        run_id = self.run_id(run_dir)
        if self.embedded or not run_id or not self.uri.startswith("http"):
            return ""
        experiment = self.experiment_id(RunRecord.read(run_dir).experiment)
        return f"{self.uri}/#/experiments/{experiment}/runs/{run_id}"

    def is_told(self, run_dir: Path) -> bool:
        """Whether all that the record of an ended run says has been sent."""
        record, mark = RunRecord.read(run_dir), self._watermark(run_dir)
        return mark.ended == record.outcome and mark.described == self._description(record)[0]

    def sync(self, run_dir: Path, *, sure: bool = False) -> str:
        """Bring the MLflow run of ``run_dir`` up to date; return its id.

        A run that is no longer in MLflow, or was deleted there, is told again from its beginning, as another.

        Args:
            run_dir: The run directory.
            sure: Ask whether the run is still there, even if there is nothing new to tell.

        Raises:
            ServiceError: MLflow cannot be reached or refuses; nothing is lost, call again later.
        """
        from mlflow.exceptions import MlflowException

        record = RunRecord.read(run_dir)
        parent = _parent_of(record)
        if parent and not self.run_id(parent):
            self.sync(parent)
        with _exclusive(run_dir), service_errors(self.uri):
            mark = self._watermark(run_dir)
            if sure and self._is_gone(mark.run_id):
                mark = self._start_afresh(record)
            try:
                self._tell(run_dir, record, mark)
            except MlflowException as error:
                if error.error_code not in _MAY_BE_GONE or not self._is_gone(mark.run_id):
                    raise
                mark = self._start_afresh(record)
                self._tell(run_dir, record, mark)
            return mark.run_id

    def _is_gone(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(run_id) and self.client.get_run(run_id).info.lifecycle_stage == "deleted"
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return True
            raise

    def _start_afresh(self, record: RunRecord) -> Watermark:
        self._experiments.clear()  # the whole database may be another
        if parent := _parent_of(record):
            self.sync(parent, sure=True)
        return Watermark()

    def _tell(self, run_dir: Path, record: RunRecord, mark: Watermark) -> None:
        if not mark.run_id:
            mark.run_id = self._find_or_create(record)
            self._save(run_dir, mark)
        self._describe(run_dir, record, mark)
        self._send_events(run_dir, mark)
        self._upload(run_dir, record, mark)
        self._end(run_dir, record, mark)

    def _find_or_create(self, record: RunRecord) -> str:
        experiment = self.experiment_id(record.experiment)
        # A process that died between creating the run and saving its id left one with this tag.
        found = self.client.search_runs([experiment], f"tags.`gristmill.run` = '{record.id}'", max_results=1)
        if found:
            return found[0].info.run_id
        run = self.client.create_run(
            experiment,
            start_time=int(record.started * 1000),
            run_name=record.name,
            tags={"gristmill.run": record.id, "gristmill.kind": record.kind},
        )
        return run.info.run_id

    def _describe(self, run_dir: Path, record: RunRecord, mark: Watermark) -> None:
        from mlflow.entities import Metric, Param, RunTag

        described, tags = self._description(record)
        if described == mark.described:
            return
        ended = int((record.ended or time.time()) * 1000)
        # MLflow's parameters cannot change: those of the first attempt stay.
        fresh = [key for key in record.params if key not in mark.params]
        params = [Param(key, record.params[key][:MAX_PARAM_CHARS]) for key in fresh]
        for start in range(0, len(params), MAX_PARAMS_A_BATCH):
            self.client.log_batch(mark.run_id, params=params[start : start + MAX_PARAMS_A_BATCH])
        self.client.log_batch(
            mark.run_id,
            tags=[RunTag(key, value) for key, value in tags.items()],
            metrics=[Metric(key, value, ended, record.metrics_step) for key, value in record.metrics.items()],
        )
        if record.datasets:
            inputs = [_dataset_input(dataset) for dataset in record.datasets]
            self.client.log_inputs(mark.run_id, inputs)
        mark.described = described
        mark.params += fresh
        self._save(run_dir, mark)

    def _description(self, record: RunRecord) -> tuple[str, dict[str, str]]:
        tags = dict(record.tags)
        if record.parent and (parent := self.run_id(Path(record.parent))):
            tags["mlflow.parentRunId"] = parent
        datasets = [dataset.model_dump() for dataset in record.datasets]
        return sha256_json([tags, record.params, record.metrics, datasets]), tags

    def _send_events(self, run_dir: Path, mark: Watermark) -> None:
        from mlflow.entities import Metric

        for name, place in (("events.jsonl", "offset_bytes"), (MACHINE_FILE, "system_bytes")):
            while True:
                known = getattr(mark, place)
                rows, offset = read_events(run_dir / name, known)
                if offset == known:
                    break
                fresh, last_step = new_rows(rows, mark.last_step)
                # The event's own time stamps make a repeated batch the same rows to MLflow's database.
                metrics = [
                    Metric(key, float(value), int(row["time"] * 1000), row["step"])
                    for row in fresh
                    for key, value in row["values"].items()
                ]
                for start in range(0, len(metrics), MAX_METRICS_A_BATCH):
                    self.client.log_batch(mark.run_id, metrics=metrics[start : start + MAX_METRICS_A_BATCH])
                setattr(mark, place, offset)
                mark.last_step = last_step
                self._save(run_dir, mark)

    def _upload(self, run_dir: Path, record: RunRecord, mark: Watermark) -> None:
        for name, file in record.files.items():
            path = Path(file)
            # A file that still grows is sent once, at the end.
            if not path.is_file() or (record.outcome == "running" and name in GROWING):
                continue
            digest = sha256_file(path)
            if mark.uploaded.get(name) == digest:
                continue
            folder, _, base = name.rpartition("/")
            if base != path.name:
                raise GristmillError(
                    f"artifact {name} would be stored as {path.name}", remedy="Rename the file."
                )
            self.client.log_artifact(mark.run_id, str(path), folder or None)
            mark.uploaded[name] = digest
            self._save(run_dir, mark)

    def _end(self, run_dir: Path, record: RunRecord, mark: Watermark) -> None:
        status = record.outcome
        if mark.ended == status or (status == "running" and not mark.ended):
            return
        if status == "running":  # a later attempt of the same run
            self.client.update_run(mark.run_id, status="RUNNING")
        else:
            self.client.set_terminated(
                mark.run_id, _MLFLOW_STATUS[status], end_time=int((record.ended or time.time()) * 1000)
            )
        mark.ended = status if status != "running" else ""
        self._save(run_dir, mark)

    def _watermark_file(self, run_dir: Path) -> Path:
        return run_dir / f"tracking-{sha256_json(self.uri)[:8]}.json"

    def _watermark(self, run_dir: Path) -> Watermark:
        path = self._watermark_file(run_dir)
        return (
            Watermark.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else Watermark()
        )

    def _save(self, run_dir: Path, mark: Watermark) -> None:
        write_atomically(self._watermark_file(run_dir), mark.model_dump_json())


def _parent_of(record: RunRecord) -> Path | None:
    parent = Path(record.parent)
    return parent if record.parent and (parent / RECORD).exists() else None


def _dataset_input(dataset: Dataset) -> Any:
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag

    described = MlflowDataset(
        name=dataset.name,
        digest=dataset.digest,
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps(dataset.profile),
    )
    return DatasetInput(described, tags=[InputTag("mlflow.data.context", dataset.context)])


@contextlib.contextmanager
def _exclusive(run_dir: Path) -> Iterator[None]:
    with (run_dir / ".tracking.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _telling_line(error: BaseException) -> str:
    """The line of an error that says what went wrong: SQLAlchemy puts remarks before it."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line for line in lines if "Error)" in line), lines[0])[:200]


@contextlib.contextmanager
def service_errors(uri: str) -> Iterator[None]:
    """Turn what goes wrong with the MLflow at ``uri`` into a ServiceError."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError, ImportError) as error:
        free = free_bytes(Path(uri.removeprefix("sqlite:///"))) if uri.startswith("sqlite:///") else None
        room = "" if free is None else f" ({free / 1e6:,.1f} MB free)"
        raise ServiceError(
            f"MLflow at {uri} did not take what was sent",
            found=_telling_line(error) + room,
            remedy="Nothing is lost: it is sent again later; `gristmill sync` does it now.",
        ) from error


# --- while a job runs ------------------------------------------------------------------------------


class Follower:
    """Keeps MLflow in step with run directories from a thread; a server that is away delays nothing.

    Use as a context manager. Leaving it waits until everything is told; while the server does not answer, at
    most ``patience_seconds`` (and the time-out of the request that is under way then).

    Args:
        tracker: Where runs are recorded.
        run_dirs: Followed from the start; parents before their children.
        warn: Told once when the server goes away, and once when it is back.
        patience_seconds: How long the end waits for a server that is away.
    """

    def __init__(
        self, tracker: Tracker, run_dirs: list[Path], warn: Callable[[str], object], patience_seconds: float
    ) -> None:
        self._tracker = tracker
        self._run_dirs = list(run_dirs)
        self._warn = warn
        self._patience = patience_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow-follower", daemon=True)
        self.behind = ""

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def add(self, run_dir: Path) -> None:
        """Follow ``run_dir`` too, until it has ended and all of it is told."""
        if run_dir not in self._run_dirs:
            self._run_dirs.append(run_dir)

    def _follow(self) -> None:
        deadline = float("inf")
        while True:
            ending = self._stop.is_set()
            if ending and deadline == float("inf"):
                deadline = time.monotonic() + self._patience
            done = self._sync(deadline)
            if ending and (done or time.monotonic() >= deadline):
                return
            left = deadline - time.monotonic()
            if ending:
                time.sleep(max(0.0, min(RETRY_SECONDS, left)))
            else:
                self._stop.wait(SYNC_EVERY_SECONDS)

    def _sync(self, deadline: float) -> bool:
        failures = []
        for run_dir in tuple(self._run_dirs):
            try:
                self._tracker.sync(run_dir)
                if RunRecord.read(run_dir).outcome != "running" and self._tracker.is_told(run_dir):
                    self._run_dirs.remove(run_dir)
            except Exception as error:  # whatever is wrong with tracking, the work goes on
                failures.append(str(error) or type(error).__name__)
                if time.monotonic() >= deadline:
                    break
        if failures:
            if not self.behind:
                self._warn(failures[0])
            self.behind = failures[0]
            return False
        if self.behind:
            self._warn("MLflow is back and has been caught up with.")
        self.behind = ""
        return True


def sync_all(tracker: Tracker) -> list[Path]:
    """Sync every run directory that belongs to this MLflow and has not been told all about; parents first.

    Raises:
        GristmillError: the first of what went wrong; the other runs were told all the same, unless the first
            few failed alike.
    """
    pending = []
    for path in sorted(tracker.home.runs.glob(f"*/{RECORD}")):
        record = RunRecord.read(path.parent)
        mine = record.place == tracker.place
        if mine and record.outcome != "running" and not tracker.is_told(path.parent):
            pending.append((bool(record.parent), record.started, path.parent))
    failures, done = [], []
    for _, _, run_dir in sorted(pending):
        try:
            tracker.sync(run_dir)
            done.append(run_dir)
        except GristmillError as error:
            failures.append(error)
            if not done and len(failures) == MAX_FAILURES:
                break
    if failures:
        raise failures[0]
    return done
