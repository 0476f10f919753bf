"""Data preparation: four stages from raw files to tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from lmcore.config import DataConfig, identify
from lmcore.data import prepare
from lmcore.home import Home
from lmcore.progress import Progress
from lmcore.store import Artifact, Stage
from tasks.cluster import RayWorkers
from tasks.progress import note
from tasks.space import require_space
from tasks.stages import STAGE_OPTIONS, ensure

SPACE_RATIO = 4  # documents, tokens and what is in the making, over the size of the files


@dataclass(frozen=True)
class Prepared:
    """The artifacts that training and evaluation read, and the report that people do."""

    documents: Artifact
    splits: Artifact
    tokenizer: Artifact
    tokens: Artifact
    report: Artifact | None = None

    @property
    def artifacts(self) -> list[Artifact]:
        """All of them, in the order they were made."""
        report = [self.report] if self.report else []
        return [self.documents, self.splits, self.tokenizer, self.tokens, *report]


@task(name="find files", task_run_name="find files", **STAGE_OPTIONS)
def take_inventory(config: DataConfig) -> prepare.Inventory:
    """List and hash the raw files.

    Raises:
        DataError: a source matches nothing.
    """
    inventory = prepare.take_inventory(config)
    for source, counts in inventory.passed_over.items():
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        note(get_run_logger(), f"source {source}: files passed over: {listed}")
    return inventory


def documents_stage(config: DataConfig, inventory: prepare.Inventory) -> Stage:
    """The stage that parses, normalises and filters."""
    identity = identify(*prepare.DOCUMENTS_SETTINGS, data=config)
    inputs = {"files": inventory.digest}
    deciding = prepare.documents_libraries(config, inventory)
    return Stage("documents", prepare.DOCUMENTS_VERSION, identity, inputs, deciding)


def splits_stage(config: DataConfig, documents: Artifact) -> Stage:
    """The stage that drops duplicates and holds out a validation split."""
    identity = identify(*prepare.SPLITS_SETTINGS, data=config)
    inputs = {"documents": documents.digest}
    return Stage("splits", prepare.SPLITS_VERSION, identity, inputs, deciding=("pyarrow",))


def tokenizer_stage(config: DataConfig, documents: Artifact, splits: Artifact) -> Stage:
    """The stage that trains the tokenizer."""
    identity = identify(*prepare.TOKENIZER_SETTINGS, data=config)
    # Files that came later do not make another one.
    inputs = {a.stage: a.summary["first_generation"] for a in (documents, splits)}
    if config.tokenizer.path:
        inputs = {"tokenizer.json": prepare.tokenizer_digest(config)}
    return Stage("tokenizer", prepare.TOKENIZER_VERSION, identity, inputs, deciding=("tokenizers",))


def tokens_stage(config: DataConfig, documents: Artifact, splits: Artifact, tokenizer: Artifact) -> Stage:
    """The stage that encodes every kept document."""
    identity = identify(*prepare.TOKENS_SETTINGS, data=config)
    inputs = {"documents": documents.digest, "splits": splits.digest, "tokenizer": tokenizer.digest}
    return Stage("tokens", prepare.TOKENS_VERSION, identity, inputs)


@task(name="documents", task_run_name="clean and filter documents", **STAGE_OPTIONS)
def clean_documents(config: DataConfig, inventory: prepare.Inventory) -> Artifact:
    """Parse, normalise and filter; set broken records aside.

    Raises:
        StorageError: the disk has no room for what all stages will make of the files.
    """

    def build(out: Path, progress: Progress) -> Mapping[str, Any]:
        require_space(Home.here().root, needed_bytes=SPACE_RATIO * inventory.total_bytes)
        shop = _workshop(config, inventory.text_bytes)
        return prepare.build_documents(config, inventory, out, progress, shop)

    documents = ensure(documents_stage(config, inventory), build)
    prepare.remember_inventory(config, inventory)
    return documents


@task(name="splits", task_run_name="drop duplicates and split", **STAGE_OPTIONS)
def split_documents(config: DataConfig, documents: Artifact) -> Artifact:
    """Keep one of several equal documents, hold some out for validation, balance the books."""
    splits = ensure(
        splits_stage(config, documents),
        lambda out, progress: prepare.build_splits(
            config, documents.path, out, progress, _workshop(config, documents.summary["bytes"]).workers
        ),
    )
    for text in splits.summary.get("notes", ()):  # said again where the stage is reused
        note(get_run_logger(), f"warning: {text}")
    return splits


@task(name="tokenizer", task_run_name="train the tokenizer", **STAGE_OPTIONS)
def train_tokenizer(config: DataConfig, documents: Artifact, splits: Artifact) -> Artifact:
    """Learn byte-level BPE merges from the training split."""
    return ensure(
        tokenizer_stage(config, documents, splits),
        lambda out, progress: prepare.build_tokenizer(config, documents.path, splits.path, out, progress),
    )


@task(name="tokens", task_run_name="encode to Parquet", **STAGE_OPTIONS)
def encode_tokens(config: DataConfig, documents: Artifact, splits: Artifact, tokenizer: Artifact) -> Artifact:
    """Encode every kept document into memory-mappable Parquet."""
    return ensure(
        tokens_stage(config, documents, splits, tokenizer),
        lambda out, progress: prepare.build_tokens(
            config,
            documents.path,
            splits.path,
            tokenizer.path,
            out,
            progress,
            _workshop(config, documents.summary["bytes"]),
        ),
    )


def _workshop(config: DataConfig, num_bytes: int) -> prepare.Workshop:
    """Where shards are made and kept; ``num_bytes`` is the size of the work."""
    store = Home.here().store
    if config.executor == "ray":
        return prepare.Workshop(store, RayWorkers(config.ray_address, config.workers or os.cpu_count() or 1))
    return prepare.workshop(config, num_bytes, store)
