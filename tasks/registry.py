"""Registration and promotion: the challenger meets the champion on the same data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from pydantic import BaseModel

from lmcore.config import Recipe
from lmcore.errors import DataError, GristmillError, ServiceError
from lmcore.eval import gate
from lmcore.eval.gate import Measured
from lmcore.store import Artifact
from tasks import runs
from tasks.evaluate import (
    evaluate_champion,
    evaluation_metrics,
    evaluation_run_directory,
    model_digest,
    protocol,
    protocol_digest,
)
from tasks.prepare import Prepared
from tasks.tracked import FlowRun
from tasks.tracking_registry import Candidate, ModelVersion, Registry


class Registered(BaseModel):
    """What became of a model: its version and aliases, and why."""

    model_name: str
    model_version: str | None
    aliases: list[str]
    promoted: bool
    reason: str


@task(name="register", task_run_name="register the model", cache_policy=NO_CACHE, persist_result=False)
def register_model(
    recipe: Recipe, prepared: Prepared, trained: Artifact, evaluated: Artifact, run: FlowRun
) -> Registered:
    """Register the model as challenger; make it champion when the gate passes.

    A model that was registered before keeps its version. When MLflow is away nothing is registered, and
    the same command does it later: every stage is then reused.
    """
    logger = get_run_logger()
    name = recipe.tracking.model_name or recipe.name
    registry = Registry(run.tracker)
    try:
        registered = _register(
            registry,
            recipe,
            _candidate(recipe, prepared, trained, evaluated),
            _linked_run(evaluated, run),
            lambda champion: _measure(recipe, prepared, champion, run, registry),
        )
    except ServiceError as error:
        logger.warning("not registered: %s", error)
        return Registered(model_name=name, model_version=None, aliases=[], promoted=False, reason=str(error))
    logger.info("%s version %s: %s", name, registered.model_version, registered.reason)
    return registered


def _candidate(recipe: Recipe, prepared: Prepared, trained: Artifact, evaluated: Artifact) -> Candidate:
    return Candidate(
        name=recipe.tracking.model_name or recipe.name,
        model_path=str(trained.path / "model"),
        model_digest=model_digest(trained),
        bits_per_byte=evaluated.summary["bits_per_byte"],
        data_digest=protocol_digest(recipe, prepared),
        protocol=protocol(recipe, prepared),
        seq_len=recipe.train.seq_len,
        document_mask=recipe.train.document_mask,
        split_seed=recipe.data.split_seed,
        validation_fraction=recipe.data.validation_fraction,
        metrics=evaluation_metrics(evaluated.summary),
        tags={"gristmill.stage.train": trained.key, "gristmill.stage.evaluate": evaluated.key},
        prompt=recipe.evaluation.prompts[0] if recipe.evaluation.prompts else "The ",
        description=_description(recipe, prepared, trained, evaluated),
    )


def _description(recipe: Recipe, prepared: Prepared, trained: Artifact, evaluated: Artifact) -> str:
    """The version as Markdown: how good it is, and what it came from."""
    measured, model = evaluated.summary, recipe.model
    rows = [("bits per byte of the held-out text", measured.get("bits_per_byte"))]
    rows += [("zstd -19 on the same text", measured.get("zstd_bits_per_byte"))]
    rows += [("byte bigrams on the same text", measured.get("bigram_bits_per_byte"))]
    lines = ["| measure | value |", "|---|---:|"]
    lines += [f"| {name} | {value:.4f} |" for name, value in rows if value is not None]
    came_from = (
        f"Recipe `{recipe.name}`: {model.num_layers} layers of width {model.hidden_size}, "
        f"{recipe.train.steps:,} steps of {recipe.train.global_batch_tokens:,} tokens, "
        f"{trained.summary['train_tokens']:,} tokens in all, "
        f"from {prepared.splits.summary['documents']:,} documents."
    )
    return "\n".join([*lines, "", came_from])


def _linked_run(evaluated: Artifact, run: FlowRun) -> Path:
    directory = evaluation_run_directory(evaluated.key)
    # The run directory of an evaluation that is reused may have been tidied away.
    return directory if (directory / runs.RECORD).exists() else run.directory


def _measure(
    recipe: Recipe, prepared: Prepared, champion: ModelVersion, run: FlowRun, registry: Registry
) -> Measured:
    if champion.data_digest == protocol_digest(recipe, prepared):
        return Measured(bits_per_byte=champion.bits_per_byte, data_digest=champion.data_digest)
    _require_unseen(recipe, champion)
    return evaluate_champion(recipe, prepared, registry.at_hand(champion), run)


def _require_unseen(recipe: Recipe, champion: ModelVersion) -> None:
    """Check that what is held out now was held out too when the champion was trained."""
    data = recipe.data
    if data.split_seed == champion.split_seed and data.validation_fraction <= champion.validation_fraction:
        return
    raise DataError(
        f"version {champion.version}, the champion, may have been trained on text that is held out now",
        expected=f"split_seed {champion.split_seed} and a validation_fraction of at most "
        f"{champion.validation_fraction:g}",
        found=f"{data.split_seed} and {data.validation_fraction:g}",
        remedy="Compare on the champion's split, or move the alias in MLflow by hand",
    )


def _register(
    registry: Registry,
    recipe: Recipe,
    candidate: Candidate,
    evaluation_run: Path,
    measure_champion: Callable[[ModelVersion], Measured],
) -> Registered:
    version = registry.register(candidate, evaluation_run)
    if "champion" in version.aliases:
        reason = f"version {version.version} is the champion already"
        return _outcome(registry, version, promoted=False, reason=reason)
    registry.challenge(version)
    challenger = Measured(bits_per_byte=candidate.bits_per_byte, data_digest=candidate.data_digest)
    try:
        champion = registry.champion(candidate.name)
        rival = measure_champion(champion) if champion else None
        decision = gate.decide(challenger, rival, recipe.evaluation.gate)
    except ServiceError:
        raise
    except GristmillError as error:  # without the champion's figure there is nothing to win against
        decision = gate.Decision(passed=False, reason=str(error))
    registry.note(version, {"gristmill.gate": decision.reason})
    registry.describe(version, f"**Gate:** {decision.reason}.")
    if decision.passed:
        registry.crown(version)
    return _outcome(registry, version, promoted=decision.passed, reason=decision.reason)


def _outcome(registry: Registry, version: ModelVersion, *, promoted: bool, reason: str) -> Registered:
    return Registered(
        model_name=version.name,
        model_version=version.version,
        aliases=registry.aliases(version),
        promoted=promoted,
        reason=reason,
    )
