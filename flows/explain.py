"""What a recipe would reuse and build, asked of the store alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from lmcore.config import Recipe
from lmcore.data.prepare import take_inventory
from lmcore.errors import StorageError
from lmcore.eval.sets import find_sets
from lmcore.home import Home
from lmcore.store import Artifact, Stage, Store
from tasks.evaluate import evaluate_stage, trained_subject
from tasks.prepare import Prepared, documents_stage, splits_stage, tokenizer_stage, tokens_stage
from tasks.train import train_stage

STAGES = ("documents", "splits", "tokenizer", "tokens", "train", "evaluate")


class Explanation(BaseModel):
    """Whether a stage would be reused or built, and why."""

    stage: str
    key: str
    status: str
    reason: str


def explain_recipe(recipe: Recipe) -> list[Explanation]:
    """Follow the stages of ``recipe`` until one must be built; those behind it wait for its result."""
    rows = []
    for stage, artifact, reason in _walk(recipe):
        status = "reused" if artifact else "built"
        rows.append(Explanation(stage=stage.name, key=stage.key, status=status, reason=reason))
    missing = STAGES[len(rows) :]
    first = rows[-1].stage
    waits = f"depends on {first}, which would be built"
    return rows + [Explanation(stage=name, key="", status="built", reason=waits) for name in missing]


def trained_model(recipe: Recipe) -> Path:
    """Directory of the model that ``recipe`` trained.

    Raises:
        StorageError: it has not been trained.
    """
    return built(recipe, "train")["train"].path / "model"


def built(recipe: Recipe, last: str) -> dict[str, Artifact]:
    """The artifacts of ``recipe`` up to stage ``last``, by stage.

    Raises:
        StorageError: one is not there.
    """
    found = {}
    for stage, artifact, reason in _walk(recipe):
        if artifact is None:
            command = "train" if last == "train" else "prepare"
            raise StorageError(
                f"recipe {recipe.name} has no {'trained model' if last == 'train' else 'prepared data'}",
                found=f"{stage.name} is not in {Home.here().root} ({reason})",
                remedy=f"Run `gristmill {command}` with the same recipe and --set first.",
            )
        found[stage.name] = artifact
        if stage.name == last:
            break
    return found


def _walk(recipe: Recipe) -> Iterator[tuple[Stage, Artifact | None, str]]:
    store, data = Store(Home.here().store), recipe.preparation
    inventory = take_inventory(data)
    found: dict[str, Artifact] = {}

    def next_stage(name: str) -> Stage:
        if name == "documents":
            return documents_stage(data, inventory)
        if name == "splits":
            return splits_stage(data, found["documents"])
        if name == "tokenizer":
            return tokenizer_stage(data, found["documents"], found["splits"])
        if name == "tokens":
            return tokens_stage(data, *(found[n] for n in ("documents", "splits", "tokenizer")))
        if name == "train":
            return train_stage(recipe, Prepared(*(found[n] for n in STAGES[:4])))
        sets = find_sets(recipe.evaluation)
        return evaluate_stage(recipe, trained_subject(recipe, found["train"]), found["tokens"], sets)

    for name in STAGES:
        stage = next_stage(name)
        artifact, reason = store.explain(stage)
        yield stage, artifact, reason
        if artifact is None:
            return
        found[name] = artifact
