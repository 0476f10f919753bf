"""Read a split's tokens as one long array, through a memory map where the layout is ours."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.data.arrow import to_numbers
from lmcore.data.token_writer import INDEX, payload_offset
from lmcore.errors import DataError

_DECODED_GROUPS_KEPT = 4
_SOURCES = pa.dictionary(pa.int32(), pa.string())
_INDEX_KEYS = {"num_tokens", "num_documents", "num_bytes", "eos_id", "vocab_size", "files"}


@dataclass(frozen=True)
class _RowGroup:
    path: Path
    index: int
    num_rows: int
    num_values: int
    payload: int | None  # None: not our layout, decoded by pyarrow


class TokenDataset:
    """The tokens of a split, as one array of documents that each end with EOS.

    Files by other writers are read too, through pyarrow, as long as they have a list column ``input_ids``;
    without an ``index.json`` they are read whole once, EOS is taken to be the last token of the first
    document that has any, and ``num_bytes`` is 0 (unknown).

    Attributes:
        num_tokens: Of the split, EOS counted.
        num_documents: Rows of all files.
        num_bytes: UTF-8 bytes of the text; 0 if unknown.
        eos_id: Last token of each document.
        vocab_size: Of the tokenizer; 0 if unknown.
        digest: Changes when the tokens do; 64 hexadecimal digits.
        document_offsets: Where each document starts, int64 [num_documents + 1]; the last is ``num_tokens``.

    Raises:
        DataError: there are no files, or one is truncated or not what the index says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        index = _read_index(self.directory)
        paths = _paths(self.directory, index)
        groups, lengths = [], []
        digest = hashlib.sha256()
        for path, entry in paths:
            found, sizes, footer = _open_file(path, entry)
            groups += found
            lengths.append(sizes)
            digest.update(footer)
        self._groups = groups
        self._lengths = np.concatenate(lengths)
        digest.update(self._lengths.tobytes())
        self.document_offsets = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(self._lengths, out=self.document_offsets[1:])
        self._group_starts = list(itertools.accumulate((group.num_values for group in groups), initial=0))
        self._group_rows = np.cumsum([0] + [group.num_rows for group in groups])
        self._maps: dict[Path, mmap.mmap] = {}
        self._decode = functools.lru_cache(_DECODED_GROUPS_KEPT)(_decode_group)
        self._doc_ids = functools.lru_cache(_DECODED_GROUPS_KEPT)(_read_doc_ids)
        self.num_tokens = int(self.document_offsets[-1])
        self.num_documents = len(self._lengths)
        self.num_bytes = int(index["num_bytes"]) if index else 0
        self.vocab_size = int(index["vocab_size"]) if index else 0
        self._check_totals(index)
        if index is None:
            for number, group in enumerate(groups):
                digest.update(self._read(number, 0, group.num_values).tobytes())
        self.digest: str = (index or {}).get("digest") or digest.hexdigest()
        self.eos_id = int(index["eos_id"]) if index else self._last_of_first_document()

    def __len__(self) -> int:
        return self.num_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        # Maps do not travel to other processes; they open their own.
        return (TokenDataset, (self.directory,))

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Copy tokens [start, stop) of the whole split; int32 [stop - start].

        Raises:
            DataError: the range is not inside the split.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise DataError(
                f"tokens [{start}, {stop}) are not in {self.directory}",
                expected=f"a range inside [0, {self.num_tokens})",
            )
        number = bisect.bisect_right(self._group_starts, start) - 1
        if number < len(self._groups) and stop <= self._group_starts[number + 1]:
            return self._read(number, start - self._group_starts[number], stop - start).astype(np.int32)
        out = np.empty(stop - start, np.int32)
        done = 0
        while done < len(out):
            first = start + done - self._group_starts[number]
            count = min(self._groups[number].num_values - first, len(out) - done)
            out[done : done + count] = self._read(number, first, count)
            done += count
            number += 1
        return out

    def document(self, index: int) -> np.ndarray:
        """Copy the tokens of document ``index``, EOS included; int32 [n]."""
        return self.slice(int(self.document_offsets[index]), int(self.document_offsets[index + 1]))

    def doc_id(self, index: int) -> str:
        """Name of document ``index``, as the documents stage gave it."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        number = int(np.searchsorted(self._group_rows, index, "right")) - 1
        names = self._doc_ids(self._groups[number])
        return names[index - int(self._group_rows[number])].as_py()

    def document_sources(self) -> tuple[list[str], np.ndarray]:
        """Names of the sources, sorted, and which of them each document is of, int64 [num_documents].

        Raises:
            DataError: a file has no column ``source``, or is damaged.
        """
        columns = [_read_sources(path) for path in dict.fromkeys(group.path for group in self._groups)]
        column = pa.chunked_array([chunk for column in columns for chunk in column.chunks], _SOURCES)
        encoded = column.unify_dictionaries().combine_chunks()
        names, numbers = np.unique(encoded.dictionary.to_pylist(), return_inverse=True)
        return names.tolist(), numbers[to_numbers(encoded.indices)].astype(np.int64)

    def verify(self) -> None:
        """Read everything once, with page checksums, and compare it with the index.

        Raises:
            DataError: a bit is not what was written.
        """
        digests = {group.path.name: hashlib.sha256() for group in self._groups}
        for number, group in enumerate(self._groups):
            decoded = _decode_group(group, every_column=True)
            if not np.array_equal(decoded, self._read(number, 0, group.num_values)):
                raise _damaged(group.path, f"row group {group.index} is not where the index says")
            digests[group.path.name].update(decoded.astype("<i4", copy=False).tobytes())
        index = _read_index(self.directory)
        for entry in index["files"] if index else ():
            if entry.get("digest", "") not in ("", digests[entry["name"]].hexdigest()):
                raise _damaged(self.directory / entry["name"], "the tokens are not those of the index")
        ends = self.document_offsets[1:] - 1
        if any(self.slice(int(end), int(end) + 1)[0] != self.eos_id for end in ends):
            raise _damaged(self.directory, f"a document does not end with EOS ({self.eos_id})")

    def _last_of_first_document(self) -> int:
        end = int(self._lengths[np.flatnonzero(self._lengths)[0]])
        return int(self.slice(end - 1, end)[0])

    def _read(self, number: int, first: int, count: int) -> np.ndarray:
        group = self._groups[number]
        if group.payload is None:
            return self._decode(group)[first : first + count]
        # Row groups start at any byte, so the view may be unaligned; the caller copies it.
        return np.frombuffer(self._map(group.path), "<i4", count, group.payload + 4 * first)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]

    def _check_totals(self, index: dict[str, Any] | None) -> None:
        if not self.num_tokens:
            raise _damaged(self.directory, "no token")
        for name in ("num_tokens", "num_documents"):
            if index and index[name] != getattr(self, name):
                raise _damaged(self.directory, f"{getattr(self, name)} {name}, not {index[name]}")


def _read_index(directory: Path) -> dict[str, Any] | None:
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(directory / INDEX, str(error)) from error
    if not isinstance(index, dict) or not index.keys() >= _INDEX_KEYS:
        raise _damaged(directory / INDEX, f"not a table of {', '.join(sorted(_INDEX_KEYS))}")
    return index


def _paths(directory: Path, index: dict[str, Any] | None) -> list[tuple[Path, dict[str, Any] | None]]:
    if index is not None:
        return [(directory / entry["name"], entry) for entry in index["files"]]
    paths = sorted(directory.glob("*.parquet"))
    if not paths:
        raise DataError(
            f"no tokens in {directory}",
            expected="Parquet files with a column input_ids",
            found="none",
            remedy="Run `gristmill prepare`.",
        )
    return [(path, None) for path in paths]


def _open_file(path: Path, entry: dict[str, Any] | None) -> tuple[list[_RowGroup], np.ndarray, bytes]:
    """Row groups, document lengths (int64) and footer of a file, compared with its entry in the index."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_schema(path, file.schema_arrow)
            metadata = file.metadata
            lengths = _lengths(file, ours=entry is not None)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, str(error)) from error
    rows = np.cumsum([0] + [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
    groups = []
    for i in range(metadata.num_row_groups):
        num_values = int(lengths[rows[i] : rows[i + 1]].sum())
        num_rows = int(rows[i + 1] - rows[i])
        payload = None
        if entry is not None:
            expected = {"num_rows": num_rows, "num_values": num_values}
            expected["payload_offset"] = payload_offset(metadata, i)
            if len(entry["row_groups"]) != metadata.num_row_groups or entry["row_groups"][i] != expected:
                raise _damaged(path, f"row group {i} is not the one in {INDEX}")
            payload = expected["payload_offset"]
        groups.append(_RowGroup(path, i, num_rows, num_values, payload))
    return groups, lengths, f"{path.name} {metadata.serialized_size} {metadata.num_rows}".encode()


def _check_schema(path: Path, schema: pa.Schema) -> None:
    kind = schema.field("input_ids").type if "input_ids" in schema.names else None
    is_list = kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))
    if kind is None or not is_list or not pa.types.is_integer(kind.value_type):
        raise DataError(
            f"{path} does not hold tokens",
            expected="a column input_ids: list<int32>",
            found="no such column" if kind is None else str(kind),
        )


def _lengths(file: pq.ParquetFile, *, ours: bool) -> np.ndarray:
    if ours:
        return to_numbers(file.read(columns=["n_tokens"])["n_tokens"]).astype(np.int64)
    sizes = [
        to_numbers(chunk.value_lengths().fill_null(0))
        for i in range(file.num_row_groups)
        for chunk in file.read_row_group(i, columns=["input_ids"])["input_ids"].chunks
    ]
    return np.concatenate([np.empty(0, np.int64), *sizes]).astype(np.int64)


def _decode_group(group: _RowGroup, *, every_column: bool = False) -> np.ndarray:
    """Tokens of a row group through pyarrow; int32 [num_values]."""
    try:
        with pq.ParquetFile(group.path, page_checksum_verification=True) as file:
            table = file.read_row_group(group.index, columns=None if every_column else ["input_ids"])
        lists = table["input_ids"].combine_chunks()
        values = (lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists).flatten()
        if values.null_count:
            raise _damaged(group.path, "a token is null")
        tokens = to_numbers(values.cast(pa.int32()))
    except (OSError, pa.ArrowException) as error:
        raise _damaged(group.path, str(error)) from error
    if len(tokens) != group.num_values:
        raise _damaged(group.path, f"{len(tokens)} tokens, n_tokens adds up to {group.num_values}")
    return tokens


def _read_doc_ids(group: _RowGroup) -> pa.Array | list[Any]:
    try:
        with pq.ParquetFile(group.path, page_checksum_verification=True) as file:
            if "doc_id" not in file.schema_arrow.names:
                return [pa.scalar(f"{group.path.stem}#{group.index}.{i}") for i in range(group.num_rows)]
            column = file.read_row_group(group.index, columns=["doc_id"])["doc_id"]
    except (OSError, pa.ArrowException) as error:
        raise _damaged(group.path, str(error)) from error
    return column.combine_chunks()


def _read_sources(path: Path) -> pa.ChunkedArray:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=["source"]) as file:
            column = file.read(columns=["source"])["source"].cast(_SOURCES)
    except KeyError:
        column = None
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, str(error)) from error
    if column is None or column.null_count:
        raise DataError(
            f"{path} does not say which source each document is of",
            expected="a column source: string",
            found="no such column" if column is None else "nulls in it",
            remedy="Leave train.mixture empty, or add the column.",
        )
    return column


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is damaged", found=what, remedy="Run the stage that made it again.")
