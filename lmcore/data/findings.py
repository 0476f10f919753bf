"""What there is to tell people about prepared data, gathered from what its stages left on disk.

Shards are looked at one after another (``lmcore.data.tally``); what needs all names together, the clusters of
duplicates, is DuckDB's work under a memory cap. The result does not depend on how the corpus was cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.config import DataConfig
from lmcore.data.duplicates import LEAST_MEMORY_BYTES
from lmcore.data.splits import SPLITS, document_files
from lmcore.data.tally import Tally, read_places, row_groups
from lmcore.progress import Paced, Progress
from lmcore.store import Artifact

SAMPLES_OF_A_RULE = 5
LARGEST_CLUSTERS = 10
RECORDS_SET_ASIDE = 5
EXCERPT_CHARS = 300
EXCERPT_BYTES = 160


@dataclass(frozen=True)
class RuleFound:
    """A threshold, how many documents break it, and how many of those no earlier rule dropped."""

    name: str
    limit: float
    below: bool
    breaks: int
    drops: int


@dataclass(frozen=True)
class Figure:
    """A stored figure: how many documents lie between two of ``edges``, and the rules that look at it."""

    name: str
    edges: list[float]
    counts: list[int]
    rules: list[RuleFound]


@dataclass(frozen=True)
class Lengths:
    """Documents by their characters, and by what became of them: kept, dropped or duplicate."""

    edges: list[float]
    counts: dict[str, list[int]]


@dataclass(frozen=True)
class Sample:
    """A document that a rule dropped: how it begins, and the figure that the rule looked at."""

    doc_id: str
    source: str
    text: str
    num_chars: int
    figure: float | str | None


@dataclass(frozen=True)
class Cluster:
    """A document that stayed, how it begins, how many are much like it, and how many equal to any of them."""

    doc_id: str
    source: str
    text: str
    num_chars: int
    equal: int
    alike: int


@dataclass(frozen=True)
class SourceTokens:
    """What a source gave to a split; the token that ends each document is counted."""

    source: str
    split: str
    documents: int
    tokens: int
    chars: int


@dataclass(frozen=True)
class SetAside:
    """A record that could not be read: where it is, why, and its first bytes."""

    source: str
    path: str
    record: int
    byte_offset: int | None
    reason: str
    raw: str


@dataclass(frozen=True)
class Findings:
    """All there is to tell.

    Attributes:
        books: Of the corpus.
        sources: Books of each source.
        figures: Each stored figure.
        lengths: Characters of documents.
        languages: Documents kept and not kept in each language; empty where none was looked for.
        samples: Some of what each rule dropped.
        num_clusters: Documents that others are equal to, or much like.
        clusters: The largest.
        tokens: By source and split.
        split_bytes: UTF-8 bytes of the text of each split.
        masked: How often what was masked, by kind.
        without_page: Records of web archives that hold no page, by what they hold.
        set_aside: Some of what could not be read.
    """

    books: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    figures: list[Figure]
    lengths: Lengths
    languages: dict[str, list[int]]
    samples: dict[str, list[Sample]]
    num_clusters: int
    clusters: list[Cluster]
    tokens: list[SourceTokens]
    split_bytes: dict[str, int]
    masked: dict[str, int]
    without_page: dict[str, int]
    set_aside: list[SetAside]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return dataclasses.asdict(self)


def gather(
    config: DataConfig,
    documents: Artifact,
    splits: Artifact,
    tokens: Artifact,
    work: Path,
    progress: Progress,
) -> Findings:
    """Look at the documents, the decisions about them, and their tokens.

    Args:
        config: Whose rules decided.
        documents: What the documents stage made.
        splits: What the splits stage made.
        tokens: What the tokens stage made.
        work: Folder for what memory does not hold.
        progress: Told of shards.
    """
    paths = document_files(documents.path)
    asked = _Questions(work, config.memory_bytes)
    clusters, num_clusters = asked.clusters(splits.path / "decisions")
    tally = Tally(config, paths, [name for name, _, _ in clusters], SAMPLES_OF_A_RULE)
    paced = Paced(progress, "look at documents", len(paths), "shards")
    for path in paths:
        for group, table in row_groups(path, splits.path / "decisions" / path.name, tally.columns):
            tally.add(path, group, table)
        paced.advance(1)
    paced.finish()
    shown = [*tally.originals.values(), *(place for places in tally.samples.values() for place in places)]
    seen = read_places(shown, tally.columns, EXCERPT_CHARS)
    return Findings(
        books=dict(splits.summary["books"]),
        sources=dict(splits.summary["sources"]),
        figures=[_figure(tally, name) for name in tally.edges],
        lengths=Lengths(tally.edges["chars"].tolist(), {n: c.tolist() for n, c in tally.lengths.items()}),
        languages=dict(sorted(tally.languages.items(), key=lambda item: (-sum(item[1]), item[0]))),
        samples={
            rule: [_sample(tally.figure_of(rule), seen[place]) for place in places]
            for rule, places in sorted(tally.samples.items())
        },
        num_clusters=num_clusters,
        clusters=[
            _cluster(seen[tally.originals[name]], equal, alike)
            for name, equal, alike in clusters
            if name in tally.originals
        ],
        tokens=[
            SourceTokens(source, split, number, total, tally.chars[source, split])
            for split in SPLITS
            for source, number, total in asked.tokens(tokens.path / split)
        ],
        split_bytes={split: tokens.summary.get(f"{split}_bytes", 0) for split in SPLITS},
        masked=dict(documents.summary["masked"]),
        without_page=dict(documents.summary["books"].get("without_page", {})),
        set_aside=asked.set_aside(documents.path / "quarantine"),
    )


def _figure(tally: Tally, name: str) -> Figure:
    rules = [
        RuleFound(rule.name, rule.limit, rule.below, tally.breaks[rule.name], tally.drops[rule.name])
        for rule in tally.rules
        if rule.signal == name
    ]
    return Figure(name, tally.edges[name].tolist(), tally.counts[name].tolist(), rules)


def _sample(figure: str, row: Mapping[str, Any]) -> Sample:
    return Sample(row["doc_id"], row["source"], row["text"], int(row["chars"]), row.get(figure))


def _cluster(row: Mapping[str, Any], equal: int, alike: int) -> Cluster:
    return Cluster(row["doc_id"], row["source"], row["text"], int(row["chars"]), equal, alike)


# --- what needs all shards together ----------------------------------------------------------------

_CLUSTERS = """
    SELECT duplicate_of AS name,
        count(*) FILTER (decision = 'duplicate'), count(*) FILTER (decision = 'near_duplicate'),
        count(*) OVER () AS clusters
    FROM read_parquet($paths) WHERE duplicate_of IS NOT NULL
    GROUP BY name ORDER BY count(*) DESC, name LIMIT $most
"""
_TOKENS = """
    SELECT source, count(*), sum(n_tokens)::BIGINT FROM read_parquet($paths) GROUP BY source ORDER BY source
"""
_SET_ASIDE = """
    SELECT source, path, record, byte_offset, reason, raw[1:$bytes] FROM read_parquet($paths)
    ORDER BY md5(source || ':' || path || '#' || record), record LIMIT $most
"""


class _Questions:
    """Questions to DuckDB about Parquet files.

    Args:
        work: Folder that it spills to.
        memory_bytes: What it may hold in memory.
    """

    def __init__(self, work: Path, memory_bytes: int) -> None:
        self._settings: dict[str, Any] = {
            "memory_limit": f"{max(memory_bytes, LEAST_MEMORY_BYTES)}B",
            "temp_directory": str(work / "spilled"),
            "threads": 1,
            "preserve_insertion_order": False,
        }

    def clusters(self, decisions: Path) -> tuple[list[tuple[str, int, int]], int]:
        """Name of the document that stayed, equal and similar ones, of the largest; and how many in all."""
        found = self._ask(_CLUSTERS, decisions, most=LARGEST_CLUSTERS)
        return [row[:3] for row in found], found[0][3] if found else 0

    def tokens(self, split: Path) -> list[tuple[str, int, int]]:
        """Source, documents and tokens."""
        return self._ask(_TOKENS, split)

    def set_aside(self, quarantine: Path) -> list[SetAside]:
        """A few records, whichever their names' hashes choose."""
        found = self._ask(_SET_ASIDE, quarantine, most=RECORDS_SET_ASIDE, bytes=EXCERPT_BYTES)
        return [
            SetAside(source, path, record, offset, reason, raw.decode("utf-8", "backslashreplace"))
            for source, path, record, offset, reason, raw in found
        ]

    def _ask(self, query: str, folder: Path, **values: int) -> list[Any]:
        paths = [str(path) for path in sorted(folder.glob("*.parquet"))]
        if not paths:
            return []
        import duckdb  # takes 0.1 s

        with duckdb.connect(config=self._settings) as database:
            return database.execute(query, {"paths": paths, **values}).fetchall()
