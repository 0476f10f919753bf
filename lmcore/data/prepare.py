"""The stages of data preparation, as the tasks run them: raw files to tokens.

``take_inventory`` looks; the four builds below are pure functions to a directory, each with the version that
is raised by hand when its code changes what it makes, and the settings that decide its result.
"""

from __future__ import annotations

from pathlib import Path

from lmcore.config import DataConfig
from lmcore.data.arrow import keep_memory
from lmcore.data.documents import SHARD_SETTINGS, build_documents, documents_libraries
from lmcore.data.encode import build_tokens
from lmcore.data.growth import in_generations, journal_of, remember
from lmcore.data.pool import Workshop, local_workers
from lmcore.data.presidio import check_installed
from lmcore.data.sources import Inventory
from lmcore.data.sources import take_inventory as _take_inventory
from lmcore.data.splits import build_splits
from lmcore.data.tokenizer import build_tokenizer, check_tokenizer, tokenizer_digest

__all__ = [
    "DOCUMENTS_SETTINGS",
    "DOCUMENTS_VERSION",
    "SPLITS_SETTINGS",
    "SPLITS_VERSION",
    "TOKENIZER_SETTINGS",
    "TOKENIZER_VERSION",
    "TOKENS_SETTINGS",
    "TOKENS_VERSION",
    "Inventory",
    "Workshop",
    "build_documents",
    "build_splits",
    "build_tokenizer",
    "build_tokens",
    "documents_libraries",
    "remember_inventory",
    "take_inventory",
    "tokenizer_digest",
    "workshop",
]

DOCUMENTS_VERSION = 6
DOCUMENTS_SETTINGS = ("data.sources", "data.limits", "data.shard_bytes", *SHARD_SETTINGS)
SPLITS_VERSION = 6
SPLITS_SETTINGS = (
    "data.quality",
    "data.language.enabled",
    "data.language.keep",
    "data.language.min_score",
    "data.exact_dedup",
    "data.near_dedup.enabled",
    "data.repeated_lines",
    "data.decontamination.max_ngrams",
    "data.validation_fraction",
    "data.test_fraction",
    "data.split_seed",
)
TOKENIZER_VERSION = 3
TOKENIZER_SETTINGS = ("data.tokenizer",)
TOKENS_VERSION = 4
# Nothing but its inputs decides; the tokenizer's settings are named so that a reader sees which they are of.
TOKENS_SETTINGS = ("data.tokenizer",)


def take_inventory(config: DataConfig) -> Inventory:
    """List and digest the files of every source; with ``incremental``, those that are new come last.

    Raises:
        ConfigError: what masks entities is not installed, or a special token can be a part of a text.
        DataError: the tokenizer cannot be brought, a source matches nothing or holds a file of another kind,
            or a file cannot be read.
    """
    check_installed(config.privacy.presidio)  # before everything is read once
    check_tokenizer(config.tokenizer)
    keep_memory()  # before there are threads that have their own
    inventory = _take_inventory(config)
    return in_generations(inventory, journal_of(config)) if config.incremental else inventory


def remember_inventory(config: DataConfig, inventory: Inventory) -> None:
    """With ``incremental``, keep what came when, so that the next run sees what is new."""
    if config.incremental:
        remember(inventory, journal_of(config))


def workshop(config: DataConfig, num_bytes: int, store: Path) -> Workshop:
    """Where shards are made, on this machine, and kept; ``num_bytes`` is the size of the work."""
    return Workshop(store, local_workers(config, num_bytes))
