"""The stages of data preparation, as the tasks run them: raw files to tokens.

``take_inventory`` looks; the four builds below are pure functions to a directory, each with the version that
is raised by hand when its code changes what it makes, and the settings that decide its result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import DataConfig
from lmcore.data.documents import build_documents
from lmcore.data.encoding import Encoder
from lmcore.data.sources import ARCHIVE_SUFFIXES, PAGE_SUFFIXES, Inventory, take_inventory
from lmcore.data.splits import SPLITS, Document, build_splits, read_split, split_size
from lmcore.data.token_writer import TokenWriter
from lmcore.data.tokenizer import build_tokenizer
from lmcore.progress import Paced, Progress
from lmcore.store import UNICODE

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
    "build_documents",
    "build_splits",
    "build_tokenizer",
    "build_tokens",
    "documents_libraries",
    "take_inventory",
]

DOCUMENTS_VERSION = 3
DOCUMENTS_SETTINGS = (
    "data.sources",
    "data.limits",
    "data.shard_bytes",
    "data.quality.profile",
    "data.quality.c4_lines",
    "data.near_dedup",
    "data.text",
    "data.privacy",
    "data.language.enabled",
    "data.language.max_chars",
)
SPLITS_VERSION = 2
SPLITS_SETTINGS = (
    "data.quality",
    "data.language.enabled",
    "data.language.keep",
    "data.language.min_score",
    "data.exact_dedup",
    "data.near_dedup.enabled",
    "data.validation_fraction",
    "data.split_seed",
)
TOKENIZER_VERSION = 1
TOKENIZER_SETTINGS = ("data.tokenizer",)
TOKENS_VERSION = 2
# Nothing but its inputs decides; the tokenizer's settings are named so that a reader sees which they are of.
TOKENS_SETTINGS = ("data.tokenizer",)

_SAMPLE_DOCUMENTS = 64
_SAMPLE_CHARS = 300_000
_BATCH_CHARS = 8_000_000


def documents_libraries(config: DataConfig, inventory: Inventory) -> tuple[str, ...]:
    """Distributions that decide the bytes of the documents, those alone that are used."""
    suffixes = {file.suffix for file in inventory.files}
    archives = bool(suffixes & {*ARCHIVE_SUFFIXES})
    pages = (
        archives or bool(suffixes & {*PAGE_SUFFIXES}) or any(s.text_format == "html" for s in config.sources)
    )
    used = {
        "ftfy": config.text.repair_mojibake,
        "py3langid": config.language.enabled,
        "resiliparse": pages,
        "fastwarc": archives,
    }
    return ("pyarrow", UNICODE, *(name for name, is_used in used.items() if is_used))


def build_tokens(
    config: DataConfig,
    documents_dir: Path,
    splits_dir: Path,
    tokenizer_dir: Path,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Encode both splits to Parquet, each document ending with EOS, in the order of content hashes.

    ``tokenizer_dir`` is any directory with a ``tokenizer.json`` that knows ``<|endoftext|>``.

    Returns:
        Documents, tokens and bytes of each split, bytes per token, and the engine with the reason for it.

    Raises:
        DataError: the tokenizer cannot be used, or tokens do not stand for the text.
    """
    del config  # its part is in the tokenizer
    batches = {split: _batches(read_split(documents_dir, splits_dir, split)) for split in SPLITS}
    first = next(batches["train"])
    batches["train"] = itertools.chain([first], batches["train"])
    encoder = Encoder(tokenizer_dir, _sample(first))
    summary: dict[str, Any] = {
        "engine": encoder.engine,
        "engine_reason": encoder.reason,
        "vocab_size": encoder.vocab_size,
        "eos_id": encoder.eos_id,
    }
    total = {"documents": 0, "tokens": 0, "bytes": 0}
    for split in SPLITS:
        paced = Paced(progress, f"encode {split}", split_size(splits_dir, split), "documents")
        written = _encode_split(encoder, batches[split], out / split, paced)
        summary |= {f"{split}_{name}": count for name, count in written.items()}
        total = {name: count + written[name] for name, count in total.items()}
    return {**summary, **total, "bytes_per_token": round(total["bytes"] / total["tokens"], 4)}


def _encode_split(
    encoder: Encoder, batches: Iterable[list[Document]], out: Path, paced: Paced
) -> dict[str, int]:
    totals = {"documents": 0, "tokens": 0, "bytes": 0}
    with TokenWriter(out, eos_id=encoder.eos_id, vocab_size=encoder.vocab_size) as writer:
        for batch in batches:
            tokens, lengths = end_documents(*encoder.encode([d.text for d in batch]), encoder.eos_id)
            num_bytes = sum(len(document.text.encode()) for document in batch)
            writer.add([d.doc_id for d in batch], [d.source for d in batch], tokens, lengths, num_bytes)
            totals["documents"] += len(batch)
            totals["tokens"] += len(tokens)
            totals["bytes"] += num_bytes
            paced.advance(len(batch))
    paced.finish()
    return totals


def end_documents(tokens: np.ndarray, lengths: np.ndarray, eos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Put EOS behind each of the documents that ``tokens`` (int32) holds one after another."""
    longer = lengths + 1
    ended = np.empty(len(tokens) + len(lengths), np.int32)
    is_text = np.ones(len(ended), bool)
    ends = np.cumsum(longer) - 1
    is_text[ends] = False
    ended[ends] = eos_id
    ended[is_text] = tokens
    return ended, longer


def _sample(documents: Iterable[Document]) -> list[str]:
    texts, size = [], 0
    for document in itertools.islice(documents, _SAMPLE_DOCUMENTS):
        texts.append(document.text[: _SAMPLE_CHARS - size])
        size += len(texts[-1])
        if size == _SAMPLE_CHARS:
            break
    return texts


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
