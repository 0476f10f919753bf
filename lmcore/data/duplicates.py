"""Find the documents that are copies of, or much like, one that came before.

Who shares a value (a content hash, a band of a signature) is found by sorting, if all documents fit into
the memory that may be used; and else by DuckDB, which goes to the disk when its share of it is used up. Only
pairs come back. Each worker has bands of its own. Documents that pairs connect form a cluster, of which the
first in the order of the corpus stays: the order of the sources, then of the files' names, then of their
records; with ``data.incremental`` what came earlier goes first, and a document that was kept once is never
dropped for one that came later.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.data.arrow import column, to_numbers
from lmcore.data.pool import Threads, Workers

LEAST_MEMORY_BYTES = 64_000_000
# Number, two halves of a hash, their order, and a copy of each in that order.
_SORTED_BYTES = 64
_GOOD = "good-*.parquet"
_COPIES = "copies.parquet"


@dataclass(frozen=True)
class Pairs:
    """Documents, each with an earlier one.

    Attributes:
        documents: Numbers in the corpus, ascending and distinct; int64 [n].
        firsts: Numbers of the earlier ones; int64 [n].
    """

    documents: np.ndarray
    firsts: np.ndarray

    def between(self, start: int, end: int) -> Pairs:
        """Those of documents [start, end)."""
        low, high = np.searchsorted(self.documents, [start, end])
        return Pairs(self.documents[low:high], self.firsts[low:high])

    def first_of(self, documents: np.ndarray) -> np.ndarray:
        """The earlier one of each of ``documents``, or -1."""
        if not len(self.documents):
            return np.full(len(documents), -1, np.int64)
        places = np.minimum(np.searchsorted(self.documents, documents), len(self.documents) - 1)
        return np.where(self.documents[places] == documents, self.firsts[places], -1)


@dataclass(frozen=True)
class Grouping:
    """Where the candidates lie, and what may be used to group them.

    Attributes:
        folder: Holds ``good-*.parquet`` with ``doc`` (int64), ``high`` and ``low`` (uint64: the content
            hash) and the bands (uint64; 0: none).
        memory_bytes: Of all workers together; beyond it, DuckDB writes to ``folder``.
        workers: Who groups.
    """

    folder: Path
    memory_bytes: int
    workers: Workers

    @property
    def files(self) -> list[Path]:
        """In the order of their documents."""
        return sorted(self.folder.glob(_GOOD))

    def fits(self) -> bool:
        """Whether the candidates can be sorted in memory; to start DuckDB takes longer than most corpora."""
        rows = sum(pq.read_metadata(path).num_rows for path in self.files)
        return rows * _SORTED_BYTES * self.workers.count <= self.memory_bytes


def find_copies(grouping: Grouping) -> Pairs:
    """Documents with the content hash of an earlier one."""
    count = grouping.workers.count
    if grouping.fits():
        documents, high, low = _columns(grouping.files, ("high", "low"))
        pairs = _pairs_of(documents, high, low)
        pairs = pairs[np.argsort(pairs[:, 0])]
        return Pairs(pairs[:, 0], pairs[:, 1])
    edges = [round(i * 2**64 / count) for i in range(count + 1)]
    calls = [
        (grouping.folder, low, high - 1, grouping.memory_bytes // count)
        for low, high in itertools.pairwise(edges)
    ]
    pairs = np.concatenate(list(grouping.workers.map(_copies_between, calls)))
    pairs = pairs[np.argsort(pairs[:, 0])]
    return Pairs(pairs[:, 0], pairs[:, 1])


def _copies_between(folder: Path, low: int, high: int, memory_bytes: int) -> np.ndarray:
    """Pairs (document, first of its copies) of content hashes whose upper half is in [low, high]."""
    wanted = """
        WITH ranged AS (SELECT doc, high, low FROM read_parquet($good) WHERE high BETWEEN $least AND $most),
        shared AS (SELECT high, low, min(doc) AS first FROM ranged GROUP BY high, low HAVING count(*) > 1)
        SELECT doc, first FROM ranged JOIN shared USING (high, low) WHERE doc <> first
    """
    return query(folder, [wanted], {"good": str(folder / _GOOD), "least": low, "most": high}, memory_bytes)


def find_alike(
    grouping: Grouping, bands: Sequence[str], copies: Pairs, generation_starts: Sequence[int]
) -> Pairs:
    """Documents, but for ``copies``, that share a band with an earlier one, or with one that does.

    Args:
        grouping: Where the candidates lie.
        bands: Names of their columns.
        copies: Left out.
        generation_starts: Number of the first document of each generation.
    """
    count = min(grouping.workers.count, len(bands))
    if grouping.fits():  # numpy sorts without the interpreter's lock
        columns = ((grouping.files, bands[i::count], copies.documents) for i in range(count))
        found = list(Threads(count).map(_sorted_pairs, columns))
    else:
        pq.write_table(pa.table({"doc": column(copies.documents)}), grouping.folder / _COPIES)
        calls = [(grouping.folder, bands[i::count], grouping.memory_bytes // count) for i in range(count)]
        found = list(grouping.workers.map(_pairs_in_bands, calls))
    pairs = np.unique(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=0)
    return _cluster(pairs, generation_starts)


def _pairs_in_bands(folder: Path, bands: Sequence[str], memory_bytes: int) -> np.ndarray:
    """Pairs (document, first of its bucket) of ``bands``, one band after another; int64 [n, 2]."""
    wanted = """
        WITH distinct_ones AS (
            SELECT doc, {band} AS hash FROM read_parquet($good)
            WHERE {band} <> 0 AND doc NOT IN (SELECT doc FROM read_parquet($copies))
        ), shared AS (
            SELECT hash, min(doc) AS first FROM distinct_ones GROUP BY hash HAVING count(*) > 1
        )
        SELECT doc, first FROM distinct_ones JOIN shared USING (hash) WHERE doc <> first
    """
    values = {"good": str(folder / _GOOD), "copies": str(folder / _COPIES)}
    return query(folder, [wanted.format(band=band) for band in bands], values, memory_bytes)


def _sorted_pairs(files: Sequence[Path], bands: Sequence[str], copies: np.ndarray) -> np.ndarray:
    """``_pairs_in_bands`` of ``bands``, without the documents ``copies`` (ascending); int64 [n, 2]."""
    found = []
    for band in bands:
        documents, hashes = _columns(files, (band,))
        wanted = (hashes != 0) & ~np.isin(documents, copies, assume_unique=True)
        found.append(_pairs_of(documents[wanted], hashes[wanted]))
    return np.concatenate(found)


def _pairs_of(documents: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Those of ``documents`` (ascending; int64 [n]) whose ``values`` an earlier one has; and the first such.

    Args:
        documents: Numbers in the corpus.
        values: [n] each.
    """
    # Most have a first value of their own: numpy finds that out many times as fast as it sorts the rest.
    order = np.argsort(values[0])
    shared = np.diff(values[0][order]) == 0
    rows = np.sort(order[np.r_[shared, False] | np.r_[False, shared]]) if len(order) else order
    documents, values = documents[rows], tuple(value[rows] for value in values)
    order = np.lexsort(values[::-1])
    is_new = np.ones(len(order), bool)
    is_new[1:] = np.any([np.diff(value[order]) != 0 for value in values], axis=0)
    first = np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    pairs = np.stack([documents[order], documents[order[first]]], axis=1)
    return pairs[~is_new]


def _columns(files: Sequence[Path], names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """``doc``, ascending, and ``names`` of all ``files``."""
    tables = []
    for path in files:
        with pq.ParquetFile(path) as file:
            tables.append(file.read(["doc", *names]))
    whole = pa.concat_tables(tables)
    columns = [to_numbers(whole[name]) for name in ("doc", *names)]
    if (np.diff(columns[0]) < 0).any():
        order = np.argsort(columns[0])
        columns = [values[order] for values in columns]
    return tuple(columns)


def _cluster(pairs: np.ndarray, generation_starts: Sequence[int]) -> Pairs:
    """Follow ``pairs`` (document, earlier one; int64 [n, 2]) to the first of each cluster."""
    from lmcore.data.minhash import unite  # the compiler takes a third of a second to import

    members = np.unique(pairs)
    links = np.searchsorted(members, pairs)
    first = np.arange(len(members))
    firsts = first.copy()
    ends = [*generation_starts[1:], np.iinfo(np.int64).max]
    for start, end in zip(generation_starts, ends, strict=True):
        # What came later connects what came earlier, but no longer drops it.
        unite(links[(pairs[:, 0] >= start) & (pairs[:, 0] < end)], first)
        new = (members >= start) & (members < end)
        firsts[new] = first[new]
    lost = firsts != np.arange(len(members))
    return Pairs(members[lost], members[firsts[lost]])


def query(
    folder: Path, queries: Sequence[str], values: Mapping[str, str | int], memory_bytes: int
) -> np.ndarray:
    """The columns that each of ``queries`` finds, integers all; int64 [n, columns]."""
    import duckdb  # takes 0.1 s

    settings: dict[str, Any] = {
        "memory_limit": f"{max(memory_bytes, LEAST_MEMORY_BYTES)}B",
        "temp_directory": str(folder / "spilled"),
        "threads": 1,
        "preserve_insertion_order": False,
    }
    with duckdb.connect(config=settings) as database:
        found = [database.execute(query, values).fetchnumpy() for query in queries]
    pairs = [np.stack([np.ma.getdata(c).astype(np.int64) for c in one.values()], axis=1) for one in found]
    return np.concatenate(pairs)
