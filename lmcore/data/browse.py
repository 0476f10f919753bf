"""Look at single documents: what was decided about them, why, their text, and what was set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmcore.data.quality import Rule
from lmcore.data.repeated_lines import TAKEN_OUT, left_of


@dataclass(frozen=True)
class Wanted:
    """Which documents to show; what is empty does not matter.

    Attributes:
        decision: train, validation, test, dropped, contaminated, duplicate or near_duplicate.
        rule: Name of the rule that dropped it, or its beginning.
        source: Name of its source.
        doc_id: Its name, or a part of it.
    """

    decision: str = ""
    rule: str = ""
    source: str = ""
    doc_id: str = ""

    def among(self, table: pa.Table) -> pa.Array:
        """Rows of ``table`` that are wanted; bool."""
        chosen = pa.chunked_array([pa.array([True] * len(table), pa.bool_())])
        for name, value in (("decision", self.decision), ("source", self.source)):
            if value:
                chosen = _both(chosen, _call("equal", table[name], value))
        if self.rule:
            starts = _call("starts_with", table["rule"], options=pc.MatchSubstringOptions(self.rule))
            chosen = _both(chosen, starts.fill_null(False))
        if self.doc_id:
            holds = _call("match_substring", table["doc_id"], options=pc.MatchSubstringOptions(self.doc_id))
            chosen = _both(chosen, holds)
        return chosen.combine_chunks()


@dataclass(frozen=True)
class Seen:
    """A document, and what was decided about it.

    Attributes:
        doc_id: Its name.
        source: Name of its source.
        decision: What became of it.
        rule: The rule that dropped it; or empty.
        duplicate_of: The document that stayed in its place; or empty.
        text: As it was stored.
        signals: Its figures, by name.
    """

    doc_id: str
    source: str
    decision: str
    rule: str
    duplicate_of: str
    text: str
    signals: dict[str, float]

    def why(self, rules: list[Rule]) -> str:
        """The rule that dropped it with figure and limit, or what it is a duplicate of; may be empty."""
        for rule in rules:
            if rule.name == self.rule:
                sign = "below" if rule.below else "above"
                return (
                    f"{rule.name}: {rule.signal} {self.signals[rule.signal]:.4g} is {sign} {rule.limit:.4g}"
                )
        return f"like {self.duplicate_of}" if self.duplicate_of else self.rule


def documents(documents_dir: Path, splits_dir: Path, wanted: Wanted) -> Iterator[Seen]:
    """Yield the documents that are ``wanted``, in the order of the corpus; texts are read as one asks."""
    for path in sorted((splits_dir / "decisions").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            decisions = file.read()
        with pq.ParquetFile(documents_dir / "documents" / path.name) as file:
            table = decisions.append_column("source", file.read(["source"])["source"])
            chosen = np.flatnonzero(wanted.among(table))
            names = [f.name for f in file.schema_arrow if pa.types.is_floating(f.type)]
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                rows = chosen[(chosen >= start) & (chosen < end)]
                if len(rows):
                    content = file.read_row_group(group, ["text", *names])
                    yield from (_seen(table, content, names, int(row), int(row) - start) for row in rows)
                start = end


def count(documents_dir: Path, splits_dir: Path, wanted: Wanted) -> int:
    """How many documents are ``wanted``; no text is read."""
    number = 0
    for path in sorted((splits_dir / "decisions").glob("*.parquet")):
        sources = pq.read_table(documents_dir / "documents" / path.name, columns=["source"])["source"]
        number += wanted.among(pq.read_table(path).append_column("source", sources)).true_count
    return number


def tally(splits_dir: Path) -> Counter[tuple[str, str]]:
    """How many documents there are of each decision and rule; it is empty where no rule dropped them."""
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted((splits_dir / "decisions").glob("*.parquet")):
        counts = pq.read_table(path, columns=["decision", "rule"]).group_by(["decision", "rule"])
        for row in counts.aggregate([([], "count_all")]).to_pylist():
            found[row["decision"], row["rule"] or ""] += row["count_all"]
    return found


def _seen(table: pa.Table, content: pa.Table, names: list[str], row: int, place: int) -> Seen:
    decided = table.slice(row, 1).to_pylist()[0]
    return Seen(
        doc_id=decided["doc_id"],
        source=decided["source"],
        decision=decided["decision"],
        rule=decided["rule"] or "",
        duplicate_of=decided["duplicate_of"] or "",
        text=left_of(content["text"][place].as_py(), decided.get(TAKEN_OUT.name) or ()),
        signals={name: content[name][place].as_py() for name in names},
    )


def set_aside(documents_dir: Path, source: str = "") -> Iterator[dict[str, Any]]:
    """Yield the records of ``source`` (empty: of all) that could not be read.

    Each has source, path, record, byte_offset, reason, raw and num_bytes.
    """
    for path in sorted((documents_dir / "quarantine").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for row in file.read().to_pylist():
                if source in ("", row["source"]):
                    yield row


def count_set_aside(documents_dir: Path, source: str = "") -> int:
    """How many records of ``source`` (empty: of all) could not be read."""
    paths = list((documents_dir / "quarantine").glob("*.parquet"))
    if not source:
        return sum(pq.read_metadata(path).num_rows for path in paths)
    return sum(pq.read_table(path, columns=["source"])["source"].to_pylist().count(source) for path in paths)


def _call(name: str, *values: Any, options: Any = None) -> Any:
    return pc.call_function(name, list(values), options)


def _both(one: Any, other: Any) -> Any:
    return _call("and", one, other)
