"""Rows of Parquet files as records: the text and the id alone are read, wherever in a row they are."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmcore.config import LimitsConfig, SourceConfig
from lmcore.data.charsets import UTF_8, CharsetError, decode
from lmcore.data.fields import id_in, text_in
from lmcore.data.record import (
    BadRecordError,
    Quarantined,
    Record,
    changed,
    expands,
    quarantine,
    too_large,
)
from lmcore.data.row_groups import GroupsPart, groups_within, part_digest
from lmcore.data.sources import SourceFile
from lmcore.errors import DataError

_ROWS_AT_A_TIME = 64
_BATCH_BYTES = 32_000_000
_SHOWN = 60  # columns
_UUID_BYTES = 16


class _ExpandsError(Exception):
    """A file holds more than its size lets expect."""


@dataclass(frozen=True)
class _Column:
    """Where a field is: the column, and the fields in it that lead there."""

    name: str
    path: tuple[str, ...]

    @property
    def leaf(self) -> str:
        return ".".join(self.path)

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        found = batch.column(self.path[0])
        for name in self.path[1:]:
            # Where a row has no struct, null.
            found = pc.call_function("struct_field", [found], pc.StructFieldOptions([name]))
        return found


def read_parquet(
    file: SourceFile, source: SourceConfig, limits: LimitsConfig
) -> Iterator[Record | Quarantined]:
    """Read the rows of ``file``; what is damaged stands for as many as it should hold.

    Raises:
        DataError: the file changed since the inventory, or lacks a named column.
    """
    with file.open() as stream:
        try:
            parquet = pq.ParquetFile(stream, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            _raise_if_passing(error)
            yield Quarantined(
                0, None, f"damaged Parquet file: {error}", num_bytes=file.num_bytes, breaks_off=True
            )
        else:
            columns = [
                _find_column(parquet, name, file) for name in (source.text_field, source.id_field) if name
            ]
            part = groups_within(parquet.metadata, file.start, file.start + file.num_bytes)
            yield from _read_groups(parquet, part, columns, source, limits, file.num_bytes)
    with file.open() as stream:  # its pages were read in no order that could be digested on the way
        if part_digest(stream, file.start, file.start + file.num_bytes) != file.sha256:
            raise changed(file)


def _raise_if_passing(error: Exception) -> None:
    """Raise ``error`` again if it is of the disk or the network: a broken file must look broken every time.

    Arrow tells of broken content by an OSError without a number.
    """
    if isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "errno", None) is not None:
        raise error


def _read_groups(
    parquet: pq.ParquetFile,
    part: GroupsPart,
    columns: list[_Column],
    source: SourceConfig,
    limits: LimitsConfig,
    num_bytes: int,
) -> Iterator[Record | Quarantined]:
    """Read group by group: damage costs the rest of its group, and every row of it is accounted for."""
    first, total, most = part.first_record, 0, limits.max_expansion * num_bytes
    for group in part.groups:
        metadata = parquet.metadata.row_group(group)
        index, after, reason = first, first + metadata.num_rows, "fewer rows than the file says"
        try:
            if metadata.total_byte_size > most:
                raise _ExpandsError
            leaves = [column.leaf for column in columns]
            for batch in parquet.iter_batches(_rows_at_a_time(metadata, leaves), [group], leaves):
                for row in _rows(batch, columns, source, limits, index):
                    # One value in a dictionary can stand for any number of rows.
                    total += len(row.text) if isinstance(row, Record) else row.num_bytes
                    if total > most:
                        raise _ExpandsError
                    yield row
                    index += 1
        except _ExpandsError:
            left = part.first_record + part.num_records - index
            # What follows a part is read all the same.
            is_whole = part.num_records == parquet.metadata.num_rows
            yield Quarantined(index, None, expands(limits), b"", num_bytes, left, breaks_off=is_whole)
            return
        except (OSError, OverflowError, pa.ArrowException) as error:
            _raise_if_passing(error)
            reason = f"damaged Parquet row group {group}: {error}"
        if index < after:
            yield Quarantined(index, None, reason, num_records=after - index)
        first = after


def _rows_at_a_time(group: pq.RowGroupMetaData, leaves: list[str]) -> int:
    """Few where the rows of ``group`` are large, as far as its sizes tell."""
    columns = [group.column(i) for i in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema in leaves)
    return max(1, min(_ROWS_AT_A_TIME, _BATCH_BYTES * group.num_rows // max(1, size)))


def _find_column(parquet: pq.ParquetFile, name: str, file: SourceFile) -> _Column:
    schema = parquet.schema_arrow
    fields = [schema.field(i) for i in range(len(schema))]
    path = _path(fields, name)
    if path is None or schema.names.count(path[0]) != 1:
        raise DataError(
            f"Parquet file {file.name} of source {file.source!r} has "
            f"{'no column' if path is None else 'several columns'} {name!r}",
            found=", ".join([*_paths(fields)][:_SHOWN]),
            remedy="Name columns of the file in the fields of this source, or of this evaluation set.",
        )
    return _Column(name, path)


def _path(fields: list[pa.Field], name: str) -> tuple[str, ...] | None:
    """The fields that ``name`` leads through, the longest names first; None: it leads nowhere."""
    by_name = {field.name: field.type for field in fields}
    end = len(name)
    while end > 0:
        kind, rest = by_name.get(name[:end]), name[end + 1 :]
        if kind is not None and not rest:
            return (name,)
        if kind is not None and pa.types.is_struct(kind) and (inner := _path(list(kind.fields), rest)):
            return (name[:end], *inner)
        end = name.rfind(".", 0, end)
    return None


def _paths(fields: list[pa.Field], above: str = "") -> Iterator[str]:
    for field in fields:
        if pa.types.is_struct(field.type):
            yield from _paths(list(field.type.fields), f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}"


def _rows(
    batch: pa.RecordBatch, columns: list[_Column], source: SourceConfig, limits: LimitsConfig, start: int
) -> Iterator[Record | Quarantined]:
    column = columns[0].of(batch)
    texts = _values(column)
    # What a column of strings holds is UTF-8 by the format, whatever its bytes look like.
    encoding = source.encoding if _is_binary(column.type) else UTF_8
    ids = _ids(columns[1].of(batch)) if source.id_field else [None] * len(texts)
    for index, (value, name) in enumerate(zip(texts, ids, strict=True), start):
        raw = value if isinstance(value, bytes) else b""
        try:
            if len(raw) > limits.max_record_bytes:
                raise BadRecordError(too_large(limits))
            text, charset = _text(value, encoding)
            name = id_in(name, source.id_field) if source.id_field else ""
            yield Record(index, name, text_in(text, source.text_field), 0, charset)
        except (BadRecordError, CharsetError) as error:
            yield quarantine(index, None, str(error), raw)


def _text(value: Any, encoding: str) -> tuple[Any, str]:
    """``value`` as text, if it is bytes, and the codec; empty: UTF-8."""
    if not isinstance(value, bytes):
        return value, ""
    if encoding == UTF_8:
        try:
            return value.decode(), ""
        except UnicodeDecodeError:
            pass  # what is wrong with it is told below
    text, charset = decode(value, encoding)
    return text, "" if charset == UTF_8 else charset


def _storage(column: pa.Array) -> pa.Array:
    """``column`` without dictionary and without what an extension type says of it."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    of_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return of_bytes or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind)


def _values(column: pa.Array) -> list[Any]:
    if isinstance(column, pa.ExtensionArray) and pa.types.is_fixed_size_binary(column.storage.type):
        return column.to_pylist()  # UUIDs
    # As bytes, so that one string that is not UTF-8 does not take the whole batch with it.
    column = _storage(column)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.large_binary())
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, ImportError, NotImplementedError, pa.ArrowException):
        return [kind] * len(column)  # a value that Python has none for is no text, and no name


def _ids(column: pa.Array) -> list[Any]:
    """The values of ``column``, of which ``id_in`` makes names; dates and times as in ISO 8601."""
    column = _storage(column)
    kind = column.type
    if pa.types.is_temporal(kind) and not pa.types.is_duration(kind) and not pa.types.is_interval(kind):
        if pa.types.is_timestamp(kind) and kind.tz:
            column = column.cast(pa.timestamp(kind.unit, "UTC"))
        written = column.cast(pa.string()).to_pylist()
        return [None if one is None or one.startswith("<") else one.replace(" ", "T") for one in written]
    if pa.types.is_fixed_size_binary(kind):
        if kind.byte_width == _UUID_BYTES:
            return [value if value is None else uuid.UUID(bytes=value) for value in column.to_pylist()]
        return [value if value is None else f"0x{value.hex()}" for value in column.to_pylist()]
    return _values(column)
