"""One run of a flow as a run directory and an MLflow run."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect.logging import get_run_logger

from lmcore.config import Json, Recipe, holds_secret
from lmcore.errors import GristmillError, ServiceError
from lmcore.home import Home
from lmcore.launch.job import require_cores
from lmcore.model.hf.config import check_settings
from lmcore.model.hf.files import weight_files
from lmcore.model.hf.tokenizer import check_tokenizer
from lmcore.store import Artifact, write_atomically
from tasks import progress, runs
from tasks.machine import sampled
from tasks.relocation import settle
from tasks.tracking import Follower, Tracker, sync_all

# What a flow that does not do all has settings of.
PARTS = {"data": ("data", "evaluation.sets"), "train-flow": ("data", "evaluation.sets", "model", "train")}
MOST_ENTRIES = 20  # of a list whose settings are parameters of their own


@dataclass(frozen=True)
class FlowRun:
    """The run directory and name of a flow run, the MLflow that records it, and who keeps that in step."""

    directory: Path
    tracker: Tracker
    follower: Follower
    started: float
    name: str = ""

    def record(self, **changes: Any) -> None:
        """Change the flow's MLflow run: tags, params, metrics, files."""
        runs.update_run(self.directory, **changes)

    def refer_to(self, artifact: Artifact, run_dir: Path) -> None:
        """Name the MLflow run that made ``artifact`` if it is reused: it is the child of an earlier run."""
        if artifact.status == "reused" and (run_id := self.tracker.run_id(run_dir)):
            self.record(tags={f"gristmill.run.{artifact.stage}": run_id})

    def mlflow_id(self) -> str | None:
        """MLflow's id of this run, told now if it was not yet; None while MLflow is away."""
        if not self.tracker.run_id(self.directory) and not self.follower.behind:
            with contextlib.suppress(ServiceError):
                self.tracker.sync(self.directory)
        return self.tracker.run_id(self.directory) or None


@contextlib.contextmanager
def tracked(recipe: Recipe, kind: str) -> Iterator[FlowRun]:
    """Record what happens inside as one run; however it ends, MLflow is told, now or later."""
    # Before any work, not after the data's.
    require_cores(recipe.train.parallel.num_processes)
    if recipe.train.initial_weights:
        weights = Path(recipe.train.initial_weights).expanduser()
        model = check_settings(weights, recipe.model)
        check_tokenizer(weights, model.vocab_size, recipe.data.tokenizer.path)
        weight_files(weights)
    home = Home.here()
    settle(home)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    directory = home.runs / f"{kind}-{stamp}-{uuid.uuid4().hex[:6]}"
    tracker = Tracker(recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", ""), home)
    directory.mkdir(parents=True)
    name = runs.flow_run_name() or recipe.name
    write_atomically(
        directory / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    )
    runs.open_run(
        directory,
        name=name,
        kind=kind,
        experiment=recipe.tracking.experiment,
        place=tracker.place,
        tags={
            **runs.standard_tags(),
            "gristmill.recipe": recipe.name,
            "gristmill.run_dir": str(directory),
            "mlflow.note.content": f"Recipe `{recipe.name}`; it has not come to its end.",
        },
        params={"recipe": recipe.name, **settings_of(recipe, kind)},
        files={"recipe.yaml": str(directory / "recipe.yaml")},
    )
    logger = get_run_logger()
    status: runs.RunStatus = "killed"
    patience = recipe.tracking.patience_seconds
    started = runs.RunRecord.read(directory).started
    with Follower(tracker, [directory], lambda text: progress.note(logger, text), patience) as follower:
        try:
            with sampled(directory, started):
                yield FlowRun(directory, tracker, follower, time.monotonic(), name)
            status = "finished"
        except Exception:
            status = "failed"
            raise
        finally:
            runs.close_run(directory, status)
    if follower.behind:
        progress.note(logger, "MLflow is still away; `gristmill sync` catches up once it is back.")
    else:
        _catch_up(tracker)


def settings_of(recipe: Recipe, kind: str) -> dict[str, str]:
    """The settings that a flow has, each under its path in ``--set``: what MLflow compares runs by.

    An address that holds a secret, which recipes refuse, is not told. A long list is one value, as JSON.
    """
    told = dict(_leaves(recipe.model_dump(mode="json", exclude={"name"}), ""))
    parts = PARTS.get(kind, ("",))
    return {path: value for path, value in told.items() if path.startswith(parts)}


def _leaves(value: Json, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and len(value) <= MOST_ENTRIES and any(isinstance(x, dict) for x in value):
        value = {str(place): entry for place, entry in enumerate(value)}
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _leaves(below, f"{path}.{name}" if path else name)
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    yield path, "(not told: it holds a secret)" if holds_secret(text) else text


def _catch_up(tracker: Tracker) -> None:
    # Runs of a time when MLflow was away, or whose process was killed.
    with contextlib.suppress(GristmillError):
        sync_all(tracker)
