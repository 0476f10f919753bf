"""The documents stage: raw files in, normalised and measured documents out, as Parquet shards.

Nothing is dropped here: figures that quality rules look at are stored beside the text, and the splits stage
decides by them.

Each shard is an artifact of its own, made of a few files of one source (``lmcore.data.shards``), so the
result is the same for any number of workers, and what did not change is not made again. The stage's own
artifact links to their files. Layout::

    documents/00000.parquet    what could be read, in the order of the files
    quarantine/00000.parquet   what could not be read, only for shards that have any
    books.json                 source, generation and books of each shard
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.config import DETECT, DataConfig, Identity, identify
from lmcore.data.arrow import column, string_column
from lmcore.data.books import Books
from lmcore.data.cleaning import clean_texts
from lmcore.data.dedup import HASH_BYTES, content_hashes
from lmcore.data.language import language_columns, language_fields
from lmcore.data.page_texts import page_pool
from lmcore.data.pool import Processes, Threads, Unit, Workshop, in_order, local_workers
from lmcore.data.presidio import presidio_libraries
from lmcore.data.privacy import mask_texts, masks
from lmcore.data.quality import measures_text, stored_signals
from lmcore.data.records import Quarantined, Record, read_records
from lmcore.data.scripts import script_columns, script_fields
from lmcore.data.shards import Shard, cut
from lmcore.data.sources import ARCHIVE_SUFFIXES, PAGE_SUFFIXES, WHOLE_FILE_SUFFIXES, Inventory, SourceFile
from lmcore.errors import DataError
from lmcore.progress import Paced, Progress
from lmcore.store import UNICODE, Stage, link, sha256_json

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
)  # and a column for each signal and each band of a signature, one for the script, two for the language
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
SHARD_VERSION = 3
SHARD_SETTINGS = (
    "data.limits.max_record_bytes",
    "data.limits.max_expansion",
    "data.quality.profile",
    "data.quality.c4_lines",
    "data.near_dedup",
    "data.text",
    "data.privacy",
    "data.language.enabled",
    "data.language.max_chars",
    "data.decontamination.sources",
    "data.decontamination.ngram_words",
)
ROW_GROUP_TEXT = 4_000_000  # characters
EVALUATION_NGRAMS = "evaluation_ngrams.npy"
# Dictionaries of what hardly ever repeats took a third of the time to write.
_STORED: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["source", "path", "script", "language"],
    "write_page_checksum": True,
}
_THREADS = 2
# A process that takes the texts of pages starts in a fifth of a second.
_PAGES_ALONE_UP_TO_BYTES = 8_000_000
_RAW_OF_SHARD = 64_000_000  # bytes of records that cannot be read that are kept of a shard
_RAW_AT_LEAST = 4_096  # of each, however many there are

_Row = tuple[str, str, str, int, str | bytes]  # doc_id, source, path, record, text


@dataclass
class ShardResult:
    """What became of a shard."""

    source: str
    books: Books
    num_bytes: int = 0
    broken_files: int = 0
    masked: Counter[str] = field(default_factory=Counter)
    charsets: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return {
            "source": self.source,
            "books": self.books.to_json(),
            "bytes": self.num_bytes,
            "broken_files": self.broken_files,
            "masked": dict(sorted(self.masked.items())),
            "charsets": dict(sorted(self.charsets.items())),
            "examples": self.examples,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ShardResult:
        """Rebuild from ``to_json``."""
        return cls(
            source=values["source"],
            books=Books.from_json(values["books"]),
            num_bytes=values["bytes"],
            broken_files=values["broken_files"],
            masked=Counter(values["masked"]),
            charsets=Counter(values["charsets"]),
            examples=values["examples"],
        )


def build_documents(
    config: DataConfig,
    inventory: Inventory,
    out: Path,
    progress: Progress,
    workshop: Workshop | None = None,
) -> dict[str, Any]:
    """Read, normalise and measure every file of ``inventory``.

    Args:
        config: Sources, limits, and what is measured and masked.
        inventory: Of the sources.
        out: Written to.
        progress: Told of bytes read.
        workshop: Where shards are made; None: here, and they are not kept.

    Returns:
        Files, bytes (of UTF-8 text) and the books in all, by source and by shard; shards made and reused.

    Raises:
        DataError: nothing can be read, too much was quarantined, or the books do not balance.
    """
    shards = cut(config.sources, inventory.generations, config.shard_bytes)
    evaluated = _read_evaluation_sets(config, inventory, out)
    _compile(config)
    for name in ("documents", "quarantine"):
        (out / name).mkdir()
    paced = Paced(progress, "read documents", inventory.total_bytes, "bytes")
    results: list[ShardResult] = []
    digests: list[str] = []
    made = 0
    with _workshop(workshop, config, inventory, out, len(shards)) as shop:
        artifacts = shop.make(_unit(config, shard, inventory, out) for shard in shards)
        for number, (shard, artifact) in enumerate(zip(shards, artifacts, strict=True)):
            result = ShardResult.from_json(artifact.summary)
            result.books.check_intake(f"shard {number} ({shard.source.name})")
            for path in sorted(artifact.path.glob("*.parquet")):
                link(path, out / path.stem / f"{number:05d}.parquet")
            results.append(result)
            digests.append(artifact.digest)
            made += artifact.status == "built"
            paced.advance(shard.num_bytes)
    paced.finish()
    with contextlib.suppress(OSError):
        (out / "quarantine").rmdir()  # where there is nothing in it
    first = [digest for shard, digest in zip(shards, digests, strict=True) if not shard.generation]
    summary = _summary(config, inventory, shards, results, out)
    summary |= evaluated
    return {**summary, "shards_made": made, "first_generation": sha256_json(first)}


def _summary(
    config: DataConfig, inventory: Inventory, shards: list[Shard], results: list[ShardResult], out: Path
) -> dict[str, Any]:
    books = Books.total(result.books for result in results)
    examples = [example for result in results for example in result.examples]
    _check_quarantine(config, books, examples)
    broken_files = sum(result.broken_files for result in results)
    _check_broken_files(config, broken_files, inventory.num_files, examples)
    if not books.passed:
        raise nothing_left(books, examples)
    entries = [
        {"source": result.source, "generation": shard.generation, "bytes": result.num_bytes}
        | {"books": result.books.to_json()}
        for shard, result in zip(shards, results, strict=True)
    ]
    (out / "books.json").write_text(json.dumps(entries), encoding="utf-8")
    by_source: dict[str, Books] = {}
    for source in config.sources:
        by_source[source.name] = Books.total(r.books for r in results if r.source == source.name)
        by_source[source.name].check_intake(f"source {source.name}")
        _check_source(config, source.name, by_source[source.name], results)
    return {
        "inventory": inventory.summary(),
        "documents": books.passed,
        "bytes": sum(result.num_bytes for result in results),
        "books": books.to_json(),
        "sources": {name: part.to_json() for name, part in by_source.items()},
        "shards": len(shards),
        "broken_files": broken_files,
        "masked": dict(sorted(sum((result.masked for result in results), Counter()).items())),
        # Documents that were not in UTF-8, by the codec that they were decoded by.
        "charsets": dict(sorted(sum((result.charsets for result in results), Counter()).items())),
        "quarantine_examples": examples[:5],
    }


@contextlib.contextmanager
def _workshop(
    workshop: Workshop | None, config: DataConfig, inventory: Inventory, out: Path, num_shards: int
) -> Iterator[Workshop]:
    workers = workshop.workers if workshop else local_workers(config, inventory.text_bytes)
    # Another process cannot see fsspec's in-memory files.
    if any(file.url.startswith("memory:") for file in inventory.files):
        workers = Threads(workers.count)
    pages = _bytes_of_pages(config, inventory)
    if isinstance(workers, Processes) and config.executor == "auto" and 2 * pages > inventory.text_bytes:
        # Most of the work is that of the pool below, however few shards there are. What is Python's and goes
        # on here keeps processes busy as well, if there are shards enough.
        is_much = bool(config.privacy.presidio.entities) or config.language.enabled
        if not (is_much and num_shards >= 2 * workers.count):
            workers = Threads(workers.count + 1)
    in_threads = isinstance(workers, Threads) and workers.count > 1 and pages > _PAGES_ALONE_UP_TO_BYTES
    with page_pool(config.workers or os.cpu_count() or 1) if in_threads else contextlib.nullcontext():
        if workshop:
            yield Workshop(workshop.root, workers)
            return
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".shards-") as folder:
            yield Workshop(Path(folder), workers)


def _bytes_of_pages(config: DataConfig, inventory: Inventory) -> int:
    """About how much of the inventory's text is web pages, in bytes."""
    in_html = {source.name for source in config.sources if source.text_format == "html"}
    web = (*ARCHIVE_SUFFIXES, *PAGE_SUFFIXES)
    files = (file for file in inventory.files if file.suffix in web or file.source in in_html)
    return sum(file.text_bytes for file in files)


def documents_libraries(config: DataConfig, inventory: Inventory) -> tuple[str, ...]:
    """Distributions that decide the bytes of the documents, those alone that are used."""
    return libraries_of(config, (*inventory.files, *inventory.evaluation))


def libraries_of(config: DataConfig, files: Iterable[SourceFile]) -> tuple[str, ...]:
    """Distributions that decide the bytes of what is read from ``files``."""
    suffixes = {file.suffix for file in files}
    archives = bool(suffixes & {*ARCHIVE_SUFFIXES})
    sources = (*config.sources, *config.decontamination.sources)
    in_html = any(source.text_format == "html" for source in sources)
    detects = any(source.encoding == DETECT for source in sources)
    used = {
        "icu4py": counts_words(config),
        "charset-normalizer": detects,
        "ftfy": config.text.repair_mojibake,
        "py3langid": config.language.enabled,
        "resiliparse": archives or in_html or detects or bool(suffixes & {*PAGE_SUFFIXES}),
    }
    named = (name for name, is_used in used.items() if is_used)
    return ("pyarrow", UNICODE, *named, *presidio_libraries(config.privacy.presidio))


# --- one shard -------------------------------------------------------------------------------------


def _read_evaluation_sets(config: DataConfig, inventory: Inventory, out: Path) -> dict[str, Any]:
    """Keep the n-grams of the evaluation sets in ``out``; say how many there are."""
    if not config.decontamination.sources:
        return {}
    from lmcore.data.contamination import read_evaluation_sets

    found = read_evaluation_sets(config, inventory.evaluation)
    np.save(out / EVALUATION_NGRAMS, found.hashes)
    return {
        "evaluation_items": found.items,
        "evaluation_items_too_short": found.too_short,
        "evaluation_ngrams": len(found.hashes),
    }


def _unit(config: DataConfig, shard: Shard, inventory: Inventory, out: Path) -> Unit:
    identity = identify(*SHARD_SETTINGS, data=config)
    of_source = identify(source=shard.source)
    identity = Identity(identity.values | of_source.values, identity.chosen | of_source.chosen)
    inputs = {"files": shard.digest}
    if config.decontamination.sources:
        inputs["evaluation"] = inventory.evaluation_digest
    deciding = libraries_of(config, (*shard.files, *inventory.evaluation))
    stage = Stage("documents-shard", SHARD_VERSION, identity, inputs, deciding)
    return Unit(stage, build_shard, (config, shard, out / EVALUATION_NGRAMS))


def build_shard(config: DataConfig, shard: Shard, ngrams: Path, out: Path) -> dict[str, Any]:
    """Read and measure one shard into ``out``: ``documents.parquet``, and ``quarantine.parquet`` if need be.

    One thread reads, others clean and measure what was read, so that one large compressed file keeps more
    than one core busy. Rows are in the order of the files all the same.
    """
    result = ShardResult(shard.source.name, Books())
    quarantined: list[dict[str, Any]] = []
    schema = _schema(config)
    path = out / "documents.parquet"
    # Those of texts are copies of two of them, for each of several buffers: seven times a giant document.
    stored: dict[str, Any] = _STORED | {"write_statistics": [name for name in schema.names if name != "text"]}
    with pq.ParquetWriter(path, schema, **stored) as writer:
        calls = ((rows, schema, config, ngrams) for rows in _batches(config, shard, result, quarantined))
        for group in in_order(_measurers(), _THREADS, _row_group, calls):
            _write(writer, group, result)
    if quarantined:
        table = pa.Table.from_pylist(quarantined, schema=QUARANTINE_SCHEMA)
        pq.write_table(table, out / "quarantine.parquet", compression="zstd", write_page_checksum=True)
        result.examples = [_example(row) for row in quarantined[:3]]
    return result.to_json()


@functools.cache
def _measurers() -> ThreadPoolExecutor:
    """Those that clean and measure, for all shards of this process: a core each, so that few need room."""
    is_worker = multiprocessing.parent_process() is not None  # one of as many as there are cores
    return ThreadPoolExecutor(_THREADS if is_worker else max(_THREADS, os.cpu_count() or 1))


def _schema(config: DataConfig) -> pa.Schema:
    signals = [pa.field(name, pa.float64(), nullable=False) for name in stored_signals(config)]
    bands = [pa.field(name, pa.uint64(), nullable=False) for name in band_names(config)]
    others = (*script_fields(config.quality), *language_fields(config.language))
    return pa.schema([*DOCUMENTS_SCHEMA, *signals, *bands, *others])


def _batches(
    config: DataConfig, shard: Shard, result: ShardResult, quarantined: list[dict[str, Any]]
) -> Iterator[list[_Row]]:
    """Read the documents of a row group at a time; what cannot be read goes to ``quarantined``."""
    books = result.books
    rows: list[_Row] = []
    held = raw_bytes = 0
    for file, record in _records(config, shard, books.without_page):
        if isinstance(record, Quarantined):
            books.documents_in += record.num_records
            books.quarantined += record.num_records
            result.broken_files += record.breaks_off
            row = _quarantine_row(file, record)
            # Many large ones, which little compressed input may hold, would not fit into memory.
            row["raw"] = row["raw"][: max(_RAW_AT_LEAST, _RAW_OF_SHARD - raw_bytes)]
            raw_bytes += len(row["raw"])
            quarantined.append(row)
            continue
        books.documents_in += 1
        books.passed += 1
        if record.charset:
            result.charsets[record.charset] += 1
        rows.append((_doc_id(file, record), file.source, file.name, record.index, record.text))
        held += record.num_chars or len(record.text)
        if held >= ROW_GROUP_TEXT:
            yield rows
            rows, held = [], 0
    if rows:
        yield rows


def _records(
    config: DataConfig, shard: Shard, without_page: Counter[str]
) -> Iterator[tuple[SourceFile, Record | Quarantined]]:
    for file in shard.files:
        options: dict[str, Any] = {"as_bytes": True, "without_page": without_page}
        try:
            for record in read_records(file, shard.source, config.limits, **options):
                yield file, record
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise DataError(
                f"file {file.name} of source {file.source!r} cannot be read any more",
                found=str(error),
                remedy="Run again when nothing moves or removes it.",
            ) from error


def _doc_id(file: SourceFile, record: Record) -> str:
    """Name a document so that a reader finds it: source:id, source:file or source:file#record."""
    if record.id:
        return f"{file.source}:{record.id}"
    whole_file = file.suffix in WHOLE_FILE_SUFFIXES
    return f"{file.source}:{file.name}" + ("" if whole_file else f"#{record.index}")


@dataclass
class _Group:
    table: pa.Table
    num_bytes: int
    masked: Counter[str]


def measure_rows(rows: Sequence[_Row], config: DataConfig, ngrams: Path) -> _Group:
    """Clean, mask and measure ``rows``; a table of ``DOCUMENTS_SCHEMA`` with their signals."""
    return _row_group(rows, _schema(config), config, ngrams)


def _row_group(rows: Sequence[_Row], schema: pa.Schema, config: DataConfig, ngrams: Path) -> _Group:
    """Clean and measure ``rows``."""
    doc_ids, sources, paths, records, raw = zip(*rows, strict=True)
    masked: Counter[str] = Counter()
    texts = clean_texts(raw, config.text)
    if masks(config.privacy):
        texts = mask_texts(texts, config.privacy, masked)
    measured, bands = _measure(texts, config)
    columns = [
        string_column(doc_ids),
        string_column(sources),
        string_column(paths),
        column(np.array(records, np.int64)),
        measured.texts,
        content_hashes(measured.texts),
        *map(column, measured.signals.values()),
        *_contamination(measured, config, ngrams),
        *map(column, bands),
        *script_columns(texts, config.quality),  # before lines were taken out: of some texts nothing is left
        *language_columns(measured.texts, config.language),
    ]
    return _Group(pa.Table.from_arrays(columns, schema=schema), measured.num_bytes, masked)


def _write(writer: pq.ParquetWriter, group: _Group, result: ShardResult) -> None:
    writer.write_table(group.table, row_group_size=len(group.table))
    result.num_bytes += group.num_bytes
    result.masked += group.masked


def _measure(texts: pa.Array, config: DataConfig) -> tuple[Measured, list[np.ndarray]]:
    """What is left of ``texts``, its figures, and the hash of each band of its signature."""
    # The compiler takes a third of a second to import, and most commands build nothing.
    from lmcore.data.minhash import band_hashes
    from lmcore.data.signals import measure

    measured = measure(texts, config.quality)
    if not config.near_dedup.enabled:
        return measured, []
    bands = band_hashes(measured.texts, config.near_dedup, measured.breaks)
    return measured, list(np.ascontiguousarray(bands.T))


def _contamination(measured: Measured, config: DataConfig, ngrams: Path) -> list[pa.Array]:
    if not config.decontamination.sources:
        return []
    from lmcore.data.contamination import count_shared

    size = config.decontamination.ngram_words
    return [column(count_shared(measured.texts, ngrams, size, measured.breaks))]


def counts_words(config: DataConfig) -> bool:
    """Whether words are looked at, which ICU finds in scripts without spaces."""
    by_rules = measures_text(config.quality)
    return by_rules or config.near_dedup.enabled or bool(config.decontamination.sources)


def band_names(config: DataConfig) -> list[str]:
    """Columns that hold the bands of signatures, if any."""
    return [f"band_{i:02d}" for i in range(config.near_dedup.num_bands) if config.near_dedup.enabled]


def _compile(config: DataConfig) -> None:
    """Compile what measures, once, so that not every process does.

    A wrong language and a missing model are found here too, before any work.
    """
    text = clean_texts(["a"], config.text)
    _measure(text, config)
    content_hashes(text)
    script_columns(text, config.quality)
    language_columns(text, config.language)
    if masks(config.privacy):
        mask_texts(text, config.privacy, Counter())


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


# --- what is too much ------------------------------------------------------------------------------


def _check_quarantine(config: DataConfig, books: Books, examples: list[str]) -> None:
    limits = config.limits
    allowed = max(limits.quarantine_floor, limits.max_quarantined * books.documents_in)
    if books.quarantined > allowed:
        raise DataError(
            "too many records could not be read",
            expected=f"at most {allowed:.0f} of {books.documents_in} (data.limits.max_quarantined "
            f"{limits.max_quarantined:g}, data.limits.quarantine_floor {limits.quarantine_floor})",
            found=f"{books.quarantined}, for example " + "; ".join(examples[:3]),
            remedy="Mend the input, or raise data.limits.max_quarantined if the loss is acceptable: with 1 "
            "all goes through, and `gristmill inspect RECIPE --quarantined --set ...` shows what was lost.",
        )


def _check_source(config: DataConfig, name: str, books: Books, results: list[ShardResult]) -> None:
    """Raise if nothing of a source can be read: a few files are a source too."""
    if books.passed or not books.quarantined or config.limits.max_quarantined == 1:
        return
    examples = [example for result in results if result.source == name for example in result.examples]
    raise DataError(
        f"no record of source {name!r} can be read",
        expected="at least one",
        found=f"{books.quarantined} quarantined, for example " + "; ".join(examples[:3]),
        remedy="Mend what is named, or leave the source out; with data.limits.max_quarantined 1 all goes "
        "through, and `gristmill inspect RECIPE --quarantined --set ...` shows what was lost.",
    )


def _check_broken_files(config: DataConfig, broken: int, files: int, examples: list[str]) -> None:
    allowed = max(1.0, config.limits.max_broken_files * files)
    if broken > allowed:
        raise DataError(
            "too many files break off before their end",
            expected=f"at most {allowed:.0f} of {files} (data.limits.max_broken_files "
            f"{config.limits.max_broken_files:g}, and always 1)",
            found=f"{broken}, for example " + "; ".join(examples[:3]),
            remedy="Fetch them again, or raise data.limits.max_broken_files if the loss is acceptable.",
        )


def nothing_left(books: Books, examples: Sequence[str] = (), notes: Sequence[str] = ()) -> DataError:
    """The error that no document is left, and why; ``notes`` are about languages that the rules drop."""
    lost = [f"{count} dropped by {rule}" for rule, count in books.dropped.most_common()]
    if books.quarantined:
        shown = f", for example {examples[0]}" if examples else ""
        lost.append(f"{books.quarantined} quarantined{shown}")
    return DataError(
        "no document is left",
        expected="at least one that passes data.quality",
        found=f"{books.documents_in} read" + "".join(f", {text}" for text in lost),
        remedy="Loosen the rules named, or choose another data.quality.profile; with `none` all stay, and "
        "`gristmill inspect` shows them." + "".join(f" Note: {note}" for note in notes)
        if books.dropped
        else "Mend what is named, or raise the limit that is."
        if books.quarantined
        else "Look at the sources: their files are empty.",
    )
