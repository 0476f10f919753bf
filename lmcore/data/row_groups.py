"""Parts of a Parquet file: a run of its row groups each, so that a large file is many units of work.

The digest of a part is that of its bytes and of the file's footer, which says where they are: any change of
the file's layout changes all of its parts, and none is read by a footer that it was not cut by.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_READ_BYTES = 1 << 20
_TAIL_BYTES = 8  # the length of the footer, and PAR1


@dataclass(frozen=True)
class GroupsPart:
    """Some row groups of a file, one behind another.

    Attributes:
        start: First byte; the part before ends there.
        end: The byte behind its last; of the last part, that of the file.
        groups: Their numbers.
        first_record: Rows of the file before it.
        num_records: Its rows.
    """

    start: int
    end: int
    groups: range
    first_record: int
    num_records: int


def cut_at_groups(metadata: pq.FileMetaData, num_bytes: int, part_bytes: int) -> list[GroupsPart]:
    """Cut a file of ``num_bytes`` where a row group begins, into parts of ``part_bytes`` or more each.

    One part if its groups are not in order, which the format allows. No part is small, as a few bytes can
    honestly expand more than ``limits.max_expansion`` allows.
    """
    starts = _starts(metadata)
    if starts != sorted(starts) or starts[-1:] > [num_bytes]:
        starts = starts[:1]
    edges = [0]
    for start in starts[1:]:
        if min(start - edges[-1], num_bytes - start) >= part_bytes:
            edges.append(start)
    return [groups_within(metadata, start, end) for start, end in itertools.pairwise([*edges, num_bytes])]


def groups_within(metadata: pq.FileMetaData, start: int, end: int) -> GroupsPart:
    """The row groups that begin in the bytes [start, end); of a whole file, all."""
    starts = _starts(metadata)
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    first = bisect.bisect_left(starts, start) if start else 0
    behind = bisect.bisect_left(starts, end) if starts[-1:] >= [end] else len(starts)
    return GroupsPart(start, end, range(first, behind), sum(rows[:first]), sum(rows[first:behind]))


def parts_of(file: BinaryIO, part_bytes: int) -> list[GroupsPart]:
    """``cut_at_groups`` of an open file; none if it is no Parquet, or damaged."""
    num_bytes = file.seek(0, os.SEEK_END)
    if num_bytes <= part_bytes:
        return []
    try:
        metadata = pq.ParquetFile(file).metadata
    except (OSError, pa.ArrowException) as error:
        # Arrow tells of broken content by an OSError without a number.
        if isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "errno", None) is not None:
            raise
        return []
    return cut_at_groups(metadata, num_bytes, part_bytes)


def part_digest(file: BinaryIO, start: int, end: int) -> str:
    """SHA-256 of the bytes [start, end) of an open file and, if they are not all of it, of its footer."""
    num_bytes = file.seek(0, os.SEEK_END)
    ranges = [(start, min(end, num_bytes))]
    if start or end < num_bytes:
        file.seek(max(0, num_bytes - _TAIL_BYTES))
        length = int.from_bytes(file.read(_TAIL_BYTES)[:4], "little")
        ranges.append((max(0, num_bytes - _TAIL_BYTES - length), num_bytes))
    digest = hashlib.sha256()
    for first, behind in ranges:
        file.seek(first)
        while first < behind and (chunk := file.read(min(_READ_BYTES, behind - first))):
            digest.update(chunk)
            first += len(chunk)
    return digest.hexdigest()


def _starts(metadata: pq.FileMetaData) -> list[int]:
    return [_start(metadata.row_group(i)) for i in range(metadata.num_row_groups)]


def _start(group: pq.RowGroupMetaData) -> int:
    columns = [group.column(i) for i in range(group.num_columns)]
    return min(
        (
            column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
            for column in columns
        ),
        default=-1,
    )
