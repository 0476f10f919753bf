"""Lines and paragraphs that many documents share: taken out of all but the first (Wenzek et al. 2020, CCNet).

Menus, licences and footers are learned by heart when they stand in every page. A line (or a paragraph: lines
between blank ones) that is found in more than ``max_documents`` of the documents that would be kept stays in
the first of them, in the order of the corpus, and is taken out of the others with the line ends behind it.
White space around it does not count. With ``data.incremental`` a document loses what is found too often among
those of its own generation and of earlier ones, so what came earlier stays as it was.

The decisions hold where the text of each document is cut; text is read through ``take_out`` from then on.
Hashes are grouped by DuckDB, range by range, each range a piece of work; only those that are found too often
come back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.config import RepeatedLinesConfig
from lmcore.data.arrow import bytes_array, column, text_buffers
from lmcore.data.duplicates import Grouping, query

NOTHING_LEFT = "repeated_lines.nothing_left"
TAKEN_OUT = pa.field(
    "taken_out", pa.large_list(pa.field("element", pa.int64(), nullable=False)), nullable=False
)
_NOTED = "lines-*.parquet"
_REPEATED = "repeated.npy"


def note_units(
    config: RepeatedLinesConfig, documents: Path, kept: np.ndarray, first_document: int, folder: Path
) -> None:
    """Write which units the ``kept`` rows (bool [rows]) of a shard hold, for ``find_repeated``."""
    from lmcore.data.line_units import units_of  # loads compiled code

    schema = pa.schema([("hash", pa.uint64()), ("doc", pa.int64())])
    path = folder / _NOTED.replace("*", documents.stem)
    start = 0
    with pq.ParquetFile(documents) as file, pq.ParquetWriter(path, schema) as writer:
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks()
            rows = start + np.flatnonzero(kept[start : start + len(texts)])
            units = units_of(texts.take(column(rows - start)), config)
            pairs = np.unique(np.stack([units.hashes, rows[units.texts].astype(np.uint64)], axis=1), axis=0)
            documents_of = first_document + pairs[:, 1].astype(np.int64)
            writer.write_table(pa.table([column(pairs[:, 0].copy()), column(documents_of)], schema=schema))
            start += len(texts)


def find_repeated(grouping: Grouping, config: RepeatedLinesConfig) -> None:
    """Note which units are found in more than ``max_documents`` documents, for ``cuts_of``."""
    count = grouping.workers.count
    edges = [round(i * 2**64 / count) for i in range(count + 1)]
    calls = [
        (grouping.folder, low, high - 1, config.max_documents + 1, grouping.memory_bytes // count)
        for low, high in itertools.pairwise(edges)
    ]
    found = np.concatenate([np.empty((0, 3), np.int64), *grouping.workers.map(_repeated_between, calls)])
    np.save(grouping.folder / _REPEATED, found[np.argsort(found[:, 0].view(np.uint64))])


def _repeated_between(folder: Path, low: int, high: int, too_many: int, memory_bytes: int) -> np.ndarray:
    """Hash, first document and the one that makes them too many, of hashes in [low, high]; int64 [n, 3]."""
    wanted = """
        WITH ranked AS (
            SELECT hash, doc, row_number() OVER (PARTITION BY hash ORDER BY doc) AS rank
            FROM read_parquet($noted) WHERE hash BETWEEN $least AND $most
        )
        SELECT hash, min(doc) AS first, max(doc) AS last FROM ranked
        WHERE rank = 1 OR rank = $rank GROUP BY hash HAVING count(*) = 2
    """
    values = {"noted": str(folder / _NOTED), "least": low, "most": high, "rank": too_many}
    return query(folder, [wanted], values, memory_bytes)


def cuts_of(
    config: RepeatedLinesConfig,
    documents: Path,
    kept: np.ndarray,
    first_document: int,
    end_of_generation: int,
    folder: Path,
) -> tuple[pa.Array, np.ndarray]:
    """Where the texts of a shard are cut.

    Args:
        config: What is looked for.
        documents: File of the documents stage.
        kept: Rows that would be kept; bool [rows].
        first_document: Number of its first document in the corpus.
        end_of_generation: Number behind the last document of its generation.
        folder: Where ``find_repeated`` worked.

    Returns:
        First byte and the byte behind the last of each cut, one after another (``TAKEN_OUT``) [rows]; and
        whether anything but white space is left of each text, bool [rows].
    """
    from lmcore.data.line_units import units_of  # loads compiled code

    repeated = np.load(folder / _REPEATED)
    hashes = repeated[:, 0].view(np.uint64)
    cuts: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    counts, left = np.zeros(len(kept), np.int64), np.ones(len(kept), bool)
    start = 0
    with pq.ParquetFile(documents) as file:
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks()
            units = units_of(texts, config)
            rows = start + units.texts
            places = np.minimum(np.searchsorted(hashes, units.hashes), max(0, len(hashes) - 1))
            out = kept[rows] & (hashes[places] == units.hashes if len(hashes) else False)
            out[out] &= repeated[places[out], 1] != first_document + rows[out]
            out[out] &= repeated[places[out], 2] < end_of_generation
            cuts.append(np.stack([units.starts[out], units.ends[out]], axis=1))
            np.add.at(counts, rows[out], 1)
            for row in np.unique(rows[out]).tolist():
                of_row = cuts[-1][rows[out] == row]
                left[row] = bool(_without(texts[row - start].as_py().encode(), of_row).strip())
            start += len(texts)
    flat = np.concatenate(cuts).reshape(-1)
    offsets = np.r_[0, 2 * np.cumsum(counts)]
    return pa.LargeListArray.from_arrays(column(offsets), column(flat), type=TAKEN_OUT.type), left


def take_out(texts: pa.Array, cuts: pa.Array) -> pa.Array:
    """``texts`` (``pa.large_string`` [n]) without their ``cuts`` (``TAKEN_OUT`` [n])."""
    data, offsets = text_buffers(texts)
    values, edges = np.frombuffer(cuts.values.buffers()[1] or b"", np.int64), cuts.offsets
    edges = np.frombuffer(edges.buffers()[1], np.int64)[edges.offset : edges.offset + len(edges)]
    parts = []
    for row, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
        parts.append(_without(data[start:end].tobytes(), values[edges[row] : edges[row + 1]].reshape(-1, 2)))
    return bytes_array(parts)


def left_of(text: str, cuts: Sequence[int]) -> str:
    """``text`` without its ``cuts``, as the decisions hold them."""
    return _without(text.encode(), np.array(cuts, np.int64).reshape(-1, 2)).decode()


def _without(text: bytes, cuts: np.ndarray) -> bytes:
    if not len(cuts):
        return text
    edges = [0, *cuts.reshape(-1).tolist(), len(text)]
    return b"".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
