"""Read the records of a raw file; what cannot be read becomes a quarantined record with its reason.

A ``.txt``, ``.py`` or ``.html`` file is one record, so is a line of ``.jsonl``, a row of ``.parquet``, a page
of ``.warc``. The text of a page is its main text, which may be empty. Damage in the middle of a stream keeps
the good records before it, and one quarantined record tells of the rest. In a Parquet file it stands for as
many as the rest of its row group holds, and the next group is read; in a web archive, the next record.
Memory is bounded by ``limits.max_record_bytes`` and a chunk, whatever the file expands to.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import orjson

from lmcore.config import AUTO, DETECT, LimitsConfig, SourceConfig
from lmcore.data import warc
from lmcore.data.charsets import (
    UTF_8,
    UTF_8_MARK,
    CharsetError,
    decode,
    decode_file,
    evidence_of,
    to_utf8,
)
from lmcore.data.fields import field_of, id_in, text_in
from lmcore.data.page_texts import Unread, with_texts
from lmcore.data.parquet_rows import read_parquet
from lmcore.data.record import (
    RAW_BYTES_KEPT,
    BadRecordError,
    Quarantined,
    Record,
    changed,
    expands,
    quarantine,
    too_large,
)
from lmcore.data.sources import ARCHIVE_SUFFIXES, PAGE_SUFFIXES, WHOLE_FILE_SUFFIXES, SourceFile
from lmcore.data.streams import BrokenStreamError, chunks, lone_returns, peek
from lmcore.data.web_pages import BrokenPageError, page_of

__all__ = ["RAW_BYTES_KEPT", "Quarantined", "Record", "read_records", "text_of"]

_DIGEST_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
_LONG_LINE_BYTES = 1 << 23
_LONG_TEXT = 1 << 20  # characters of a file whose text is not held beside its bytes
_LONE_RETURN = re.compile(rb"\r(?!\n)")


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
        yield from read_parquet(file, source, limits)
    elif file.suffix in PAGE_SUFFIXES:
        pages = source.encoding == AUTO  # they say for themselves
        yield _read_whole(file, source, limits, bytes if pages else None, as_bytes)
    elif file.suffix in WHOLE_FILE_SUFFIXES:
        yield _read_whole(file, source, limits, None, as_bytes)
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
            yield quarantine(record.index, record.offset, str(text), raw, record.num_bytes)


def _unread(record: Record | Quarantined) -> Unread | Quarantined:
    """A record as a page whose text is yet to be taken; its bytes are not decoded."""
    if isinstance(record, Quarantined):
        return record
    return Unread(record.index, record.id, (record.text, "", True), record.text)


def text_of(record: Record) -> str:
    """The text of ``record``, however it is given."""
    return record.text if isinstance(record.text, str) else record.text.decode("utf-8")


def _read_whole(
    file: SourceFile,
    source: SourceConfig,
    limits: LimitsConfig,
    decode_page: Callable[[bytes], str | bytes] | None,
    as_bytes: bool,
) -> Record | Quarantined:
    most = limits.max_record_bytes
    with file.open() as stream:  # of one that is too large, only what is shown
        raw = stream.read(most + 1 if file.num_bytes <= most else min(most + 1, RAW_BYTES_KEPT))
    if max(len(raw), file.num_bytes) > most:
        return quarantine(0, 0, too_large(limits), raw, file.num_bytes)
    if hashlib.sha256(raw).hexdigest() != file.sha256:
        raise changed(file)
    try:
        if decode_page:
            return Record(0, "", decode_page(raw))
        text, charset = decode_file(raw, source.encoding)
    except (BadRecordError, CharsetError) as error:
        return quarantine(0, 0, str(error), raw)
    if charset != UTF_8:
        return Record(0, "", text, charset=charset)
    if as_bytes and len(text) > _LONG_TEXT and raw.count(UTF_8_MARK) <= raw.startswith(UTF_8_MARK):
        num_chars = len(text)
        del text  # large, and made again of the bytes by those who need it
        return Record(0, "", raw.removeprefix(UTF_8_MARK), num_chars)
    return Record(0, "", text)


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
            yield Quarantined(index, None, expands(limits), b"", file.num_bytes, breaks_off=True)
        if stream.whole() != file.sha256:
            raise changed(file)


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
            raise BadRecordError(too_large(limits))
    except (BadRecordError, BrokenPageError) as error:
        return quarantine(index, found.offset, str(error), found.block, found.num_bytes)
    # An address alone is no name: archives hold what it gave at several times.
    name = f"{file.name}#{index} {page.url}"
    raw = found.block[:RAW_BYTES_KEPT]
    return Unread(index, name, (page.content, page.charset, page.is_html), raw, found.offset, found.num_bytes)


# --- lines of JSON ---------------------------------------------------------------------------------


def _read_lines(
    file: SourceFile, source: SourceConfig, limits: LimitsConfig, as_bytes: bool
) -> Iterator[Record | Quarantined]:
    with file.open() as stream:
        pieces = _checked_chunks(stream, file, limits)
        try:
            charset, pieces = to_utf8(pieces, source.encoding, _evidence(file, source, limits))
        except CharsetError as error:
            yield Quarantined(file.first_record, None, str(error), b"", file.num_bytes, breaks_off=True)
            return
        records = _records_of(pieces, file, source, limits, as_bytes)
        yield from records if charset == UTF_8 else (_as_of(charset, record) for record in records)


def _evidence(file: SourceFile, source: SourceConfig, limits: LimitsConfig) -> bytes:
    if source.encoding != DETECT:
        return b""
    with file.open() as stream:
        return evidence_of(_until_broken(_checked_chunks(stream, file, limits)))


def _until_broken(pieces: Iterator[bytes]) -> Iterator[bytes]:
    with contextlib.suppress(BrokenStreamError):  # the records say so
        yield from pieces


def _as_of(charset: str, record: Record | Quarantined) -> Record | Quarantined:
    """``record`` of a file that was in ``charset``: places in its UTF-8 are none in the file."""
    if isinstance(record, Record):
        return replace(record, charset=charset)
    reason = record.reason.partition(";")[0].replace("not UTF-8", f"not {charset}, as UTF-8")
    return replace(record, offset=None, reason=reason if reason.startswith("not ") else record.reason)


def _records_of(
    pieces: Iterator[bytes], file: SourceFile, source: SourceConfig, limits: LimitsConfig, as_bytes: bool
) -> Iterator[Record | Quarantined]:
    index, after, most = file.first_record, 0, limits.max_record_bytes
    pieces = _with_line_feeds(pieces)
    field = source.text_field if as_bytes and not source.id_field else ""
    lines = _plain_lines(pieces, field, most) if field else _lines(pieces, most)
    try:
        for offset, raw, num_bytes, *plain in lines:
            offset += file.start
            after = offset + num_bytes + 1
            if plain:
                yield Record(index, "", raw, *plain)
            elif (returns := raw.count(b"\r", 0, len(raw) - 1)) and num_bytes <= most:
                yield from _records_between_returns(index, offset, raw, source, limits)
                index += returns
            elif num_bytes > most or _without_marks(raw).strip():
                yield _record(index, offset, raw, num_bytes, source, limits)
            index += 1
    except BrokenStreamError as error:
        yield Quarantined(index, after, str(error), breaks_off=True)


def _without_marks(raw: bytes) -> bytes:
    """``raw`` without the byte order marks at its start: ``cat`` leaves them before any line."""
    while raw.startswith(UTF_8_MARK):
        raw = raw.removeprefix(UTF_8_MARK)
    return raw


def _records_between_returns(
    index: int, offset: int, raw: bytes, source: SourceConfig, limits: LimitsConfig
) -> Iterator[Record | Quarantined]:
    """The record of a line that holds carriage returns, or those between them, if one of them is JSON.

    JSON has returns between its tokens only, and old files have them as line ends.
    """
    if not raw.strip():
        return
    whole = _record(index, offset, raw, len(raw), source, limits)
    parts = _LONE_RETURN.split(raw)
    if isinstance(whole, Record) or not any(_is_json(part) for part in parts):
        yield whole
        return
    for number, part in enumerate(parts, index):
        if _without_marks(part).strip():
            yield _record(number, offset, part, len(part), source, limits)
        offset += len(part) + 1


def _is_json(raw: bytes) -> bool:
    try:
        return isinstance(_load(_without_marks(raw), ""), dict)
    except BadRecordError:
        return False


def _with_line_feeds(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """``pieces`` with line feeds for returns, if the first record ends in a return alone."""
    head, pieces = peek(pieces, lambda head: len(head) >= _LONG_LINE_BYTES or b"\n" in head.lstrip())
    line = head.lstrip().partition(b"\n")[0].removesuffix(b"\r")
    first, *others = _LONE_RETURN.split(line, maxsplit=1)
    return _fed(pieces) if others and _is_json(first) else pieces


def _fed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for piece in pieces:
        whole = held + piece
        held = b"\r" if whole.endswith(b"\r") else b""  # a line feed may follow
        yield _LONE_RETURN.sub(b"\n", whole[: len(whole) - len(held)])
    if held:
        yield b"\n"


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
        if lone_returns(block):
            yield from ((offset + start, *line) for start, *line in _lines(iter([block]), max_bytes))
            offset += len(block)
            continue
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
        return quarantine(index, offset, too_large(limits), raw, num_bytes)
    try:
        text, name = _parse(_without_marks(raw), source)
    except BadRecordError as error:
        return quarantine(index, offset, str(error), raw)
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
                raise BrokenStreamError(expands(limits))
            yield chunk
            total += len(chunk)
    except BrokenStreamError as error:
        broken = error
    if stored.whole() != file.sha256:
        raise changed(file)
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
        raise BadRecordError(f"not a JSON object but {type(record).__name__}")
    text = text_in(field_of(record, source.text_field), source.text_field)
    return text, id_in(_value_of_id(record, source.id_field), source.id_field) if source.id_field else ""


def _value_of_id(record: dict[str, Any], name: str) -> Any:
    if name in record:  # nearly always
        return record[name]
    try:
        return field_of(record, name)
    except BadRecordError:
        return None


def _load(raw: bytes, id_field: str) -> Any:
    """Parse JSON: twice as fast by orjson, which is stricter; what it refuses, ``json`` reads or explains."""
    try:
        record = orjson.loads(raw)
        is_named = id_field and isinstance(record, dict)
        if not (is_named and isinstance(_value_of_id(record, id_field), float)):
            return record  # orjson makes a float of an integer that takes more than 64 bits
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(decode(raw, UTF_8)[0])
    except CharsetError as error:
        raise BadRecordError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"broken JSON: {error}") from None
