"""The splits stage: which documents are good enough, which are kept once, and which are held out.

Layout: ``decisions/00000.parquet`` beside each shard of the documents stage, row for row, with ``doc_id``,
``content_hash``, ``decision``, the ``rule`` that dropped it and the document that it is a ``duplicate_of``;
with ``data.repeated_lines`` also what is ``taken_out`` of its text (``lmcore.data.repeated_lines``).
The text stays where it is: another threshold or seed costs seconds.

It takes three steps. Each shard is judged by its stored figures, alone; duplicates are found among what is
good (``lmcore.data.duplicates``); each shard's decisions are written, alone. Memory holds the documents of
the shards that are worked on and the pairs of duplicates, not the corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.config import DataConfig
from lmcore.data.arrow import bytes_array, column, joined, places, string_column, to_numbers, views_of
from lmcore.data.books import Books
from lmcore.data.dedup import HASH_BYTES, draws, halves, order_by_hash
from lmcore.data.documents import band_names, nothing_left
from lmcore.data.duplicates import Grouping, Pairs, find_alike, find_copies
from lmcore.data.language import LANGUAGE_COLUMNS, LANGUAGE_RULES, broken_language_rules
from lmcore.data.pool import Threads, Workers
from lmcore.data.profile_notes import Counts, count_languages, language_column, language_notes
from lmcore.data.quality import CONTAMINATED, broken_rules, decision_rules, script_column
from lmcore.data.repeated_lines import (
    NOTHING_LEFT,
    TAKEN_OUT,
    cuts_of,
    find_repeated,
    note_units,
    take_out,
)
from lmcore.errors import DataError
from lmcore.progress import Paced, Progress
from lmcore.store import sha256_file, sha256_json

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DECISIONS = (*SPLITS, "dropped", "contaminated", "duplicate", "near_duplicate")
_TRAIN, _VALIDATION, _TEST, _DROPPED, _CONTAMINATED, _DUPLICATE, _NEAR = range(len(DECISIONS))

DECISIONS_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(HASH_BYTES), nullable=False),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("rule", pa.string()),
        pa.field("duplicate_of", pa.string()),
    ]
)
_DOCUMENT_COLUMNS = ("doc_id", "source", "text", "content_hash")
_ROWS_AT_A_TIME = 256
# Dictionaries of what hardly ever repeats take half of the time to write.
_WRITTEN: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["decision", "rule", "duplicate_of"],
    "write_page_checksum": True,
}


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


def build_splits(
    config: DataConfig, documents_dir: Path, out: Path, progress: Progress, workers: Workers | None = None
) -> dict[str, Any]:
    """Drop by the rules, then documents like an earlier one of any source; hold out by content hash.

    Args:
        config: Rules, near duplicates, shares and seed.
        documents_dir: What the documents stage made.
        out: Written to.
        progress: Told of shards.
        workers: Who works; None: a thread for each core.

    Returns:
        The books in all and by source, the funnel, the digest of each split's content, and notes about
        languages of which the profile drops most.

    Raises:
        DataError: fewer than two documents are left, or the books do not balance.
    """
    workers = workers or Threads(config.workers or 2)
    shards = _shards(documents_dir)
    work, decided = out / ".work", out / "decisions"
    work.mkdir()
    decided.mkdir()
    paced = Paced(progress, "split documents", 2 * len(shards), "shards")
    judged: list[_Judged] = []
    for shard, good in zip(shards, workers.map(_judge, ((config, s, work) for s in shards)), strict=True):
        if good.rows != shard.books.passed:
            shard.books.passed = good.rows
            shard.books.check(f"shard {shard.path.stem} ({shard.source})")
        judged.append(good)
        paced.advance(1)
    _check_names(config, shards)
    notes = language_notes(config, (one.languages for one in judged))
    if not any(one.good for one in judged):
        whole = Books.total(shard.books for shard in shards)
        raise nothing_left(_with_drops(whole, work, _rule_names(config)), notes=notes)
    lost = _find_lost(config, shards, work, workers)
    calls = [_call(config, shard, lost, work, decided) for shard in _with_ends(shards)]
    if config.repeated_lines.enabled:
        for _ in workers.map(_note, calls):
            pass
        find_repeated(Grouping(work, config.memory_bytes, workers), config.repeated_lines)
    results = []
    for result in workers.map(_decide, calls):
        results.append(result)
        paced.advance(1)
    remedy = _fill_empty_split(config, calls, results)
    paced.finish()
    shutil.rmtree(work)
    return _summary(config, shards, results, remedy, decided) | {"notes": notes}


@dataclass(frozen=True)
class _Shard:
    path: Path
    source: str
    generation: int
    start: int  # number of its first document in the corpus
    books: Books

    @property
    def end(self) -> int:
        return self.start + self.books.passed


def _shards(documents_dir: Path) -> list[_Shard]:
    entries = json.loads((documents_dir / "books.json").read_text(encoding="utf-8"))
    shards, start = [], 0
    for path, entry in zip(document_files(documents_dir), entries, strict=True):
        books = Books.from_json(entry["books"])
        shards.append(_Shard(path, entry["source"], entry["generation"], start, books))
        start += books.passed
    return shards


def document_files(documents_dir: Path) -> list[Path]:
    """The documents of each shard, in order."""
    return sorted((documents_dir / "documents").glob("*.parquet"))


def first_generation(documents_dir: Path) -> list[Path]:
    """The documents of the shards whose files were there first."""
    entries = json.loads((documents_dir / "books.json").read_text(encoding="utf-8"))
    files = zip(document_files(documents_dir), entries, strict=True)
    return [path for path, entry in files if not entry["generation"]]


# --- judging ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    rows: int
    good: int
    languages: Counts


def _judge(config: DataConfig, shard: _Shard, work: Path) -> _Judged:
    """Note which rule drops each document of a shard, and what duplicates are found by of the others."""
    rules, bands = decision_rules(config), band_names(config)
    languages = LANGUAGE_COLUMNS if config.language.enabled else ()
    told_by = {*script_column(config), *language_column(config), *languages}
    table = _read(shard.path, [*{rule.signal: 0 for rule in rules}, *bands, *told_by, "content_hash"])
    broken = broken_rules(rules, table)
    counted = count_languages(config, table, broken)
    if languages:
        names = broken_language_rules(table, config.language)
        broken = np.where(broken < 0, places(names, _rule_names(config)), broken)
    np.save(work / f"rules-{shard.path.stem}.npy", broken)
    good = np.flatnonzero(broken < 0)
    high, low = halves(hashes_of(table["content_hash"])[good])
    columns = {
        "doc": column(shard.start + good),
        "high": column(high),
        "low": column(low),
        **{name: column(to_numbers(table[name])[good]) for name in bands},
    }
    good_ones = work / f"good-{shard.path.stem}.parquet"
    pq.write_table(pa.table(columns), good_ones, compression="none", use_dictionary=False)
    return _Judged(len(table), len(good), counted)


def _rule_names(config: DataConfig) -> list[str]:
    return [*(rule.name for rule in decision_rules(config)), *LANGUAGE_RULES, NOTHING_LEFT]


def _with_drops(books: Books, work: Path, rules: list[str]) -> Books:
    counts = sum((Counter(np.load(path).tolist()) for path in work.glob("rules-*.npy")), Counter())
    books.dropped = Counter({rules[number]: count for number, count in counts.items()})
    return books


def _check_names(config: DataConfig, shards: list[_Shard]) -> None:
    """Check that no two documents of different text have the same name, where a source names them itself."""
    named = {source.name for source in config.sources if source.id_field}
    paths = [str(shard.path) for shard in shards if shard.source in named]
    if not paths:
        return
    import duckdb  # takes 0.1 s

    settings = {"memory_limit": f"{config.memory_bytes}B", "preserve_insertion_order": False}
    with duckdb.connect(config=settings) as database:
        found = database.execute(
            "SELECT doc_id FROM read_parquet($paths) GROUP BY doc_id "
            "HAVING min(content_hash) <> max(content_hash) ORDER BY doc_id",
            {"paths": paths},
        ).fetchall()
    if found:
        raise DataError(
            "documents of different text have the same name",
            expected="a name for each",
            found=f"{len(found)} names of several, first {found[0][0]}",
            remedy="Set id_field of that source to a field that differs, or leave it empty: then file and "
            "position are the name.",
        )


# --- duplicates ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lost:
    """Documents that an earlier one stands for, and the names of those."""

    copies: Pairs
    alike: Pairs
    names: dict[int, str]


def _find_lost(config: DataConfig, shards: list[_Shard], work: Path, workers: Workers) -> _Lost:
    grouping = Grouping(work, config.memory_bytes, workers)
    copies = find_copies(grouping)
    alike = Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
    if config.near_dedup.enabled:
        starts = [next(g).start for _, g in itertools.groupby(shards, key=lambda shard: shard.generation)]
        alike = find_alike(grouping, band_names(config), copies, starts)
    firsts = alike.first_of(copies.firsts)
    if config.exact_dedup:  # where the first is much like another, it is the other that stays
        copies = Pairs(copies.documents, np.where(firsts >= 0, firsts, copies.firsts))
    else:  # a copy goes where its first goes
        documents = np.concatenate([alike.documents, copies.documents[firsts >= 0]])
        order = np.argsort(documents)
        alike = Pairs(documents[order], np.concatenate([alike.firsts, firsts[firsts >= 0]])[order])
        copies = Pairs(copies.documents[:0], copies.firsts[:0])
    wanted = np.unique(np.concatenate([copies.firsts, alike.firsts]))
    names: dict[int, str] = {}
    for shard in shards:
        low, high = np.searchsorted(wanted, [shard.start, shard.end])
        if high > low:
            ids = _read(shard.path, ["doc_id"])["doc_id"].take(column(wanted[low:high] - shard.start))
            names |= zip(wanted[low:high].tolist(), ids.to_pylist(), strict=True)
    return _Lost(copies, alike, names)


# --- deciding --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """What is to be decided about one shard."""

    config: DataConfig
    shard: _Shard
    copies: Pairs
    alike: Pairs
    names: dict[int, str]
    work: Path
    out: Path
    end_of_generation: int
    forced: tuple[float, int] | None = None  # a draw, and the split that what drew it must go to


@dataclass(frozen=True)
class _Decided:
    books: Books
    digests: dict[Split, int]  # sums of content hashes: the same whatever the shards
    lowest: float  # smallest draw of what was kept
    highest: float


def _with_ends(shards: list[_Shard]) -> Iterator[tuple[_Shard, int]]:
    """Each shard, and the number behind the last document of its generation."""
    for _, generation in itertools.groupby(shards, key=lambda shard: shard.generation):
        members = list(generation)
        yield from ((shard, members[-1].end) for shard in members)


def _call(
    config: DataConfig, shard_and_end: tuple[_Shard, int], lost: _Lost, work: Path, out: Path
) -> tuple[_Call]:
    shard, end = shard_and_end
    copies, alike = (pairs.between(shard.start, shard.end) for pairs in (lost.copies, lost.alike))
    firsts = [*copies.firsts.tolist(), *alike.firsts.tolist()]
    names = {first: lost.names[first] for first in firsts}
    return (_Call(config, shard, copies, alike, names, work, out, end),)


def _outcomes(call: _Call, hashes: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each row the number of its decision, of the rule that dropped it and of its original; or -1."""
    config, shard, rules = call.config, call.shard, _rule_names(call.config)
    broken = np.load(call.work / f"rules-{shard.path.stem}.npy")
    decisions = np.full(len(hashes), _TRAIN, np.int8)
    decisions[drawn < config.validation_fraction] = _VALIDATION
    decisions[drawn >= 1.0 - config.test_fraction] = _TEST
    decisions[broken >= 0] = _DROPPED
    contaminated = np.array([rule == CONTAMINATED for rule in rules])
    decisions[(broken >= 0) & contaminated[broken]] = _CONTAMINATED
    originals = np.full(len(hashes), -1, np.int64)
    for pairs, decision in ((call.copies, _DUPLICATE), (call.alike, _NEAR)):
        places = pairs.documents - shard.start
        decisions[places] = decision
        originals[places] = pairs.firsts
    return decisions, broken, originals


def _note(call: _Call) -> None:
    """Note the lines of what would be kept of a shard."""
    hashes = hashes_of(_read(call.shard.path, ["content_hash"])["content_hash"])
    decisions, _, _ = _outcomes(call, hashes, draws(hashes, call.config.split_seed))
    kept = decisions <= _TEST
    note_units(call.config.repeated_lines, call.shard.path, kept, call.shard.start, call.work)


def _decide(call: _Call) -> _Decided:
    """Write the decisions about a shard."""
    config, shard = call.config, call.shard
    rules = _rule_names(config)
    table = _read(shard.path, ["doc_id", "content_hash"])
    hashes = hashes_of(table["content_hash"])
    drawn = draws(hashes, config.split_seed)
    decisions, broken, originals = _outcomes(call, hashes, drawn)
    cuts = None
    if config.repeated_lines.enabled:
        kept = decisions <= _TEST
        cuts, left = cuts_of(
            config.repeated_lines, shard.path, kept, shard.start, call.end_of_generation, call.work
        )
        broken[kept & ~left], decisions[kept & ~left] = rules.index(NOTHING_LEFT), _DROPPED
    if call.forced:
        decisions[(decisions <= _TEST) & (drawn == call.forced[0])] = call.forced[1]
    columns = [
        table["doc_id"].combine_chunks(),
        table["content_hash"].combine_chunks(),
        string_column(DECISIONS).take(column(decisions)),
        string_column(rules).take(column(broken, broken < 0)),
        _named(originals, call.names),
    ]
    decided = pa.Table.from_arrays(columns, schema=DECISIONS_SCHEMA)
    if cuts is not None:
        decided = decided.append_column(TAKEN_OUT, cuts)
        hashes = _hashes_of_rest(hashes, cuts)
    path = call.out / shard.path.name
    pq.write_table(decided, path, **_WRITTEN)
    books = _books(shard, decisions, broken, rules)
    kept = decisions <= _TEST
    return _Decided(
        books,
        {split: _sum(hashes[decisions == number]) for number, split in enumerate(SPLITS)},
        float(drawn[kept].min(initial=math.inf)),
        float(drawn[kept].max(initial=-math.inf)),
    )


def _named(numbers: np.ndarray, names: Mapping[int, str]) -> pa.Array:
    """The name of each of ``numbers`` (int64 [n], -1: none), as strings."""
    known = np.array(sorted(names), np.int64)
    texts = string_column([*(names[number] for number in known.tolist()), ""])
    return texts.take(column(np.searchsorted(known, numbers), numbers < 0))


def _hashes_of_rest(hashes: np.ndarray, cuts: pa.Array) -> np.ndarray:
    """``hashes`` (uint8 [n, 16]), other ones where something was taken out of the text."""
    found = hashes.copy()
    for row in np.flatnonzero(to_numbers(cuts.value_lengths())).tolist():
        about = hashes[row].tobytes() + repr(cuts[row].as_py()).encode()
        digest = hashlib.blake2b(about, digest_size=HASH_BYTES).digest()
        found[row] = np.frombuffer(digest, np.uint8)
    return found


def _books(shard: _Shard, decisions: np.ndarray, broken: np.ndarray, rules: list[str]) -> Books:
    counts = dict(zip(DECISIONS, np.bincount(decisions, minlength=len(DECISIONS)).tolist(), strict=True))
    dropped = np.bincount(broken[decisions == _DROPPED], minlength=len(rules)).tolist()
    books = dataclasses.replace(
        shard.books,
        dropped=Counter({rule: count for rule, count in zip(rules, dropped, strict=True) if count}),
        contaminated=counts["contaminated"],
        duplicates=counts["duplicate"],
        near_duplicates=counts["near_duplicate"],
        train=counts["train"],
        validation=counts["validation"],
        test=counts["test"],
    )
    books.check(f"shard {shard.path.stem} ({shard.source})")
    return books


def _fill_empty_split(config: DataConfig, calls: list[tuple[_Call]], results: list[_Decided]) -> str:
    """Give a document, with its copies, to training or to validation if none fell there; say which."""
    whole = Books.total(result.books for result in results)
    lowest, highest = min(one.lowest for one in results), max(one.highest for one in results)
    if whole.kept < 2 or lowest == highest:
        raise DataError(
            "the corpus cannot be split into training and validation",
            expected="at least 2 distinct documents",
            found=str(min(whole.kept, 1)),
            remedy="Add documents, or loosen data.quality.",
        )
    if whole.train and whole.validation:
        return ""
    if whole.train:
        forced = (lowest, _VALIDATION)
        remedy = "no document fell into validation, so the one with the smallest draw was held out"
    else:
        forced = (highest, _TRAIN)
        remedy = "no document was left to train on, so the one with the largest draw was given back"
    for number, result in enumerate(results):  # copies, where they are kept, lie in any shard
        if forced[0] in (result.lowest, result.highest):
            results[number] = _decide(dataclasses.replace(calls[number][0], forced=forced))
    return remedy


def _summary(
    config: DataConfig, shards: list[_Shard], results: list[_Decided], remedy: str, out: Path
) -> dict[str, Any]:
    whole = Books.total(result.books for result in results)
    whole.check("the corpus")
    sources = {}
    for source in config.sources:
        parts = zip(shards, results, strict=True)
        sources[source.name] = Books.total(r.books for s, r in parts if s.source == source.name)
        sources[source.name].check(f"source {source.name}")
    digests = {}
    for split in SPLITS:
        total = sum(result.digests[split] for result in results) % 2 ** (8 * HASH_BYTES)
        text = f"{getattr(whole, split)} {total}"
        digests[f"{split}_digest"] = hashlib.sha256(text.encode()).hexdigest()
    return {
        "documents": whole.kept,
        "train_documents": whole.train,
        "validation_documents": whole.validation,
        "test_documents": whole.test,
        "duplicates": whole.duplicates,
        "near_duplicates": whole.near_duplicates,
        "contaminated": whole.contaminated,
        **digests,
        "empty_split_remedy": remedy,
        "funnel": [[label, count] for label, count in whole.funnel()],
        "books": whole.to_json(),
        "sources": {name: part.to_json() for name, part in sources.items()},
        "shards": len(shards),
        "first_generation": sha256_json(
            [sha256_file(out / shard.path.name) for shard in shards if not shard.generation]
        ),
    }


# --- columns ---------------------------------------------------------------------------------------


def _read(path: Path, columns: list[str]) -> pa.Table:
    # pq.read_table would import pyarrow.dataset, which takes 0.7 s.
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=columns)


def _read_decisions(path: Path, columns: list[str]) -> pa.Table:
    """``columns`` of the decisions, and ``TAKEN_OUT`` if there is any."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        return file.read(columns=[*columns, *({TAKEN_OUT.name} & {*names})])


def _without_repeated(texts: pa.Array, decided: pa.Table, start: int) -> pa.Array:
    """``texts`` of the rows from ``start`` on, as ``data.repeated_lines`` leaves them."""
    if TAKEN_OUT.name not in decided.schema.names:
        return texts
    return take_out(texts, decided[TAKEN_OUT.name].combine_chunks().slice(start, len(texts)))


def hashes_of(column: pa.ChunkedArray) -> np.ndarray:
    """The content hashes of ``column``; uint8 [n, 16]."""
    parts = []
    for chunk in column.chunks:
        data = np.frombuffer(chunk.buffers()[1] or b"", np.uint8).reshape(-1, HASH_BYTES)
        parts.append(data[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate([np.empty((0, HASH_BYTES), np.uint8), *parts])


def _sum(hashes: np.ndarray) -> int:
    # Halves of 32 bits, so that 64 hold the sum of four billion of them.
    words = np.ascontiguousarray(hashes).view(">u4").reshape(-1, 4).astype(np.uint64).sum(axis=0)
    return sum(int(word) << (32 * (3 - place)) for place, word in enumerate(words))


# --- reading a split -------------------------------------------------------------------------------


def read_split(documents_dir: Path, splits_dir: Path, split: Split) -> Iterator[Document]:
    """Yield the documents of ``split``, shard after shard, in each by content hash.

    Raises:
        DataError: the decisions are of other documents.
    """
    for documents in document_files(documents_dir):
        table = split_of_shard(documents, splits_dir / "decisions" / documents.name, split)
        for start in range(0, len(table), _ROWS_AT_A_TIME):
            columns = (c.to_pylist() for c in table.slice(start, _ROWS_AT_A_TIME).columns[:3])
            for doc_id, source, text in zip(*columns, strict=True):
                yield Document(doc_id, source, text)


def split_of_shard(documents: Path, decisions: Path, split: Split, below: float = 1.0) -> pa.Table:
    """Documents of a shard that belong to ``split``; see ``splits_of_shard``."""
    return splits_of_shard(documents, decisions, (split,), below)[split]


def splits_of_shard(
    documents: Path, decisions: Path, splits: Sequence[Split] = SPLITS, below: float = 1.0
) -> dict[Split, pa.Table]:
    """Documents of a shard that belong to each of ``splits``, by content hash: its files are mixed.

    Args:
        documents: File of the documents stage.
        decisions: File of the splits stage.
        splits: Which.
        below: Only the documents whose content hash, as a number in [0, 1), is below this: a sample that
            does not depend on the shards.

    Returns:
        ``doc_id``, ``source``, ``text`` and ``content_hash``.

    Raises:
        DataError: the decisions are of other documents.
    """
    decided = _read_decisions(decisions, ["content_hash", "decision"])
    hashes = hashes_of(decided["content_hash"])
    decision = places(decided["decision"], splits)
    chosen = decision >= 0
    if below < 1.0:
        chosen &= halves(hashes)[0].astype(np.float64) * 2.0**-64 < below
    parts, start = [], 0
    kept: list[memoryview] = []  # texts are long: they are copied once, to where they end up
    with pq.ParquetFile(documents, page_checksum_verification=True) as file:
        if file.metadata.num_rows != len(chosen):
            raise _other_documents(documents, f"{file.metadata.num_rows} rows", str(len(chosen)))
        for group in range(file.num_row_groups):
            rows = chosen[start : (start := start + file.metadata.row_group(group).num_rows)]
            if rows.any():
                table = file.read_row_group(group, columns=list(_DOCUMENT_COLUMNS))
                if not np.array_equal(hashes_of(table["content_hash"]), hashes[start - len(rows) : start]):
                    raise _other_documents(documents, "the same content hashes", "others")
                texts = _without_repeated(joined(table["text"]), decided, start - len(rows))
                kept += itertools.compress(views_of(texts), rows.tolist())
                table = table.drop_columns(["text"])
                parts.append(table if rows.all() else table.filter(column(rows)))
        schema = pa.schema([file.schema_arrow.field(name) for name in _DOCUMENT_COLUMNS])
    place_of_text = schema.get_field_index("text")
    whole = pa.concat_tables(parts or [schema.remove(place_of_text).empty_table()]).combine_chunks()
    order = order_by_hash(hashes[chosen])
    of_row = decision[chosen][order]
    found: dict[Split, pa.Table] = {}
    for place, split in enumerate(splits):
        rows = order[of_row == place]
        texts = bytes_array([kept[row] for row in rows.tolist()])
        found[split] = whole.take(column(rows)).add_column(place_of_text, schema.field("text"), texts)
    return found


def _other_documents(shard: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"decisions {shard.name} are of other documents",
        expected=expected,
        found=found,
        remedy="Run the splits stage again.",
    )
