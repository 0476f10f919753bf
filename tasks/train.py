"""Training: one stage, resumable, in processes of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from lmcore.config import Identity, Json, Recipe, identify
from lmcore.data.amount import too_little
from lmcore.errors import LaunchError
from lmcore.home import Home
from lmcore.launch import local
from lmcore.model.hf.files import weights_digest
from lmcore.progress import Progress
from lmcore.store import Artifact, Stage
from lmcore.train.job import TrainJob
from tasks import runs
from tasks.costs import cost_tags, costs_of, speed_metrics
from tasks.events import EventTail
from tasks.machine import sampled
from tasks.prepare import Prepared
from tasks.progress import note
from tasks.stages import STAGE_OPTIONS, ensure
from tasks.tracked import FlowRun, settings_of

# 1: a validation could leave the weights of shards rounded; 2: rows of projections in another order
TRAIN_VERSION = 3
LOG_LINE_EVERY_SECONDS = 2.0
MAX_URGENT_LINES = 200
HEADLINE = "bits_per_byte"
TRACES = "profile"  # as lmcore.train.profile names it, which wants torch


def train_stage(recipe: Recipe, prepared: Prepared) -> Stage:
    """The stage that trains a model. Its run directory is named after its key, so it is resumed."""
    identity = identify(model=recipe.model, train=recipe.train)
    layout: dict[str, Json] = {}
    if recipe.train.precision != "fp32":  # shards compute more in it than autocast does
        layout["train.parallel.is_sharded"] = recipe.train.parallel.is_sharded
    identity = Identity(identity.values | layout, identity.chosen | layout)
    inputs = {"tokenizer": prepared.tokenizer.digest, "tokens": prepared.tokens.digest}
    if recipe.train.initial_weights:
        inputs["initial weights"] = weights_digest(recipe.train.initial_weights)
    return Stage("train", TRAIN_VERSION, identity, inputs, deciding=("torch",))


def train_run_directory(key: str) -> Path:
    """Where the training of this key runs, and is resumed."""
    return Home.here().runs / f"train-{key[:16]}"


@task(name="train", task_run_name="train the model", **STAGE_OPTIONS)
def train_model(recipe: Recipe, prepared: Prepared, run: FlowRun) -> Artifact:
    """Train under torchrun, followed into MLflow; go on from the last checkpoint if there is one."""
    tokenizer, tokens = prepared.tokenizer, prepared.tokens
    stage = train_stage(recipe, prepared)

    def build(out: Path, progress: Progress) -> Mapping[str, Any]:
        run_dir = train_run_directory(stage.key)
        if warning := too_little(recipe.train, tokens.summary["train_tokens"]):
            note(get_run_logger(), f"warning: {warning}")
        TrainJob(
            model=recipe.model,
            train=recipe.train,
            tokens=str(tokens.path),
            tokenizer=str(tokenizer.path),
            tokens_digest=tokens.digest,
            weights_digest=stage.inputs.get("initial weights", ""),
        ).write(run_dir)
        _record_run(run_dir, recipe, stage, tokens, run)
        result = run_job(
            "lmcore.train",
            run_dir,
            recipe,
            run,
            progress,
            total_steps=recipe.train.steps,
            metrics_of=lambda result: speed_metrics(costs_of(result)) | _headline(result),
            tags_of=lambda result: cost_tags(costs_of(result)),
        )
        shutil.copytree(run_dir / "model", out / "model")
        shutil.copy2(run_dir / "events.jsonl", out / "events.jsonl")
        last = last_loss(out / "events.jsonl")
        return {**result, "train_loss": last, "costs": costs_of(result)}

    trained = ensure(stage, build)
    run.refer_to(trained, train_run_directory(stage.key))
    return trained


def run_job(
    module: str,
    run_dir: Path,
    recipe: Recipe,
    run: FlowRun,
    progress: Progress,
    *,
    total_steps: int = 0,
    metrics_of: Callable[[Mapping[str, Any]], dict[str, float]] = lambda result: {},
    tags_of: Callable[[Mapping[str, Any]], dict[str, str]] = lambda result: {},
) -> dict[str, Any]:
    """Run ``module`` on ``run_dir`` in its processes; follow it into MLflow, the log and the progress bar.

    Raises:
        LaunchError: it died, or was asked to stop before its end.
    """
    status: runs.RunStatus = "killed"
    run.follower.add(run_dir)
    try:
        say = partial(note, get_run_logger())
        started = runs.RunRecord.read(run_dir).started
        with EventTail(run_dir / "events.jsonl", progress, total_steps, say), sampled(run_dir, started):
            result = local.run(
                module,
                run_dir,
                recipe.train.parallel.num_processes,
                recipe.train.launch,
                on_line=rate_limited(get_run_logger().info, LOG_LINE_EVERY_SECONDS),
                on_stop=lambda: say(
                    f"stopping: its processes may save for up to {recipe.train.launch.grace_seconds:g} s"
                ),
            )
        if result["status"] == "completed":
            runs.update_run(run_dir, metrics=metrics_of(result), tags=tags_of(result))
            status = "finished"
    except Exception:
        status = "failed"
        raise
    finally:
        # A trace is told of however the run ended.
        traces = sorted((run_dir / TRACES).glob("rank*"))
        runs.update_run(run_dir, files={f"{TRACES}/{path.name}": str(path) for path in traces})
        runs.close_run(run_dir, status)
    if result["status"] != "completed":
        raise LaunchError(
            f"{module} was stopped at step {result.get('step', 0)}",
            remedy="The same command goes on from the last checkpoint.",
        )
    return result


def _headline(result: Mapping[str, Any]) -> dict[str, float]:
    """What runs are compared by, under a name that stands first in MLflow's lists."""
    found = result.get("validation_bits_per_byte")
    return {} if found is None else {HEADLINE: float(found)}


def last_loss(events: Path) -> float | None:
    """Loss of the last step over all attempts at a run; None where every step was skipped.

    The last attempt alone may not have done a step: it may only have written the model.
    """
    rows, _ = runs.read_events(events, 0, max_bytes=events.stat().st_size)
    steps = {row["step"]: row["values"] for row in rows if row["kind"] == "step"}
    losses = {step: values["train/loss"] for step, values in steps.items() if "train/loss" in values}
    return losses[max(losses)] if losses else None


def rate_limited(log: Callable[[str], object], every_seconds: float) -> Callable[[str], None]:
    """Pass on at most one line in ``every_seconds``; the first lines that tell of errors always pass.

    The whole output is in the run directory's ``log.txt``.
    """
    last = -every_seconds
    urgent_left = MAX_URGENT_LINES

    def pass_on(line: str) -> None:
        nonlocal last, urgent_left
        now = time.monotonic()
        urgent = urgent_left > 0 and ("error" in line.lower() or "warning" in line.lower())
        if now - last >= every_seconds or urgent:
            log(line.rstrip())
            last = now
            urgent_left -= urgent

    return pass_on


def _record_run(run_dir: Path, recipe: Recipe, stage: Stage, tokens: Artifact, run: FlowRun) -> None:
    # As the run of the whole flow has them, and what they come to where a recipe leaves it open.
    params = settings_of(recipe, "train-flow") | {
        "recipe": recipe.name,
        "model.num_kv_heads": str(recipe.model.kv_heads),
        "model.intermediate_size": str(recipe.model.mlp_size),
    }
    runs.open_run(
        run_dir,
        name=f"train {run.name}",
        kind="train",
        experiment=recipe.tracking.experiment,
        place=run.tracker.place,
        parent=str(run.directory),
        tags={
            **runs.standard_tags(),
            "gristmill.stage.train": stage.key,
            "gristmill.run_dir": str(run_dir),
            # No choice, but what others come to: runs are not compared by it.
            "gristmill.grad_accum_steps": str(recipe.train.grad_accum_steps),
            "mlflow.note.content": f"Training of `{recipe.name}`: {recipe.train.steps:,} steps of "
            f"{recipe.train.global_batch_tokens:,} tokens with {recipe.train.optimizer.name}.",
        },
        params=params,
        datasets=runs.datasets_of(recipe.name, tokens, {"train": "training", "validation": "validation"}),
        files={"config.json": str(run_dir / "config.json"), "log.txt": str(run_dir / "log.txt")},
    )
