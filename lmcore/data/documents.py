"""The documents stage: raw files in, normalised and measured documents out, as Parquet shards.

Nothing is dropped here: figures that quality rules look at are stored beside the text, and the splits stage
decides by them.

Each shard is a run of files of one source and is worked on alone, so the output is the same for any number of
processes. Layout::

    documents/00000.parquet    what could be read, in the order of the files
    quarantine/00000.parquet   what could not be read, only for shards that have any
    books.json                 source and books of each shard
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.config import DataConfig, SourceConfig
from lmcore.data.arrow import text_array
from lmcore.data.books import Books
from lmcore.data.dedup import HASH_BYTES, content_hashes
from lmcore.data.language import language_columns, language_fields
from lmcore.data.pool import map_in_order
from lmcore.data.privacy import kinds_of, mask
from lmcore.data.quality import signals_of
from lmcore.data.records import Quarantined, Record, read_records
from lmcore.data.sources import WHOLE_FILE_SUFFIXES, Inventory, SourceFile
from lmcore.data.text import clean
from lmcore.errors import DataError
from lmcore.progress import Paced, Progress

if TYPE_CHECKING:
    from lmcore.data.signals import Measured

DOCUMENTS_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("content_hash", pa.binary(HASH_BYTES), nullable=False),
    ]
)  # and a column for each signal and each band of a signature, and two for the language
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("byte_offset", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("raw", pa.binary(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
    ]
)
ROW_GROUP_TEXT = 16_000_000  # characters


_Row = tuple[str, str, str, int, str]  # doc_id, source, path, record, text


@dataclass
class Shard:
    """Files of one source that are worked on together."""

    index: int
    source: SourceConfig
    files: list[SourceFile] = field(default_factory=list)
    num_bytes: int = 0  # as stored

    @property
    def name(self) -> str:
        """File name of its outputs."""
        return f"{self.index:05d}.parquet"


@dataclass
class ShardResult:
    """What became of a shard."""

    source: str
    books: Books
    num_bytes: int = 0
    broken_files: int = 0
    masked: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {
            "source": self.source,
            "books": self.books.to_json(),
            "bytes": self.num_bytes,
            "masked": dict(sorted(self.masked.items())),
        }


def build_documents(
    config: DataConfig, inventory: Inventory, out: Path, progress: Progress
) -> dict[str, Any]:
    """Read, normalise and filter every file of ``inventory``.

    Returns:
        Files, bytes (of UTF-8 text that passed) and the books in all, by source and by shard.

    Raises:
        DataError: nothing can be read, too much was quarantined, or the books do not balance.
    """
    shards = _cut(config, inventory)
    _compile(config)
    (out / "documents").mkdir()
    paced = Paced(progress, "read documents", inventory.total_bytes, "bytes")
    results = []
    for shard, result in zip(shards, _map(config, shards, out, paced), strict=True):
        result.books.check_intake(f"shard {shard.index} ({shard.source.name})")
        results.append(result)
    paced.finish()
    books = Books.total(result.books for result in results)
    examples = [example for result in results for example in result.examples]
    _check_quarantine(config, books, examples)
    broken_files = sum(result.broken_files for result in results)
    _check_broken_files(config, broken_files, len(inventory.files), examples)
    if not books.passed:
        raise nothing_left(books, examples)
    (out / "books.json").write_text(json.dumps([result.to_json() for result in results]), encoding="utf-8")
    by_source: dict[str, Books] = {}
    for source in config.sources:
        by_source[source.name] = Books.total(r.books for r in results if r.source == source.name)
        by_source[source.name].check_intake(f"source {source.name}")
    return {
        "inventory": inventory.summary(),
        "documents": books.passed,
        "bytes": sum(result.num_bytes for result in results),
        "books": books.to_json(),
        "sources": {name: part.to_json() for name, part in by_source.items()},
        "shards": [result.to_json() for result in results],
        "broken_files": broken_files,
        "masked": dict(sorted(sum((result.masked for result in results), Counter()).items())),
        "quarantine_examples": examples[:5],
    }


def _cut(config: DataConfig, inventory: Inventory) -> list[Shard]:
    sources = {source.name: source for source in config.sources}
    shards: list[Shard] = []
    for file in inventory.files:
        last = shards[-1] if shards else None
        if last is None or last.source.name != file.source or last.num_bytes >= config.shard_bytes:
            last = Shard(len(shards), sources[file.source])
            shards.append(last)
        last.files.append(file)
        last.num_bytes += file.num_bytes
    return shards


# --- one shard -------------------------------------------------------------------------------------


def build_shard(config: DataConfig, shard: Shard, out: Path, paced: Paced | None = None) -> ShardResult:
    """Work on one shard; ``out`` is the stage's directory."""
    result = ShardResult(shard.source.name, Books())
    kinds = kinds_of(config.privacy)
    quarantined: list[dict[str, Any]] = []
    path = out / "documents" / shard.name
    signals = [pa.field(name, pa.float64(), nullable=False) for name in signals_of(config.quality)]
    bands = [pa.field(name, pa.uint64(), nullable=False) for name in band_names(config)]
    schema = pa.schema([*DOCUMENTS_SCHEMA, *signals, *bands, *language_fields(config.language)])
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        rows: list[_Row] = []
        held = 0
        for file, record in _records(config, shard, paced):
            if isinstance(record, Quarantined):
                result.books.documents_in += record.num_records
                result.books.quarantined += record.num_records
                result.broken_files += record.breaks_off
                quarantined.append(_quarantine_row(file, record))
                continue
            result.books.documents_in += 1
            result.books.passed += 1
            text = mask(clean(record.text, config.text), kinds, result.masked)
            rows.append((_doc_id(file, record), file.source, file.name, record.index, text))
            held += len(text)
            if held >= ROW_GROUP_TEXT:
                result.num_bytes += _write(writer, schema, config, rows)
                rows, held = [], 0
        if rows:
            result.num_bytes += _write(writer, schema, config, rows)
    if quarantined:
        (out / "quarantine").mkdir(exist_ok=True)
        table = pa.Table.from_pylist(quarantined, schema=QUARANTINE_SCHEMA)
        pq.write_table(table, out / "quarantine" / shard.name, compression="zstd", write_page_checksum=True)
        result.examples = [_example(row) for row in quarantined[:3]]
    return result


def _records(
    config: DataConfig, shard: Shard, paced: Paced | None
) -> Iterator[tuple[SourceFile, Record | Quarantined]]:
    for file in shard.files:
        try:
            for record in read_records(file, shard.source, config.limits):
                yield file, record
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise DataError(
                f"file {file.name} of source {file.source!r} cannot be read any more",
                found=str(error),
                remedy="Run again when nothing moves or removes it.",
            ) from error
        if paced:
            paced.advance(file.num_bytes)


def _doc_id(file: SourceFile, record: Record) -> str:
    """Name a document so that a reader finds it: source:id, source:file or source:file#record."""
    if record.id:
        return f"{file.source}:{record.id}"
    whole_file = file.suffix in WHOLE_FILE_SUFFIXES
    return f"{file.source}:{file.name}" + ("" if whole_file else f"#{record.index}")


def _write(writer: pq.ParquetWriter, schema: pa.Schema, config: DataConfig, rows: list[_Row]) -> int:
    """Measure ``rows`` and write them as one row group; return the bytes of their text."""
    doc_ids, sources, paths, records, texts = zip(*rows, strict=True)
    measured, bands = _measure(text_array(texts), config)
    columns = [
        pa.array(doc_ids, pa.string()),
        pa.array(sources, pa.string()),
        pa.array(paths, pa.string()),
        pa.array(records, pa.int64()),
        measured.texts,
        content_hashes(measured.texts),
        *map(pa.array, measured.signals.values()),
        *map(pa.array, bands),
        *language_columns(measured.texts, config.language),
    ]
    writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(rows))
    return measured.num_bytes


def _measure(texts: pa.Array, config: DataConfig) -> tuple[Measured, list[np.ndarray]]:
    """What is left of ``texts``, its figures, and the hash of each band of its signature."""
    # The compiler takes a third of a second to import, and most commands build nothing.
    from lmcore.data.minhash import band_hashes
    from lmcore.data.signals import measure

    measured = measure(texts, config.quality)
    if not config.near_dedup.enabled:
        return measured, []
    return measured, list(np.ascontiguousarray(band_hashes(measured.texts, config.near_dedup).T))


def band_names(config: DataConfig) -> list[str]:
    """Columns that hold the bands of signatures, if any."""
    return [f"band_{i:02d}" for i in range(config.near_dedup.num_bands) if config.near_dedup.enabled]


def _compile(config: DataConfig) -> None:
    """Compile what measures, once, so that not every process does; a wrong language is found here too."""
    text = pa.array(["a"], pa.large_string())
    _measure(text, config)
    language_columns(text, config.language)


def _quarantine_row(file: SourceFile, record: Quarantined) -> dict[str, Any]:
    return {
        "source": file.source,
        "path": file.name,
        "record": record.index,
        "byte_offset": record.offset,
        "reason": record.reason,
        "raw": record.raw,
        "num_bytes": record.num_bytes,
    }


def _example(row: dict[str, Any]) -> str:
    place = "" if row["byte_offset"] is None else f" at byte {row['byte_offset']}"
    return f"{row['source']}:{row['path']} record {row['record']}{place}: {row['reason']}"


# --- all shards ------------------------------------------------------------------------------------


def _map(config: DataConfig, shards: Sequence[Shard], out: Path, paced: Paced) -> Iterator[ShardResult]:
    """Work on ``shards``, yielding results in their order."""
    workers = min(config.workers or os.cpu_count() or 1, len(shards))
    # Another process cannot see fsspec's in-memory files.
    in_memory = any(file.url.startswith("memory:") for shard in shards for file in shard.files)
    if workers == 1 or in_memory:
        for shard in shards:
            yield build_shard(config, shard, out, paced)
        return
    calls = [(config, shard, out) for shard in shards]
    for shard, result in zip(shards, map_in_order(build_shard, calls, workers), strict=True):
        paced.advance(shard.num_bytes)
        yield result


# --- what is too much ------------------------------------------------------------------------------


def _check_quarantine(config: DataConfig, books: Books, examples: list[str]) -> None:
    limits = config.limits
    allowed = max(limits.quarantine_floor, limits.max_quarantined * books.documents_in)
    if books.quarantined > allowed:
        raise DataError(
            "too many records could not be read",
            expected=f"at most {allowed:.0f} of {books.documents_in} (limits.max_quarantined "
            f"{limits.max_quarantined:g}, limits.quarantine_floor {limits.quarantine_floor})",
            found=f"{books.quarantined}, for example " + "; ".join(examples[:3]),
            remedy="Mend the input, or raise data.limits.max_quarantined if the loss is acceptable.",
        )


def _check_broken_files(config: DataConfig, broken: int, files: int, examples: list[str]) -> None:
    allowed = max(1.0, config.limits.max_broken_files * files)
    if broken > allowed:
        raise DataError(
            "too many files break off before their end",
            expected=f"at most {allowed:.0f} of {files} (limits.max_broken_files "
            f"{config.limits.max_broken_files:g}, and always 1)",
            found=f"{broken}, for example " + "; ".join(examples[:3]),
            remedy="Fetch them again, or raise data.limits.max_broken_files if the loss is acceptable.",
        )


def nothing_left(books: Books, examples: Sequence[str] = ()) -> DataError:
    """The error that no document is left, and why."""
    lost = [f"{count} dropped by {rule}" for rule, count in books.dropped.most_common()]
    if books.quarantined:
        lost.append(f"{books.quarantined} quarantined, for example " + "; ".join(examples[:1]))
    return DataError(
        "no document is left",
        expected="at least one that passes data.quality",
        found=f"{books.documents_in} read" + "".join(f", {text}" for text in lost),
        remedy="Loosen the rules named, or choose another data.quality.profile."
        if books.dropped
        else "Mend what is named, or raise the limit that is."
        if books.quarantined
        else "Look at the sources: their files are empty.",
    )
