"""Read the records of a raw file; what cannot be read becomes a quarantined record with its reason.

A ``.txt``, ``.py`` or ``.html`` file is one record, so is a line of ``.jsonl``, a row of ``.parquet``, a page
of ``.warc``. The text of a page is its main text, which may be empty. Damage in the middle of a stream keeps
the good records before it, and one quarantined record tells of the rest. In a Parquet file it stands for as
many as the rest of its row group holds, and the next group is read; in a web archive, the next record.
Memory is bounded by ``limits.max_record_bytes`` and a chunk, whatever the file expands to.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.config import LimitsConfig, SourceConfig
from lmcore.data import warc
from lmcore.data.page_texts import Unread, with_texts
from lmcore.data.row_groups import GroupsPart, groups_within, part_digest
from lmcore.data.sources import ARCHIVE_SUFFIXES, PAGE_SUFFIXES, WHOLE_FILE_SUFFIXES, SourceFile
from lmcore.data.streams import BrokenStreamError, chunks
from lmcore.data.web_pages import BrokenPageError, page_of
from lmcore.errors import DataError

RAW_BYTES_KEPT = 1 << 20  # of a record that cannot be read: nearly all are kept whole

_ROWS_AT_A_TIME = 64
_DIGEST_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
_LONG_LINE_BYTES = 1 << 23
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Record:
    """A readable record.

    Attributes:
        index: Position in its file, bad records counted; in a file of lines the line, from 0.
        id: From ``id_field``; empty if the source names none.
        text: As stored; it may hold lone surrogates. Bytes, where they were asked for, are UTF-8.
        num_chars: Code points of bytes; 0 of a text that counts its own.
    """

    index: int
    id: str
    text: str | bytes
    num_chars: int = 0


@dataclass(frozen=True)
class Quarantined:
    """A record that could not be read.

    Attributes:
        index: Position in its file.
        offset: Where it starts, in bytes of the uncompressed file, but in a web archive of the stored one, as
            its indexes have it; None where a file has no such places.
        reason: What is wrong with it.
        raw: Its first bytes, as stored.
        num_bytes: Size of the record, as far as it was seen.
        num_records: Records that it stands for, where the file says how many there are.
        breaks_off: Whether the file cannot be read from here on, and holds nobody knows how many more.
    """

    index: int
    offset: int | None
    reason: str
    raw: bytes = b""
    num_bytes: int = 0
    num_records: int = 1
    breaks_off: bool = False


class _ExpandsError(Exception):
    """A file holds more than its size lets expect."""


class _BadRecordError(Exception):
    """One record cannot be read; the message is the reason."""


def read_records(
    file: SourceFile,
    source: SourceConfig,
    limits: LimitsConfig,
    *,
    as_bytes: bool = False,
    without_page: Counter[str] | None = None,
) -> Iterator[Record | Quarantined]:
    """Read the records of ``file`` in order.

    Args:
        file: One of ``source``.
        source: How its records are read.
        limits: On their size.
        as_bytes: Whether texts may be given in UTF-8, where they were found so: in a quarter of the time.
        without_page: Gets the records of a web archive that hold no page, by what they hold; they are
            neither read nor quarantined.

    Raises:
        DataError: the file changed since the inventory, or a Parquet file lacks a named column.
    """
    others = Counter() if without_page is None else without_page
    if file.suffix in ARCHIVE_SUFFIXES:  # each page says for itself whether it is HTML
        return _with_texts(_read_archive(file, limits, others))
    are_pages = source.text_format == "html" or file.suffix in PAGE_SUFFIXES
    records = _read(file, source, limits, as_bytes and not are_pages)
    return _with_texts(map(_unread, records)) if are_pages else records


def _read(
    file: SourceFile, source: SourceConfig, limits: LimitsConfig, as_bytes: bool
) -> Iterator[Record | Quarantined]:
    if file.suffix == ".parquet":
        yield from _read_parquet(file, source, limits)
    elif file.suffix in PAGE_SUFFIXES:
        yield _read_whole(file, limits, bytes)
    elif file.suffix in WHOLE_FILE_SUFFIXES:
        yield _read_whole(file, limits, _decode)
    else:
        yield from _read_lines(file, source, limits, as_bytes)


def _with_texts(records: Iterator[Unread | Quarantined]) -> Iterator[Record | Quarantined]:
    for record, text in with_texts(records):
        if isinstance(record, Quarantined):
            yield record
        elif isinstance(text, str):
            yield Record(record.index, record.id, text)
        else:
            raw = record.raw if isinstance(record.raw, bytes) else record.raw.encode("utf-8", "replace")
            yield _quarantine(record.index, record.offset, str(text), raw, record.num_bytes)


def _unread(record: Record | Quarantined) -> Unread | Quarantined:
    """A record as a page whose text is yet to be taken; its bytes are not decoded."""
    if isinstance(record, Quarantined):
        return record
    return Unread(record.index, record.id, (record.text, "", True), record.text)


def text_of(record: Record) -> str:
    """The text of ``record``, however it is given."""
    return record.text if isinstance(record.text, str) else record.text.decode("utf-8")


def _read_whole(
    file: SourceFile, limits: LimitsConfig, decode: Callable[[bytes], str | bytes]
) -> Record | Quarantined:
    with file.open() as stream:
        raw = stream.read(limits.max_record_bytes + 1)
    if len(raw) > limits.max_record_bytes:
        return _quarantine(0, 0, _too_large(limits), raw, file.num_bytes)
    if hashlib.sha256(raw).hexdigest() != file.sha256:
        raise _changed(file)
    try:
        return Record(0, "", decode(raw))
    except _BadRecordError as error:
        return _quarantine(0, 0, str(error), raw)


# --- web archives ----------------------------------------------------------------------------------


def _read_archive(
    file: SourceFile, limits: LimitsConfig, without_page: Counter[str]
) -> Iterator[Unread | Quarantined]:
    index, most = 0, int(limits.max_expansion * file.num_bytes)
    with file.open() as stored:
        stream = _Digesting(stored)
        try:
            for found in warc.records(
                stream, suffix=file.suffix, max_bytes=limits.max_record_bytes, max_total_bytes=most
            ):
                record = (
                    _lost(index, found) if isinstance(found, warc.Lost) else _page(index, found, file, limits)
                )
                if isinstance(record, str):
                    without_page[record] += 1
                else:
                    yield record
                    index += 1
        except warc.ExpandsError:
            yield Quarantined(index, None, _expands(limits), b"", file.num_bytes, breaks_off=True)
        if stream.whole() != file.sha256:
            raise _changed(file)


def _lost(index: int, lost: warc.Lost) -> Quarantined:
    raw = lost.raw[:RAW_BYTES_KEPT]
    return Quarantined(index, lost.offset, lost.reason, raw, lost.num_bytes, breaks_off=lost.breaks_off)


def _page(
    index: int, found: warc.Framed, file: SourceFile, limits: LimitsConfig
) -> Unread | Quarantined | str:
    try:
        page = page_of(found, limits.max_record_bytes)
        if isinstance(page, str):
            return page
        if max(found.num_bytes, len(page.content)) > limits.max_record_bytes:
            raise _BadRecordError(_too_large(limits))
    except (_BadRecordError, BrokenPageError) as error:
        return _quarantine(index, found.offset, str(error), found.block, found.num_bytes)
    # An address alone is no name: archives hold what it gave at several times.
    name = f"{file.name}#{index} {page.url}"
    raw = found.block[:RAW_BYTES_KEPT]
    return Unread(index, name, (page.content, page.charset, page.is_html), raw, found.offset, found.num_bytes)


# --- lines of JSON ---------------------------------------------------------------------------------


def _read_lines(
    file: SourceFile, source: SourceConfig, limits: LimitsConfig, as_bytes: bool
) -> Iterator[Record | Quarantined]:
    index, after, most = file.first_record, 0, limits.max_record_bytes
    with file.open() as stream:
        pieces = _checked_chunks(stream, file, limits)
        field = source.text_field if as_bytes and not source.id_field else ""
        lines = _plain_lines(pieces, field, most) if field else _lines(pieces, most)
        try:
            for index, (offset, raw, num_bytes, *plain) in enumerate(lines, file.first_record):
                offset += file.start
                after = offset + num_bytes + 1
                if plain:
                    yield Record(index, "", raw, *plain)
                    continue
                if offset == 0:
                    raw = raw.removeprefix(_BYTE_ORDER_MARK)
                if num_bytes > most or raw.strip():
                    yield _record(index, offset, raw, num_bytes, source, limits)
        except BrokenStreamError as error:
            yield Quarantined(index + 1 if after else index, after, str(error), breaks_off=True)


def _plain_lines(pieces: Iterator[bytes], field: str, max_bytes: int) -> Iterator[tuple[Any, ...]]:
    """Split into lines as ``_lines``; a plain one gives its text, not its bytes, and its characters."""
    from lmcore.data.json_lines import read_block  # of use to the fewest commands

    offset = 0
    for block in _blocks(pieces):
        if isinstance(block, list):  # a long line
            taken = (block.pop(0) for _ in range(len(block)))
            for start, *line in _lines(itertools.chain(taken, pieces), max_bytes):
                yield offset + start, *line
            return
        for start, end, text, num_chars in read_block(block, field):
            if text is None or end - start > max_bytes:
                yield offset + start, block[start : min(end, start + max_bytes)], end - start
            else:
                yield offset + start, text, end - start, num_chars
        offset += len(block)


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes | list[bytes]]:
    """Join ``pieces`` to blocks of whole lines; where a line is long, yield those not joined, and end."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _LONG_LINE_BYTES:
                del piece  # it may be large
                yield held
                return
            if size >= _BLOCK_BYTES and b"\n" in piece:
                block = b"".join(held)
                whole = block.rfind(b"\n") + 1
                yield block[:whole]
                held, size = [block[whole:]], len(block) - whole
    except BrokenStreamError:
        block = b"".join(held)
        if whole := block.rfind(b"\n") + 1:
            yield block[:whole]
        raise
    if size:
        yield b"".join(held)


def _record(
    index: int, offset: int, raw: bytes, num_bytes: int, source: SourceConfig, limits: LimitsConfig
) -> Record | Quarantined:
    if num_bytes > limits.max_record_bytes:
        return _quarantine(index, offset, _too_large(limits), raw, num_bytes)
    try:
        text, name = _parse(raw, source)
    except _BadRecordError as error:
        return _quarantine(index, offset, str(error), raw)
    return Record(index, name, text)


def _checked_chunks(stream: BinaryIO, file: SourceFile, limits: LimitsConfig) -> Iterator[bytes]:
    """Yield the uncompressed bytes; the stored ones are compared with the inventory on the way."""
    compressed = file.suffix.endswith((".gz", ".zst"))
    # Lines that were appended since are not of this part.
    stored = _Digesting(stream, None if compressed else file.num_bytes)
    total, most = 0, int(limits.max_expansion * file.num_bytes)
    broken = None
    try:
        for chunk in chunks(stored, file.suffix):
            if compressed and total + len(chunk) > most:
                yield chunk[: most - total]
                raise BrokenStreamError(_expands(limits))
            yield chunk
            total += len(chunk)
    except BrokenStreamError as error:
        broken = error
    if stored.whole() != file.sha256:
        raise _changed(file)
    if broken:
        raise broken


class _Digesting:
    """A stream, or the next ``limit`` bytes of one, that digests what is read from it."""

    def __init__(self, stream: BinaryIO, limit: int | None = None) -> None:
        self._stream = stream
        self._left = limit
        self._digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size if self._left is None else min(size, self._left))
        if self._left is not None:
            self._left -= len(data)
        self._digest.update(data)
        return data

    def whole(self) -> str:
        """SHA-256 of all of it, what was not read before included."""
        while self.read(_DIGEST_BYTES):
            pass
        return self._digest.hexdigest()


def _lines(pieces: Iterator[bytes], max_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """Split into lines: offset, bytes (cut off beyond ``max_bytes``) and true size, line ends left out."""
    offset, held, size = 0, bytearray(), 0
    for chunk in pieces:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if size:
                held += chunk[start : min(end, start + max(0, max_bytes - len(held)))]
                size += end - start
                yield offset, bytes(held), size
                offset += size + 1
                held.clear()
                size = 0
            else:
                yield offset, chunk[start : min(end, start + max_bytes)], end - start
                offset += end - start + 1
            start = end + 1
        held += chunk[start : start + max(0, max_bytes - len(held))]
        size += len(chunk) - start
    if size:
        yield offset, bytes(held), size


def _parse(raw: bytes, source: SourceConfig) -> tuple[str, str]:
    """Return text and id of a line of JSON."""
    record = _load(raw, source.id_field)
    if not isinstance(record, dict):
        raise _BadRecordError(f"not a JSON object but {type(record).__name__}")
    text = _text_of(record, source.text_field)
    return text, _id_of(record, source.id_field)


def _load(raw: bytes, id_field: str) -> Any:
    """Parse JSON: twice as fast by orjson, which is stricter; what it refuses, ``json`` reads or explains."""
    try:
        record = orjson.loads(raw)
        if not (id_field and isinstance(record, dict) and isinstance(record.get(id_field), float)):
            return record  # orjson makes a float of an integer that takes more than 64 bits
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(_decode(raw))
    except (ValueError, RecursionError) as error:
        raise _BadRecordError(f"broken JSON: {error}") from None


def _text_of(record: dict[str, Any], name: str) -> str:
    if name not in record:
        raise _BadRecordError(f"no field {name!r}")
    text = record[name]
    if not isinstance(text, str):
        raise _BadRecordError(f"field {name!r} is not text but {type(text).__name__}")
    return text


def _id_of(record: dict[str, Any], name: str) -> str:
    if not name:
        return ""
    value = record.get(name)
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise _BadRecordError(f"field {name!r} names no record: {value!r:.80}")
    return str(value).encode("utf-8", "replace").decode("utf-8")


# --- Parquet ---------------------------------------------------------------------------------------


def _read_parquet(
    file: SourceFile, source: SourceConfig, limits: LimitsConfig
) -> Iterator[Record | Quarantined]:
    columns = list(dict.fromkeys(name for name in (source.text_field, source.id_field) if name))
    with file.open() as stream:
        try:
            parquet = pq.ParquetFile(stream, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            _raise_if_passing(error)
            yield Quarantined(
                0, None, f"damaged Parquet file: {error}", num_bytes=file.num_bytes, breaks_off=True
            )
        else:
            _check_columns(parquet, columns, file)
            part = groups_within(parquet.metadata, file.start, file.start + file.num_bytes)
            yield from _read_groups(parquet, part, columns, source, limits, file.num_bytes)
    with file.open() as stream:  # its pages were read in no order that could be digested on the way
        if part_digest(stream, file.start, file.start + file.num_bytes) != file.sha256:
            raise _changed(file)


def _raise_if_passing(error: Exception) -> None:
    """Raise ``error`` again if it is of the disk or the network: a broken file must look broken every time.

    Arrow tells of broken content by an OSError without a number.
    """
    if isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "errno", None) is not None:
        raise error


def _read_groups(
    parquet: pq.ParquetFile,
    part: GroupsPart,
    columns: list[str],
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
            for batch in parquet.iter_batches(_ROWS_AT_A_TIME, [group], columns):
                for row in _rows(batch, source, limits, index):
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
            yield Quarantined(index, None, _expands(limits), b"", num_bytes, left, breaks_off=is_whole)
            return
        except (OSError, OverflowError, pa.ArrowException) as error:
            _raise_if_passing(error)
            reason = f"damaged Parquet row group {group}: {error}"
        if index < after:
            yield Quarantined(index, None, reason, num_records=after - index)
        first = after


def _check_columns(parquet: pq.ParquetFile, columns: list[str], file: SourceFile) -> None:
    names = parquet.schema_arrow.names
    for column in columns:
        if names.count(column) != 1:
            how_many = "several columns" if column in names else "no column"
            raise DataError(
                f"Parquet file {file.name} of source {file.source!r} has {how_many} {column!r}",
                found=", ".join(names),
                remedy="Name columns of the file in the fields of this source, or of this evaluation set.",
            )


def _rows(
    batch: pa.RecordBatch, source: SourceConfig, limits: LimitsConfig, start: int
) -> Iterator[Record | Quarantined]:
    texts = _values(batch.column(source.text_field))
    names = _values(batch.column(source.id_field)) if source.id_field else [None] * len(texts)
    for index, (value, name) in enumerate(zip(texts, names, strict=True), start):
        raw = value if isinstance(value, bytes) else b""
        try:
            if len(raw) > limits.max_record_bytes:
                raise _BadRecordError(_too_large(limits))
            text = _decode(value) if isinstance(value, bytes) else value
            name = _decode(name) if isinstance(name, bytes) else name
            record = {source.text_field: text, **({source.id_field: name} if source.id_field else {})}
            yield Record(index, _id_of(record, source.id_field), _text_of(record, source.text_field))
        except _BadRecordError as error:
            yield _quarantine(index, None, str(error), raw)


def _values(column: pa.Array) -> list[Any]:
    # As bytes, so that one string that is not UTF-8 does not take the whole batch with it.
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


# --- reasons ---------------------------------------------------------------------------------------


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _BadRecordError(f"not UTF-8: {error.reason} at byte {error.start}") from None


def _too_large(limits: LimitsConfig) -> str:
    return f"larger than {limits.max_record_bytes} bytes (limits.max_record_bytes)"


def _expands(limits: LimitsConfig) -> str:
    return f"expands more than {limits.max_expansion:g} times (limits.max_expansion)"


def _quarantine(
    index: int, offset: int | None, reason: str, raw: bytes, num_bytes: int | None = None
) -> Quarantined:
    size = len(raw) if num_bytes is None else num_bytes
    return Quarantined(index, offset, reason, raw[:RAW_BYTES_KEPT], size)


def _changed(file: SourceFile) -> DataError:
    return DataError(
        f"file {file.name} of source {file.source!r} changed while it was being read",
        remedy="Run again when nothing writes to it.",
    )
