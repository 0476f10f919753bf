"""Write tokens as Parquet that any tool reads and that we read through a memory map.

``input_ids`` is PLAIN, uncompressed, without dictionary and statistics, one data page to a row group: the
last ``4 * num_values`` bytes of its column chunk are then the values themselves, little-endian int32. Each
file is read back and compared before its offsets are recorded.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.data.arrow import column, string_column
from lmcore.errors import DataError
from lmcore.store import link

INDEX = "index.json"
IDS_PATH = "input_ids.list.element"
TOKENS_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("input_ids", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
    ]
)
ROW_GROUP_TOKENS = 4_000_000
FILE_TOKENS = 256_000_000


class TokenWriter:
    """Writes one split; a context manager that leaves ``index.json`` behind when all went well.

    Args:
        directory: Created if missing; must hold no files.
        eos_id: Last token of every document.
        vocab_size: All tokens are smaller.
        row_group_tokens: A row group is closed when it holds this many.
        file_tokens: A file is closed when it holds this many.
    """

    def __init__(
        self,
        directory: Path,
        *,
        eos_id: int,
        vocab_size: int,
        row_group_tokens: int = ROW_GROUP_TOKENS,
        file_tokens: int = FILE_TOKENS,
    ) -> None:
        self._directory = directory
        self._eos_id, self._vocab_size = eos_id, vocab_size
        self._row_group_tokens, self._file_tokens = row_group_tokens, file_tokens
        self._held: list[tuple[Sequence[str], Sequence[str], np.ndarray, np.ndarray]] = []
        self._held_tokens = 0
        self._writer: pq.ParquetWriter | None = None
        self._checksums: list[tuple[int, int]] = []
        self._files: list[dict[str, Any]] = []
        self._totals = {"num_tokens": 0, "num_documents": 0, "num_bytes": 0}
        self._digest = hashlib.sha256()
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.close()

    def add(
        self,
        doc_ids: Sequence[str],
        sources: Sequence[str],
        tokens: np.ndarray,
        lengths: np.ndarray,
        num_bytes: int,
    ) -> None:
        """Append documents.

        Args:
            doc_ids: Names, one for each document.
            sources: Names of their sources.
            tokens: int32 [sum of lengths], each document ending with EOS.
            lengths: Tokens of each document, EOS counted.
            num_bytes: UTF-8 bytes of their text.

        Raises:
            DataError: a document does not end with EOS, or a token is not in the vocabulary.
        """
        self._check(tokens, lengths)
        self._totals["num_bytes"] += num_bytes
        start, first = 0, 0
        ends = np.cumsum(lengths)
        while first < len(lengths):
            room = self._row_group_tokens - self._held_tokens
            # At least one document, so that one larger than a row group gets one of its own.
            last = max(int(np.searchsorted(ends, start + room, "right")), first + (not self._held))
            if last > first:
                stop = int(ends[last - 1])
                taken = slice(first, last)
                self._held.append((doc_ids[taken], sources[taken], tokens[start:stop], lengths[taken]))
                self._held_tokens += stop - start
                first, start = last, stop
            if first < len(lengths) or self._held_tokens >= self._row_group_tokens:
                self._flush()

    def close(self) -> None:
        """Write what is held, check the files and write ``index.json``."""
        self._flush()
        self._close_file()
        index = {
            **self._totals,
            "eos_id": self._eos_id,
            "vocab_size": self._vocab_size,
            "digest": digest_of(self._files),
            "files": self._files,
        }
        (self._directory / INDEX).write_text(json.dumps(index), encoding="utf-8")

    def _check(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        if not len(lengths):
            return
        ends = np.cumsum(lengths) - 1
        if (lengths < 1).any() or ends[-1] != len(tokens) - 1 or (tokens[ends] != self._eos_id).any():
            raise DataError("documents must end with EOS", expected=f"token {self._eos_id} at each end")
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            raise DataError(
                "a token is not in the vocabulary",
                expected=f"0 to {self._vocab_size - 1}",
                found=f"{tokens.min()} to {tokens.max()}",
            )

    def _flush(self) -> None:
        if not self._held:
            return
        parts = [held[2] for held in self._held]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        tokens = np.ascontiguousarray(whole, "<i4")
        lengths = np.concatenate([held[3] for held in self._held])
        table = pa.Table.from_arrays(
            [
                string_column([name for held in self._held for name in held[0]]),
                string_column([name for held in self._held for name in held[1]]),
                column(lengths.astype(np.int32)),
                pa.ListArray.from_arrays(
                    column(np.r_[0, np.cumsum(lengths)].astype(np.int32)),
                    column(tokens),
                    type=TOKENS_SCHEMA.field("input_ids").type,
                ),
            ],
            schema=TOKENS_SCHEMA,
        )
        if self._writer is None:
            self._writer = _open(self._directory / f"{len(self._files):05d}.parquet")
        self._writer.write_table(table, row_group_size=len(table))
        self._digest.update(tokens.data)
        self._checksums.append((len(tokens), zlib.crc32(tokens.data)))
        self._totals["num_tokens"] += len(tokens)
        self._totals["num_documents"] += len(table)
        self._held, self._held_tokens = [], 0
        if sum(count for count, _ in self._checksums) >= self._file_tokens:
            self._close_file()

    def _close_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        path = self._directory / f"{len(self._files):05d}.parquet"
        metadata = pq.read_metadata(path)
        groups = [
            {
                "num_rows": metadata.row_group(i).num_rows,
                "num_values": count,
                "payload_offset": payload_offset(metadata, i),
            }
            for i, (count, _) in enumerate(self._checksums)
        ]
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as written:
            for group, (count, checksum) in zip(groups, self._checksums, strict=True):
                start = group["payload_offset"]
                with memoryview(written)[start : start + 4 * count] as payload:
                    as_written = zlib.crc32(payload) == checksum
                if not as_written:
                    raise DataError(
                        f"{path} was not laid out as expected",
                        expected="the tokens as one contiguous array in each row group",
                        found=f"something else, written by pyarrow {pa.__version__}",
                        remedy="Use a pyarrow version of infra/constraints.txt.",
                    )
        self._files.append(
            {"name": path.name, "num_rows": metadata.num_rows, "row_groups": groups}
            | {"digest": self._digest.hexdigest()}
        )
        self._checksums, self._digest = [], hashlib.sha256()


def digest_of(files: Iterable[Mapping[str, Any]]) -> str:
    """Digest of the tokens of ``files``, entries of an index; 64 hexadecimal digits."""
    return hashlib.sha256("".join(entry["digest"] for entry in files).encode()).hexdigest()


def gather(parts: Iterable[Path], out: Path) -> dict[str, int]:
    """Let ``out`` hold what the directories ``parts`` hold, one after another, without a copy.

    Returns:
        ``num_tokens``, ``num_documents`` and ``num_bytes`` of all.
    """
    out.mkdir(parents=True)
    totals = {"num_tokens": 0, "num_documents": 0, "num_bytes": 0}
    files: list[dict[str, Any]] = []
    described: dict[str, Any] = {}
    for part in parts:
        index = json.loads((part / INDEX).read_text(encoding="utf-8"))
        described = {name: index[name] for name in ("eos_id", "vocab_size")}
        totals = {name: count + index[name] for name, count in totals.items()}
        for entry in index["files"]:
            name = f"{len(files):05d}.parquet"
            link(part / entry["name"], out / name)
            files.append(entry | {"name": name})
    index = {**totals, **described, "digest": digest_of(files), "files": files}
    (out / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return totals


def payload_offset(metadata: pq.FileMetaData, row_group: int) -> int:
    """Byte where the int32 values of ``input_ids`` start, if the layout is ours."""
    group = metadata.row_group(row_group)
    column = next(c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema == IDS_PATH)
    return column.data_page_offset + column.total_compressed_size - 4 * column.num_values


def _open(path: Path) -> pq.ParquetWriter:
    options: dict[str, Any] = {  # pyarrow's stubs know the plain forms only
        "compression": {"doc_id": "zstd", "source": "zstd", "n_tokens": "zstd", IDS_PATH: "none"},
        "use_dictionary": ["source"],
        "write_statistics": ["doc_id", "source", "n_tokens"],
    }
    return pq.ParquetWriter(
        path,
        TOKENS_SCHEMA,
        version="2.6",
        data_page_version="1.0",
        **options,
        # One page to a row group: neither limit may be reached before it ends.
        data_page_size=2**31 - 1,
        max_rows_per_page=2**31 - 1,
        write_page_checksum=True,
    )
