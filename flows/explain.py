"""What a recipe would reuse and build, asked of the store alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from lmcore.config import Recipe
from lmcore.data.amount import too_little, too_little_text
from lmcore.data.prepare import Inventory, take_inventory
from lmcore.errors import StorageError
from lmcore.eval.sets import find_sets
from lmcore.home import VARIABLE, Home
from lmcore.store import Artifact, Stage, Store
from tasks.data_report import report_stage
from tasks.evaluate import evaluate_stage, trained_subject
from tasks.prepare import Prepared, documents_stage, splits_stage, tokenizer_stage, tokens_stage
from tasks.train import train_stage

STAGES = ("documents", "splits", "tokenizer", "tokens", "report", "train", "evaluate")
DATA = STAGES[:4]
APART = "report"  # no stage waits for it


class Explanation(BaseModel):
    """Whether a stage would be reused or built, and why."""

    stage: str
    key: str
    status: str
    reason: str
    warning: str = ""


def explain_recipe(recipe: Recipe) -> list[Explanation]:
    """Follow the stages of ``recipe`` until one must be built; those behind it wait for its result."""
    rows, found = [], {}
    inventory = take_inventory(recipe.preparation)
    for stage, artifact, reason in _walk(recipe, inventory):
        status = "reused" if artifact else "built"
        notes = artifact.summary.get("notes", []) if artifact else []
        row = Explanation(stage=stage.name, key=stage.key, status=status, reason=reason)
        rows.append(row.model_copy(update={"warning": "\n".join(notes)}))
        found[stage.name] = artifact
    missing = STAGES[len(rows) :]
    waits = f"depends on {rows[-1].stage}, which would be built"
    rows += [Explanation(stage=name, key="", status="built", reason=waits) for name in missing]
    if not found.get("train"):
        warning = _too_little(recipe, inventory, found.get("tokens"))
        rows = [row.model_copy(update={"warning": warning}) if row.stage == "train" else row for row in rows]
    return rows


def _too_little(recipe: Recipe, inventory: Inventory, tokens: Artifact | None) -> str:
    if tokens:
        return too_little(recipe.train, tokens.summary["train_tokens"])
    return too_little_text(recipe.train, inventory.text_bytes)


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
    for stage, artifact, reason in _walk(recipe, take_inventory(recipe.preparation)):
        if artifact is None and stage.name == APART:
            continue
        if artifact is None:
            command = "train" if last == "train" else "prepare"
            raise StorageError(
                f"recipe {recipe.name} has no {'trained model' if last == 'train' else 'prepared data'}",
                found=f"no {stage.name} of it in {Home.here().root} ({reason})",
                remedy=f"Run `gristmill {command}` with the same recipe and --set first; or, if that was "
                f"done elsewhere, set {VARIABLE} to the folder it was kept in: where it is not set, that is "
                ".gristmill below the folder one is in.",
            )
        found[stage.name] = artifact
        if stage.name == last:
            break
    return found


def _walk(recipe: Recipe, inventory: Inventory) -> Iterator[tuple[Stage, Artifact | None, str]]:
    store, data = Store(Home.here().store), recipe.preparation
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
        if name == APART:
            return report_stage(data, *(found[n] for n in ("documents", "splits", "tokens")))
        if name == "train":
            return train_stage(recipe, Prepared(*(found[n] for n in DATA)))
        sets = find_sets(recipe.evaluation)
        return evaluate_stage(recipe, trained_subject(recipe, found["train"]), found["tokens"], sets)

    for name in STAGES:
        stage = next_stage(name)
        artifact, reason = store.explain(stage)
        yield stage, artifact, reason
        if artifact is not None:
            found[name] = artifact
        elif name != APART:
            return
