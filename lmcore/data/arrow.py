"""The bytes behind Arrow's columns."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@functools.cache
def keep_memory() -> None:
    """Have this process keep the memory that it frees: to get it anew, cleared, took a tenth of all time.

    Arrow's own pools give it back, as glibc does with large pieces. What Parquet works in is of the pool that
    ``ARROW_DEFAULT_MEMORY_POOL`` names when Arrow is loaded (``flows.environment``).

    It is kept in as many places as threads work at a time. glibc would make one for each of ever new threads,
    eight to a core, and what one of them frees is of no use to the next.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        options = ctypes.CDLL(None).mallopt
        options(_M_MMAP_THRESHOLD, 1 << 30)
        options(_M_TRIM_THRESHOLD, 1 << 30)
        options(_M_ARENA_MAX, (os.cpu_count() or 1) + 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def column(values: np.ndarray, nulls: np.ndarray | None = None) -> pa.Array:
    """``values`` (numbers or truth values) as a column, without a copy where it can be.

    ``pa.array`` does the same but imports pandas, if it is installed, for 0.3 s.

    Args:
        values: [n].
        nulls: Where there is none; bool [n].
    """
    data = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    present = None if nulls is None else pa.py_buffer(np.packbits(~nulls, bitorder="little"))
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [present, pa.py_buffer(data)]
    )


def string_column(values: Sequence[str | None]) -> pa.Array:
    """``values`` as ``pa.string``, as ``column`` makes it; less than 2 GiB of them."""
    raw = [value.encode("utf-8") if value is not None else b"" for value in values]
    ends = np.zeros(len(raw) + 1, np.int32)
    np.cumsum([len(one) for one in raw], out=ends[1:])
    nulls = np.fromiter((value is None for value in values), bool, len(raw))
    present = pa.py_buffer(np.packbits(~nulls, bitorder="little")) if nulls.any() else None
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(ends), pa.py_buffer(b"".join(raw)), present)


def to_numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of numbers without nulls, as numpy's; [n], not to be written to.

    ``to_numpy`` does the same but imports pandas, if it is installed.
    """
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.from_dlpack(whole)


def joined(values: pa.ChunkedArray) -> pa.Array:
    """``values`` as one array; ``combine_chunks`` copies even what is one already."""
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def places(values: pa.Array | pa.ChunkedArray, among: Sequence[str]) -> np.ndarray:
    """Where each of ``values`` (strings) is ``among`` those; -1: nowhere; int32 [n]."""
    options = pc.SetLookupOptions(string_column(among))
    found = pc.call_function("index_in", [values], options)
    nowhere = column(np.full(len(found), -1, np.int32))
    return to_numbers(pc.call_function("coalesce", [found, nowhere]))


def text_array(texts: Sequence[str]) -> pa.Array:
    """``texts`` as ``pa.large_string``; three times as fast as ``pa.array``."""
    return bytes_array([text.encode("utf-8") for text in texts])


def bytes_array(raw: Sequence[bytes | memoryview], room: int = 0) -> pa.Array:
    """Texts that are UTF-8 already, as ``pa.large_string``; ``room`` bytes behind them may be read."""
    ends = np.zeros(len(raw) + 1, np.int64)
    np.cumsum([len(one) for one in raw], out=ends[1:])
    data = b"".join([*raw, bytes(room)] if room else raw)
    return pa.LargeStringArray.from_buffers(len(raw), pa.py_buffer(ends), pa.py_buffer(data))


def views_of(texts: pa.Array) -> list[memoryview]:
    """The UTF-8 bytes of each of ``texts`` (``pa.large_string``), where they are."""
    data, offsets = text_buffers(texts)
    whole = memoryview(cast("bytes", data))
    return [whole[start:end] for start, end in itertools.pairwise(offsets.tolist())]


def text_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes (uint8) and offsets into them (int64 [n + 1]) of ``texts`` (``pa.large_string``)."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    raw = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    # Some of Arrow's buffers may be written to and some not: to numba these are two types, compiled twice.
    raw.flags.writeable = ends.flags.writeable = False
    return raw, ends


def batches_of_lengths(lengths: np.ndarray, most: int) -> Iterator[slice]:
    """Cut rows of ``lengths`` (int64 [n]) into runs that hold at most ``most``, and at least one row."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, "right")))
        yield slice(start, stop)
        start = stop
