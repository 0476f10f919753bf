"""Counts over documents and what was decided about them, a row group at a time.

Memory holds the figures of one row group, the counts, and where the few documents are that will be shown.
Those are the ones with the smallest content hashes, so they do not depend on how the corpus was cut.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmcore.config import DataConfig
from lmcore.data.arrow import to_numbers
from lmcore.data.dedup import order_by_hash
from lmcore.data.histogram import count, edges_of
from lmcore.data.language import LANGUAGE_COLUMNS, LANGUAGE_RULES
from lmcore.data.quality import Rule, decision_rules, script_column, scripts_in, stored_signals
from lmcore.data.splits import hashes_of

OUTCOMES = ("kept", "dropped", "duplicate")
_OUTCOME = {"dropped": 1, "contaminated": 1, "duplicate": 2, "near_duplicate": 2}
_LANGUAGE, _SCORE = LANGUAGE_COLUMNS
_MIN_SCORE = LANGUAGE_RULES[1]


class Place(NamedTuple):
    """Where a document is: file, row group, and row of that."""

    path: Path
    group: int
    row: int


class Tally:
    """What is counted.

    Args:
        config: Whose rules decided.
        paths: Files of documents.
        originals: Names of documents that others are like; where they are is noted.
        num_samples: Documents that are noted of each rule that dropped them.

    Attributes:
        rules: Those that look at a stored figure.
        edges: Of the bars of each figure.
        counts: Documents in each bar.
        breaks: Documents that break each rule, whatever the rules before it said.
        drops: Documents that each rule dropped.
        lengths: Documents in each bar of ``chars``, by what became of them.
        languages: Documents kept and not kept, by language.
        chars: Characters, by source and split.
        samples: Where the documents are that each rule dropped.
        originals: Where the documents are that others are like, by name.
    """

    def __init__(
        self, config: DataConfig, paths: Iterable[Path], originals: Iterable[str], num_samples: int
    ) -> None:
        self._language = [_LANGUAGE] if config.language.enabled else []
        self._script = script_column(config)
        names = [*stored_signals(config), *(_SCORE for _ in self._language)]
        self.rules = decision_rules(config)
        if config.language.min_score:
            self.rules.append(Rule(_MIN_SCORE, _SCORE, config.language.min_score, below=True))
        largest = _largest(paths, names)
        self.edges = {
            name: edges_of(name, largest[name], [rule for rule in self.rules if rule.signal == name])
            for name in names
        }
        self.counts = {name: np.zeros(len(edges) - 1, np.int64) for name, edges in self.edges.items()}
        self.breaks: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self.lengths = {name: np.zeros_like(self.counts["chars"]) for name in OUTCOMES}
        self.languages: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.chars: Counter[tuple[str, str]] = Counter()
        self.samples: dict[str, list[Place]] = {}
        self.originals: dict[str, Place] = {}
        self._num_samples = num_samples
        self._hashes: dict[str, list[bytes]] = {}
        self._wanted = pa.array(sorted(originals), pa.string())

    @property
    def columns(self) -> list[str]:
        """Of the documents' files, what is looked at."""
        return ["doc_id", "source", "content_hash", *self.edges, *self._script, *self._language]

    def figure_of(self, rule: str) -> str:
        """Column that ``rule`` looks at."""
        return next((one.signal for one in self.rules if one.name == rule), _LANGUAGE)

    def add(self, path: Path, group: int, table: pa.Table) -> None:
        """Count the documents of a row group: ``columns``, and ``decision`` and ``rule`` beside them."""
        figures = {name: to_numbers(table[name]) for name in self.edges}
        for name, values in figures.items():
            self.counts[name] += count(self.edges[name], values)
        for rule in self.rules:
            self.breaks[rule.name] += int(rule.breaks(figures[rule.signal], scripts_in(table)).sum())
        decision, names = _codes(table["decision"])
        outcomes = np.array([_OUTCOME.get(name, 0) for name in names])[decision]
        for number, name in enumerate(OUTCOMES):
            self.lengths[name] += count(self.edges["chars"], figures["chars"][outcomes == number])
        self._count_chars(table, figures["chars"])
        if self._language:
            codes, languages = _codes(table[_LANGUAGE])
            many = np.zeros((len(languages), 2), np.int64)
            np.add.at(many, (codes, (outcomes != 0).astype(np.int64)), 1)
            for name, counts in zip(languages, many.tolist(), strict=True):
                self.languages[name] = [a + b for a, b in zip(self.languages[name], counts, strict=True)]
        self._note_samples(path, group, table)
        self._note_originals(path, group, table["doc_id"], outcomes == 0)

    def _count_chars(self, table: pa.Table, chars: np.ndarray) -> None:
        source, sources = _codes(table["source"])
        decision, decisions = _codes(table["decision"])
        pairs = source * len(decisions) + decision
        totals = np.bincount(pairs, chars, minlength=len(sources) * len(decisions)).astype(np.int64)
        for pair, total in zip(itertools.product(sources, decisions), totals.tolist(), strict=True):
            self.chars[pair] += total

    def _note_samples(self, path: Path, group: int, table: pa.Table) -> None:
        codes, rules = _codes(table["rule"])
        hashes = hashes_of(table["content_hash"]) if rules else np.empty(0)
        for code, rule in enumerate(rules):
            rows = np.flatnonzero(codes == code)
            self.drops[rule] += len(rows)
            found = dict(zip(self._hashes.get(rule, ()), self.samples.get(rule, ()), strict=True))
            for row in rows[order_by_hash(hashes[rows])].tolist():
                if hashes[row].tobytes() not in found:  # equal texts: the first of them
                    found[hashes[row].tobytes()] = Place(path, group, row)
                    if len(found) >= 2 * self._num_samples:
                        break
            self._hashes[rule] = sorted(found)[: self._num_samples]
            self.samples[rule] = [found[key] for key in self._hashes[rule]]

    def _note_originals(self, path: Path, group: int, names: pa.ChunkedArray, kept: np.ndarray) -> None:
        options = pc.SetLookupOptions(self._wanted)
        wanted = pc.call_function("is_in", [names], options).to_numpy() & kept
        for row in np.flatnonzero(wanted).tolist():
            self.originals.setdefault(names[row].as_py(), Place(path, group, row))


def row_groups(documents: Path, decisions: Path, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
    """Yield each row group's number, and its ``columns`` with ``decision`` and ``rule`` beside them."""
    with (
        pq.ParquetFile(decisions, read_dictionary=["decision", "rule"]) as file,
        pq.ParquetFile(documents) as texts,
    ):
        decided = file.read(["decision", "rule"])
        start = 0
        for group in range(texts.num_row_groups):
            table = texts.read_row_group(group, columns)
            part = decided.slice(start, len(table))
            for name in part.column_names:
                table = table.append_column(name, part[name])
            yield group, table
            start += len(table)


def read_places(places: Iterable[Place], columns: list[str], num_chars: int) -> dict[Place, dict[str, Any]]:
    """``columns`` and the first ``num_chars`` of the text of the document at each of ``places``."""
    groups: dict[tuple[Path, int], list[int]] = defaultdict(list)
    for path, group, row in places:
        groups[path, group].append(row)
    found = {}
    for (path, group), rows in sorted(groups.items()):
        with pq.ParquetFile(path) as file:
            taken = file.read_row_group(group, [*columns, "text"]).take(pa.array(rows))
        texts = pc.call_function("utf8_slice_codeunits", [taken["text"]], pc.SliceOptions(0, num_chars))
        documents = taken.drop_columns("text").append_column("text", texts).to_pylist()
        found |= zip((Place(path, group, row) for row in rows), documents, strict=True)
    return found


def _largest(paths: Iterable[Path], names: list[str]) -> Mapping[str, float]:
    """Largest value of each figure, by the statistics in the files."""
    largest = dict.fromkeys(names, 0.0)
    for path in paths:
        whole = pq.read_metadata(path)
        for group in (whole.row_group(i) for i in range(whole.num_row_groups)):
            for column in (group.column(i) for i in range(group.num_columns)):
                name, found = column.path_in_schema, column.statistics
                if name in largest and found is not None and found.has_min_max:
                    largest[name] = max(largest[name], found.max)
    return largest


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """For each row of ``column`` the number of its value, -1 for null, and the values; int64 [rows]."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    return to_numbers(encoded.indices.fill_null(-1)).astype(np.int64), encoded.dictionary.to_pylist()
