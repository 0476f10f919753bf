"""Print MB/s of each step of data preparation, on files or on the standard library.

python tests/benchmarks/data.py ['GLOB' [PROFILE [near]]]    (run from the root of a checkout)

`near` finds near duplicates too. MB are of UTF-8 text, but where raw files are read. The peer is timed on the
same work by parity.py (quality alone).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lmcore.config import DataConfig, NearDedupConfig, QualityConfig, SourceConfig
from lmcore.data import prepare
from lmcore.data.arrow import text_array
from lmcore.data.dedup import content_hashes
from lmcore.data.encoding import Encoder
from lmcore.data.minhash import band_hashes, clusters
from lmcore.data.quality import first_broken_rules
from lmcore.data.records import Record, read_records
from lmcore.data.signals import measure
from lmcore.data.splits import read_split
from lmcore.data.text import normalise
from lmcore.data.tokens import TokenDataset
from lmcore.progress import silent

T = TypeVar("T")

SLICE_TOKENS = 2_048
NUM_SLICES = 100_000
# The reference encoder is slow: this much is enough to time it.
REFERENCE_CHARS = 8_000_000


def timed(step: str, num_bytes: int, work: Callable[[], T]) -> T:
    """Run ``work`` and print a line of the table."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    print(f"{step:<42} {seconds:9.3f} s {num_bytes / 1e6 / seconds:10.1f} MB/s", flush=True)
    return result


def time_steps(config: DataConfig, inventory: prepare.Inventory) -> None:
    """Time what happens to a document, one step after another, on one core."""
    sources = {source.name: source for source in config.sources}

    def read() -> list[str]:
        return [
            record.text
            for file in inventory.files
            for record in read_records(file, sources[file.source], config.limits)
            if isinstance(record, Record)
        ]

    texts = timed("read records", inventory.total_bytes, read)
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    texts = timed("normalise", size, lambda: [normalise(text) for text in texts])
    column = timed("to Arrow", size, lambda: text_array(texts))
    for profile in ("code", "web"):
        rules = QualityConfig(profile=profile)
        timed(f"compile or load: {profile}", 1, lambda rules=rules: measure(column[:1], rules))
        found = timed(f"measure: {profile}", size, lambda rules=rules: measure(column, rules))
        dropped = timed(
            f"decide: {profile}",
            size,
            lambda r=rules, f=found: first_broken_rules(r, f.signals, len(column)),
        )
        print(f"    {len(column)} documents, {dropped.null_count} kept")
    timed("content hash", size, lambda: content_hashes(column))
    near = NearDedupConfig(enabled=True)
    timed("compile or load: near duplicates", 1, lambda: band_hashes(column[:1], near))
    bands = timed("signatures", size, lambda: band_hashes(column, near))
    first = timed("clusters", size, lambda: clusters(bands.T, len(column)))
    print(f"    {len(column)} documents, {int((first == np.arange(len(column))).sum())} unlike the others")


def time_stages(config: DataConfig, inventory: prepare.Inventory, out: Path) -> dict[str, Path]:
    """Time the four builds."""
    stages = {name: out / name for name in ("documents", "splits", "tokenizer", "tokens")}
    for path in stages.values():
        path.mkdir()
    documents, splits, tokenizer, tokens = stages.values()
    raw = inventory.total_bytes
    made = timed(
        "stage: documents", raw, lambda: prepare.build_documents(config, inventory, documents, silent)
    )
    size = made["bytes"]
    timed("stage: splits", size, lambda: prepare.build_splits(config, documents, splits, silent))
    learned = timed(
        "stage: tokenizer (MB/s of all text)",
        size,
        lambda: prepare.build_tokenizer(config, documents, splits, tokenizer, silent),
    )
    print(f"    learned from {learned['sample_bytes'] / 1e6:.1f} MB")
    encoded = timed(
        "stage: tokens",
        size,
        lambda: prepare.build_tokens(config, documents, splits, tokenizer, tokens, silent),
    )
    print(f"    {encoded['tokens']:,} tokens by {encoded['engine']}: {encoded['engine_reason']}")
    return stages


def time_encoders(stages: dict[str, Path]) -> None:
    """Time encoding alone, by the chosen engine and by the reference."""
    texts = [document.text for document in read_split(stages["documents"], stages["splits"], "train")]
    some: list[str] = []
    while texts and sum(map(len, some)) < REFERENCE_CHARS:
        some.append(texts.pop())
    fast = Encoder(stages["tokenizer"], some[:20])
    slow = Encoder(stages["tokenizer"])
    slow._fast = None
    for name, encoder, batch in ((fast.engine, fast, texts or some), ("tokenizers", slow, some)):
        timed(f"encode: {name}", _size(batch), lambda e=encoder, b=batch: e.encode(b))


def time_slices(directory: Path) -> None:
    """Time random reads through the memory map."""
    dataset = TokenDataset(directory)
    length = min(SLICE_TOKENS, dataset.num_tokens)
    starts = np.random.default_rng(0).integers(0, dataset.num_tokens - length + 1, NUM_SLICES).tolist()

    def read() -> None:
        for start in starts:
            dataset.slice(start, start + length)

    timed(f"read {NUM_SLICES:,} random slices of {length:,} tokens", 4 * length * NUM_SLICES, read)
    timed("verify", 4 * dataset.num_tokens, dataset.verify)


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    options: dict[str, Any] = {}
    if arguments:
        options["sources"] = (SourceConfig(name="files", kind="files", path=arguments[0]),)
    if arguments[1:]:
        options["quality"] = QualityConfig.model_validate({"profile": arguments[1]})
    options["near_dedup"] = NearDedupConfig(enabled="near" in arguments)
    config = DataConfig(**options)
    print(f"{os.cpu_count()} cores")
    inventory = prepare.take_inventory(config)
    timed("find and hash files", inventory.total_bytes, lambda: prepare.take_inventory(config))
    time_steps(config, inventory)
    with tempfile.TemporaryDirectory() as folder:
        stages = time_stages(config, inventory, Path(folder))
        time_encoders(stages)
        time_slices(stages["tokens"] / "train")


if __name__ == "__main__":
    main(sys.argv[1:])
