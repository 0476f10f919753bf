"""The splits stage: which documents are good enough, which are kept once, and which are held out.

Layout: ``decisions/00000.parquet`` beside each shard of the documents stage, row for row, with ``doc_id``,
``content_hash``, ``decision`` (train, validation, dropped, duplicate or near_duplicate), the ``rule`` that
dropped it and the document that it is a ``duplicate_of``. The text stays where it is: another threshold or
seed costs seconds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmcore.config import DataConfig
from lmcore.data.books import Books
from lmcore.data.dedup import HASH_BYTES, first_occurrences, hold_out, order_by_hash
from lmcore.data.documents import band_names, nothing_left
from lmcore.data.language import LANGUAGE_COLUMNS, broken_language_rules
from lmcore.data.quality import first_broken_rules, rules_of
from lmcore.errors import DataError
from lmcore.progress import Paced, Progress

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

DECISIONS_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(HASH_BYTES), nullable=False),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("rule", pa.string()),
        pa.field("duplicate_of", pa.string()),
    ]
)
# Text is gathered in the order of its hash, this much at a time: the memory that one pass takes.
PASS_TEXT_BYTES = 1_000_000_000

_ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class Document:
    """A document of a split.

    Attributes:
        doc_id: Its name.
        source: Name of its source.
        text: Normalised.
    """

    doc_id: str
    source: str
    text: str


def build_splits(config: DataConfig, documents_dir: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Drop by the rules, then documents like an earlier one of any source; hold out by content hash.

    Returns:
        The books in all, by source and by shard, the funnel, and the digest of each split's content.

    Raises:
        DataError: fewer than two distinct documents are left, or the books do not balance.
    """
    shards = _shards(documents_dir)
    paced = Paced(progress, "split documents", len(shards), "shards")
    hashes, ids, sizes = _read_hashes(shards)
    rules = pa.concat_arrays([_broken_rules(config, shard) for shard in shards])
    _check_names(ids, first_occurrences(hashes))
    dropped = rules.is_valid().to_numpy(zero_copy_only=False)
    decisions, firsts, remedy = _decide(config, shards, hashes, dropped)
    intake = json.loads((documents_dir / "books.json").read_text(encoding="utf-8"))
    if not np.isin(decisions, SPLITS).any():
        whole = Books.total(Books.from_json(entry["books"]) for entry in intake)
        whole.dropped = _count(rules)
        raise nothing_left(whole)
    (out / "decisions").mkdir()
    books: list[tuple[str, Books]] = []
    start = 0
    for shard, size, entry in zip(shards, sizes, intake, strict=True):
        rows = slice(start, start + size)
        _write_decisions(out / "decisions" / shard.name, rows, ids, hashes, decisions, rules, firsts)
        books.append(
            (entry["source"], _shard_books(entry["books"], size, decisions[rows], rules.slice(start, size)))
        )
        books[-1][1].check(f"shard {shard.stem} ({entry['source']})")
        start += size
        paced.advance(1)
    paced.finish()
    return _summary(config, books, hashes, decisions, remedy)


def _broken_rules(config: DataConfig, shard: Path) -> pa.Array:
    """Name of the rule that drops each document of a shard, or null; by the stored figures alone."""
    names = sorted({rule.signal for rule in rules_of(config.quality)})
    table = _read(shard, [*names, "record"])
    signals = {name: table[name].to_numpy() for name in names}
    rules = first_broken_rules(config.quality, signals, len(table))
    if config.language.enabled:
        others = broken_language_rules(_read(shard, [*LANGUAGE_COLUMNS]), config.language)
        rules = pc.call_function("coalesce", [rules, others])
    return rules


def _decide(
    config: DataConfig, shards: list[Path], hashes: np.ndarray, dropped: np.ndarray
) -> tuple[np.ndarray, np.ndarray, str]:
    """Decision about each document, the first of its kind, and what was done about an empty split."""
    decisions = np.full(len(hashes), "dropped", object)
    firsts = np.arange(len(hashes))
    good = np.flatnonzero(~dropped)
    if not len(good):
        return decisions, firsts, ""
    firsts[good] = good[first_occurrences(hashes[good])]
    is_copy = firsts[good] != good
    distinct = good[~is_copy]
    alike = _first_alike(config, shards, distinct)
    kept = distinct[alike == distinct]
    held, remedy = hold_out(hashes[kept], config.validation_fraction, config.split_seed)
    decisions[kept] = np.where(held, "validation", "train")
    decisions[distinct[alike != distinct]] = "near_duplicate"
    firsts[distinct] = alike
    copies = good[is_copy]
    decisions[copies] = "duplicate" if config.exact_dedup else decisions[firsts[copies]]
    return decisions, firsts, remedy


def _first_alike(config: DataConfig, shards: list[Path], rows: np.ndarray) -> np.ndarray:
    """For each document of ``rows`` (ascending) the first one that it is like; int64."""
    if not config.near_dedup.enabled:
        return rows
    from lmcore.data.minhash import clusters  # the compiler takes a third of a second to import

    bands = (
        np.concatenate([_read(shard, [name])[name].to_numpy() for shard in shards])[rows]
        for name in band_names(config)
    )
    return rows[clusters(bands, len(rows))]


def _count(rules: pa.Array) -> Counter[str]:
    counted = rules.drop_null().value_counts().to_pylist()
    return Counter({entry["values"]: entry["counts"] for entry in counted})


def _shards(documents_dir: Path) -> list[Path]:
    return sorted((documents_dir / "documents").glob("*.parquet"))


def _read_hashes(shards: list[Path]) -> tuple[np.ndarray, pa.Array, list[int]]:
    """Content hashes (uint8 [n, 16]) and names of all documents, and how many each shard holds."""
    tables = [_read(shard, ["doc_id", "content_hash"]) for shard in shards]
    whole = pa.concat_tables(tables).combine_chunks()
    return _hashes(whole["content_hash"]), whole["doc_id"], [len(table) for table in tables]


def _check_names(ids: Any, firsts: np.ndarray) -> None:
    """Check that no two documents of different text have the same name."""
    names = ids.combine_chunks().dictionary_encode()
    names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
    numbers = names.indices.to_numpy().astype(np.int64)
    pairs, places = np.unique(numbers * len(firsts) + firsts, return_index=True)
    if len(pairs) == len(names.dictionary):
        return
    texts_named = np.bincount(numbers[places], minlength=len(names.dictionary))
    example = names.dictionary[int(np.argmax(texts_named > 1))]
    raise DataError(
        "documents of different text have the same name",
        expected="a name for each",
        found=f"{int((texts_named > 1).sum())} names of several, first {example}",
        remedy="Set id_field of that source to a field that differs, or leave it empty: then file and "
        "position are the name.",
    )


def _read(path: Path, columns: list[str]) -> pa.Table:
    # pq.read_table would import pyarrow.dataset, which takes 0.7 s.
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=columns)


def _hashes(column: pa.ChunkedArray) -> np.ndarray:
    parts = [np.frombuffer(b"".join(chunk.to_pylist()), np.uint8) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, HASH_BYTES)


def _write_decisions(
    path: Path,
    rows: slice,
    ids: Any,
    hashes: np.ndarray,
    decisions: np.ndarray,
    rules: pa.Array,
    firsts: np.ndarray,
) -> None:
    duplicate = np.isin(decisions[rows], ("duplicate", "near_duplicate"))
    originals = ids.take(pa.array(firsts[rows])).combine_chunks()
    columns = [
        ids.slice(rows.start, rows.stop - rows.start).combine_chunks(),
        pa.array([row.tobytes() for row in hashes[rows]], pa.binary(HASH_BYTES)),
        pa.array(decisions[rows].tolist(), pa.string()),
        rules.slice(rows.start, rows.stop - rows.start),
        pa.array(originals.to_pylist(), pa.string(), mask=~duplicate),
    ]
    table = pa.Table.from_arrays(columns, schema=DECISIONS_SCHEMA)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def _shard_books(intake: dict[str, Any], num_rows: int, decisions: np.ndarray, rules: pa.Array) -> Books:
    books = Books.from_json(intake)
    # What lies on the disk decides, not what the shard said it wrote.
    books.passed = num_rows
    books.dropped = _count(rules)
    books.duplicates = int((decisions == "duplicate").sum())
    books.near_duplicates = int((decisions == "near_duplicate").sum())
    books.train = int((decisions == "train").sum())
    books.validation = int((decisions == "validation").sum())
    return books


def _summary(
    config: DataConfig,
    books: list[tuple[str, Books]],
    hashes: np.ndarray,
    decisions: np.ndarray,
    remedy: str,
) -> dict[str, Any]:
    whole = Books.total(part for _, part in books)
    whole.check("the corpus")
    sources = {
        source.name: Books.total(part for name, part in books if name == source.name)
        for source in config.sources
    }
    for name, part in sources.items():
        part.check(f"source {name}")
    digests = {}
    for split in SPLITS:
        chosen = hashes[decisions == split]
        digests[f"{split}_digest"] = hashlib.sha256(chosen[order_by_hash(chosen)].tobytes()).hexdigest()
    return {
        "documents": whole.kept,
        "train_documents": whole.train,
        "validation_documents": whole.validation,
        "duplicates": whole.duplicates,
        "near_duplicates": whole.near_duplicates,
        **digests,
        "empty_split_remedy": remedy,
        "funnel": [[label, count] for label, count in whole.funnel()],
        "books": whole.to_json(),
        "sources": {name: part.to_json() for name, part in sources.items()},
        "shards": [{"source": source, "books": part.to_json()} for source, part in books],
    }


# --- reading a split -------------------------------------------------------------------------------


def read_split(documents_dir: Path, splits_dir: Path, split: Split) -> Iterator[Document]:
    """Yield the documents of ``split`` by content hash, so that files of one source are mixed.

    Each pass over the shards gathers a range of hashes that holds about ``PASS_TEXT_BYTES`` of its text.

    Raises:
        DataError: the decisions are of other documents.
    """
    shards = _shards(documents_dir)
    text_bytes = sum(entry["bytes"] for entry in json.loads((documents_dir / "books.json").read_text()))
    share = split_size(splits_dir, split) / max(1, sum(pq.read_metadata(s).num_rows for s in shards))
    passes = max(1, math.ceil(text_bytes * share / PASS_TEXT_BYTES))
    edges = [round(i * 2**16 / passes) for i in range(passes + 1)]
    for low, high in itertools.pairwise(edges):
        table = pa.concat_tables([_gather(shard, splits_dir, split, low, high) for shard in shards])
        order = order_by_hash(_hashes(table["content_hash"]))
        # One chunk, so that taking rows by number needs no search; batches, so that there is no second copy.
        table = table.select(["doc_id", "source", "text"]).combine_chunks()
        for start in range(0, len(order), _ROWS_AT_A_TIME):
            batch = table.take(pa.array(order[start : start + _ROWS_AT_A_TIME]))
            columns = (column.to_pylist() for column in batch.columns)
            for doc_id, source, text in zip(*columns, strict=True):
                yield Document(doc_id, source, text)


def split_size(splits_dir: Path, split: Split) -> int:
    """Documents of ``split``."""
    decisions = (
        _read(path, ["decision"])["decision"] for path in sorted((splits_dir / "decisions").glob("*.parquet"))
    )
    return sum(int((column.to_numpy() == split).sum()) for column in decisions)


def _gather(shard: Path, splits_dir: Path, split: Split, low: int, high: int) -> pa.Table:
    """Rows of a shard that belong to ``split`` and whose hash begins with 16 bits in [low, high)."""
    decided = _read(splits_dir / "decisions" / shard.name, ["content_hash", "decision"])
    hashes = _hashes(decided["content_hash"])
    leading = hashes[:, 0].astype(np.int64) * 256 + hashes[:, 1]
    chosen = (leading >= low) & (leading < high) & (decided["decision"].to_numpy() == split)
    parts, start = [], 0
    with pq.ParquetFile(shard, page_checksum_verification=True) as file:
        if file.metadata.num_rows != len(chosen):
            raise _other_documents(shard, f"{file.metadata.num_rows} rows", str(len(chosen)))
        for group in range(file.num_row_groups):
            rows = chosen[start : (start := start + file.metadata.row_group(group).num_rows)]
            if rows.any():
                table = file.read_row_group(group, columns=["doc_id", "source", "text", "content_hash"])
                if not np.array_equal(_hashes(table["content_hash"]), hashes[start - len(rows) : start]):
                    raise _other_documents(shard, "the same content hashes", "others")
                parts.append(table.filter(pa.array(rows)))
        schema = pa.schema([file.schema_arrow.field(n) for n in ("doc_id", "source", "text", "content_hash")])
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _other_documents(shard: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"decisions {shard.name} are of other documents",
        expected=expected,
        found=found,
        remedy="Run the splits stage again.",
    )
