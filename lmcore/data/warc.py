"""Find the records of a web archive (ISO 28500), whatever is damaged, and the pages in them.

Records are framed by hand: readers of archives stop at damage or skip it without a word. Here the next record
is looked for: in gzip at the next member that begins one, else at the next line that does. A record is given
when what follows it is in order, so that a member's checksum has been compared.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from lmcore.data.streams import Readable

_INPUT_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_MAX_HEAD_BYTES = 1 << 16
_GZIP_FORMAT = 31
_GZIP_MAGIC = b"\x1f\x8b\x08"
_VERSION = b"WARC/"
_NEXT = b"\nWARC/1."
_HEAD_END = b"\r\n\r\n"
_WRONG_LENGTH = "does not end where its Content-Length says"
_HTML = ("text/html", "application/xhtml+xml")
_TEXT = ("text/plain",)


@dataclass(frozen=True)
class Framed:
    """A record of an archive.

    Attributes:
        offset: Where it starts in the file as stored; in gzip, where its member does.
        head: Its own header lines.
        block: What it holds, as far as it is not larger than asked for.
        num_bytes: True size of the block.
    """

    offset: int
    head: bytes
    block: bytes
    num_bytes: int

    def field(self, name: str) -> str:
        """Value of a header field, or an empty text."""
        for line in self.head.split(b"\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip().decode("utf-8", "replace")
        return ""


@dataclass(frozen=True)
class Lost:
    """What could not be read.

    Attributes:
        offset: As that of a record.
        reason: What is wrong.
        raw: Its first bytes, uncompressed where that was possible.
        num_bytes: As far as it was seen.
        breaks_off: Whether nothing can be read from here on.
    """

    offset: int
    reason: str
    raw: bytes = b""
    num_bytes: int = 0
    breaks_off: bool = False


@dataclass(frozen=True)
class Page:
    """What was fetched from an address.

    Attributes:
        url: Its address.
        content: Its bytes, without HTTP's encodings.
        charset: As HTTP names it; may be empty.
        is_html: Whether it is HTML, or plain text.
    """

    url: str
    content: bytes
    charset: str
    is_html: bool


class BrokenPageError(Exception):
    """What was fetched cannot be read; the message is the reason."""


# --- pages -----------------------------------------------------------------------------------------


def page_of(record: Framed, max_bytes: int) -> Page | None:
    """The page in ``record``; None if it holds something else, or what a server said instead of a page.

    Its content is cut off behind ``max_bytes`` + 1, so that it can be seen to be too large.

    Raises:
        BrokenPageError: it is no HTTP, or cannot be uncompressed.
    """
    kind, url = record.field("WARC-Type"), record.field("WARC-Target-URI").strip("<>")
    if kind in ("conversion", "resource"):
        media, _, parameters = record.field("Content-Type").partition(";")
        charset = parameters.partition("charset=")[2].strip(' "')
        return _page(url, record.block[: max_bytes + 1], media, charset)
    if kind != "response" or not record.field("Content-Type").startswith("application/http"):
        return None
    head, _, _ = record.block.partition(_HEAD_END)
    status = head.split(None, 2)[1:2]
    if not head.startswith(b"HTTP/") or not status or not status[0].isdigit():
        raise BrokenPageError("no HTTP response in it")
    if not 200 <= int(status[0]) < 300:
        return None
    return _fetched(record, url, max_bytes)


def _fetched(record: Framed, url: str, max_bytes: int) -> Page | None:
    from fastwarc.warc import ArchiveIterator

    raw = record.head + _HEAD_END + record.block + _HEAD_END
    for how in ("all", "none"):
        try:
            for found in ArchiveIterator(io.BytesIO(raw), auto_decode=how):
                page = _page(url, b"", found.http_content_type or "", found.http_charset or "")
                if not page:
                    return None
                content = found.reader.read(max_bytes + 1)
                # Crawlers that store a page decoded often leave the header that says it is encoded.
                if how == "none" and b"\0" in content[:_INPUT_BYTES]:
                    break
                return Page(url, content, page.charset, page.is_html)
        except (OSError, ValueError):
            continue
    raise BrokenPageError("damaged HTTP response")


def _page(url: str, content: bytes, media: str, charset: str) -> Page | None:
    media = media.strip().lower()
    return Page(url, content, charset, media in _HTML) if media in (*_HTML, *_TEXT) else None


# --- records ---------------------------------------------------------------------------------------


class ExpandsError(Exception):
    """A compressed archive holds more than its size lets expect."""


def records(stream: Readable, *, gzip: bool, max_bytes: int, max_total_bytes: int) -> Iterator[Framed | Lost]:
    """Yield the records of an archive, and what is lost between them.

    Args:
        stream: The file as stored.
        gzip: Whether it is compressed, each record alone.
        max_bytes: How much of a block is kept, and one byte more.
        max_total_bytes: What a compressed file may expand to.

    Raises:
        ExpandsError: it expands to more; what came before was yielded.
    """
    pieces = _members(stream, max_bytes, max_total_bytes) if gzip else _plain(stream)
    reader = _Reader(pieces, follows=not gzip)
    while reader.go_to_next():
        yield reader.broken() if reader.is_broken else _frame(reader, max_bytes)


@dataclass(frozen=True)
class _Piece:
    """Some uncompressed bytes, with the ``offset`` of the member that they begin; or damage in their place.

    Damage has a reason, and is ``inside`` a member if some of that was given before.
    """

    data: bytes
    offset: int | None = None
    reason: str = ""
    raw: bytes = b""
    inside: bool = False
    breaks_off: bool = False

    @property
    def opens(self) -> bool:
        """Whether no record can go on beyond here."""
        return bool(self.reason) or (self.offset is not None and self.data.startswith(_VERSION))


def _plain(stream: Readable) -> Iterator[_Piece]:
    while data := stream.read(_CHUNK_BYTES):
        yield _Piece(data)


class _Window:
    """Bytes of a stream by position, as long as they are not forgotten."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._held = bytearray()
        self.start = 0

    def read(self, place: int, size: int) -> bytes:
        while len(self._held) < place + size - self.start:
            data = self._stream.read(_INPUT_BYTES)
            if not data:
                break
            self._held += data
        return bytes(self._held[place - self.start : place - self.start + size])

    def forget(self, place: int) -> None:
        del self._held[: place - self.start]
        self.start = max(self.start, place)


def _members(stream: Readable, keep_bytes: int, max_total_bytes: int) -> Iterator[_Piece]:
    """Uncompress member by member; after damage go on at the next one that begins a record."""
    window, start, total = _Window(stream), 0, 0
    while head := window.read(start, _INPUT_BYTES):
        if padding := len(head) - len(head.lstrip(b"\0")):
            start += padding
            continue
        member, place, offset = zlib.decompressobj(_GZIP_FORMAT), start, start
        try:
            while not member.eof:
                data = window.read(place, _INPUT_BYTES)
                if not data:
                    raise zlib.error("truncated")
                place += len(data)
                while data and not member.eof:
                    output = member.decompress(data, _CHUNK_BYTES)
                    data = member.unconsumed_tail
                    total += len(output)
                    if total > max_total_bytes:
                        raise ExpandsError
                    if output:
                        yield _Piece(output, offset)
                        offset = None
                window.forget(max(window.start, start, place - keep_bytes))
            start = place - len(member.unused_data)
        except zlib.error as error:
            begun, start = start, _next_member(window, start + 1)
            reason = "truncated gzip" if str(error) == "truncated" else f"damaged gzip: {error}"
            raw = head[:_MAX_HEAD_BYTES]
            yield _Piece(b"", begun, reason, raw, inside=offset is None, breaks_off=start is None)
            if start is None:
                return


def _next_member(window: _Window, place: int) -> int | None:
    place = max(place, window.start)
    while data := window.read(place, _INPUT_BYTES):
        at = data.find(_GZIP_MAGIC)
        if at < 0:
            place += max(1, len(data) - len(_GZIP_MAGIC) + 1)
        elif _begins_record(window.read(place + at, _INPUT_BYTES)):
            return place + at
        else:
            place += at + 1
        window.forget(place)
    return None


def _begins_record(data: bytes) -> bool:
    try:
        return zlib.decompressobj(_GZIP_FORMAT).decompress(data, len(_VERSION)) == _VERSION
    except zlib.error:
        return False


class _Reader:
    """Uncompressed bytes, up to where a record must begin."""

    def __init__(self, pieces: Iterator[_Piece], *, follows: bool) -> None:
        self._pieces = pieces
        self.follows = follows  # whether an offset grows with what is taken
        self._next: _Piece | None = None
        self._ended = False
        self.buffer = bytearray()
        self.offset = 0

    def fill(self) -> bool:
        """Take one piece more into the buffer; False where a record must begin, or at the end."""
        if self._next or self._ended:
            return False
        piece = next(self._pieces, None)
        if piece is None:
            self._ended = True
        elif piece.opens:
            self._next = piece
        else:
            self.buffer += piece.data
        return bool(piece) and not self._next

    def take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        self.offset += len(data) if self.follows else 0
        return data

    def put_back(self, data: bytes) -> None:
        self.buffer[:0] = data
        self.offset -= len(data) if self.follows else 0

    def skip_line_ends(self) -> None:
        while True:
            size = 0
            while self.buffer[size : size + 1] in (b"\r", b"\n"):
                size += 1
            self.take(size)
            if len(self.buffer) >= len(_VERSION) or not self.fill():
                return

    def go_to_next(self) -> bool:
        """Go to the next record; False if there is none."""
        self.skip_line_ends()
        if self.buffer:
            return True
        if self._next and not self._next.reason:
            self.buffer += self._next.data
            self.offset = self._next.offset or 0
            self._next = None
        return bool(self.buffer or self._next)

    @property
    def is_broken(self) -> bool:
        """Whether damage, and nothing before it, is next."""
        return not self.buffer and bool(self._next and self._next.reason)

    @property
    def is_broken_inside(self) -> bool:
        """Whether damage is next, in the member that was being read."""
        return self.is_broken and bool(self._next and self._next.inside)

    @property
    def ends_here(self) -> bool:
        """Whether the file ends with the buffer."""
        return self._ended

    def broken(self, offset: int | None = None, raw: bytes = b"", num_bytes: int = 0) -> Lost:
        """What is lost by the damage that is next, from ``offset`` on."""
        piece, self._next = self._next, None
        assert piece is not None  # noqa: S101 - is_broken says so
        place = (piece.offset or 0) if offset is None else offset
        raw = raw or piece.raw
        return Lost(place, piece.reason, raw, num_bytes or len(raw), piece.breaks_off)

    def resume(self) -> int:
        """Drop what is before the next line that begins a record; return how many bytes."""
        dropped = 0
        while (at := self.buffer.find(_NEXT)) < 0:
            # The line may have begun in what is held.
            dropped += len(self.take(max(0, len(self.buffer) - len(_NEXT))))
            if not self.fill():
                return dropped + len(self.take(len(self.buffer)))
        return dropped + len(self.take(at + 1))


def _frame(reader: _Reader, max_bytes: int) -> Framed | Lost:
    """Read the record that begins here, and whether what follows it is in order."""
    offset = reader.offset
    while (end := reader.buffer.find(_HEAD_END)) < 0 and len(reader.buffer) < _MAX_HEAD_BYTES:
        if not reader.fill():
            break
    head = bytes(reader.buffer[:end])
    length = Framed(offset, head, b"", 0).field("Content-Length")
    if end < 0 or not head.startswith(_VERSION) or not length.isdecimal():
        return _lose(reader, offset, b"", "no header of a WARC record")
    reader.take(end + len(_HEAD_END))
    size, seen, block = int(length), 0, bytearray()
    while seen < size:
        if not reader.buffer and not reader.fill():
            reason = "ends before its Content-Length"
            return _lose(reader, offset, head + _HEAD_END + block, reason, size <= max_bytes)
        data = reader.take(size - seen)
        if size > max_bytes and reader.follows and (at := data.find(_NEXT)) >= 0:
            # Too large to be kept: a wrong length is likelier than an archive in an archive.
            reader.put_back(data[at + 1 :])
            return Lost(offset, _WRONG_LENGTH, head + _HEAD_END + block, seen + at + 1)
        block += data[: max(0, max_bytes + 1 - len(block))]
        seen += len(data)
    reader.skip_line_ends()
    if reader.is_broken_inside:
        return reader.broken(offset, head + _HEAD_END + block, seen)
    if bytes(reader.buffer[: len(_VERSION)]) != _VERSION[: len(reader.buffer)]:
        return _lose(reader, offset, head + _HEAD_END + block, _WRONG_LENGTH, size <= max_bytes)
    return Framed(offset, head, bytes(block), size)


def _lose(reader: _Reader, offset: int, read: bytes, reason: str, is_whole: bool = False) -> Lost:
    """Give a record up. The next one may begin in what was ``read`` of it, if that is the whole."""
    raw = (read + bytes(reader.buffer[:_MAX_HEAD_BYTES]))[:_MAX_HEAD_BYTES]
    if reader.is_broken_inside:
        return reader.broken(offset, raw, len(read))
    if is_whole and (at := read.find(_NEXT)) >= 0:
        reader.put_back(read[at + 1 :])
        return Lost(offset, reason, raw[: at + 1], at + 1)
    num_bytes = len(read) + reader.resume()
    if reader.is_broken_inside:
        return reader.broken(offset, raw, num_bytes)
    return Lost(offset, reason, raw, num_bytes, breaks_off=not reader.buffer and reader.ends_here)
