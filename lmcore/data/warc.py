"""Find the records of a web archive (WARC 0.17 to 1.1, ISO 28500, or ARC), whatever is damaged.

Records are framed by hand: readers of archives stop at damage or skip it without a word. Here the next record
is looked for: in a compressed file at the next member that begins one, else at the next line that does. A
record is given when what follows it is in order, so that a member's checksum has been compared.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from lmcore.data.archive_formats import ARC, WARC, Format
from lmcore.data.archive_members import ExpandsError as ExpandsError
from lmcore.data.archive_members import Piece, members
from lmcore.data.http_message import fields_of
from lmcore.data.streams import Readable

_CHUNK_BYTES = 1 << 20
_MAX_HEAD_BYTES = 1 << 16
_NO_ARC = "no header of an ARC record"
_WRONG_LENGTH = "does not end where its Content-Length says"


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

    @functools.cached_property
    def _fields(self) -> dict[str, str]:
        return fields_of(self.head)

    def field(self, name: str) -> str:
        """Value of a header field, in any case (ISO 28500, 4), or an empty text."""
        return self._fields.get(name.lower(), "")


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


# --- records ---------------------------------------------------------------------------------------


def records(
    stream: Readable, *, suffix: str, max_bytes: int, max_total_bytes: int
) -> Iterator[Framed | Lost]:
    """Yield the records of an archive, and what is lost between them.

    Args:
        stream: The file as stored.
        suffix: End of its name: ``.gz`` or ``.zst`` if it is compressed, ``.arc`` before that if it is one.
        max_bytes: How much of a block is kept, and one byte more.
        max_total_bytes: What a compressed file may expand to.

    Raises:
        ExpandsError: it expands to more; what came before was yielded.
    """
    packed = next((end for end in (".gz", ".zst") if suffix.endswith(end)), "")
    archive = ARC if suffix.removesuffix(packed).endswith(".arc") else WARC
    pieces = members(stream, packed, archive, max_bytes, max_total_bytes) if packed else _plain(stream)
    reader = _Reader(pieces, archive, follows=not packed)
    while reader.go_to_next():
        yield reader.broken() if reader.is_broken else _frame(reader, max_bytes)


def _plain(stream: Readable) -> Iterator[Piece]:
    while data := stream.read(_CHUNK_BYTES):
        yield Piece(data)


class _Reader:
    """Uncompressed bytes, up to where a record must begin."""

    def __init__(self, pieces: Iterator[Piece], archive: Format, *, follows: bool) -> None:
        self._pieces = pieces
        self.archive = archive
        self.follows = follows  # whether an offset grows with what is taken
        self._next: Piece | None = None
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
        elif self._opens(piece):
            self._next = piece
        else:
            self.buffer += piece.data
        return bool(piece) and not self._next

    def _opens(self, piece: Piece) -> bool:
        """Whether no record can go on beyond here."""
        return piece.damage is not None or (piece.offset is not None and self.archive.begins(piece.data))

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
            if self.archive.is_decided(self.buffer) or not self.fill():
                return

    def go_to_next(self) -> bool:
        """Go to the next record; False if there is none."""
        self.skip_line_ends()
        if self.buffer:
            return True
        if self._next and not self._next.damage:
            self.buffer += self._next.data
            self.offset = self._next.offset or 0
            self._next = None
        return bool(self.buffer or self._next)

    @property
    def is_broken(self) -> bool:
        """Whether damage, and nothing before it, is next."""
        return not self.buffer and bool(self._next and self._next.damage)

    @property
    def is_broken_inside(self) -> bool:
        """Whether damage is next, in the member that was being read."""
        return self.is_broken and bool(self._next and self._next.damage and self._next.damage.inside)

    @property
    def ends_here(self) -> bool:
        """Whether the file ends with the buffer."""
        return self._ended

    def broken(self, offset: int | None = None, raw: bytes = b"", num_bytes: int = 0) -> Lost:
        """What is lost by the damage that is next, from ``offset`` on."""
        piece, self._next = self._next, None
        assert piece is not None and piece.damage is not None  # noqa: S101, PT018 - is_broken says so
        place = (piece.offset or 0) if offset is None else offset
        raw = raw or piece.damage.raw
        return Lost(place, piece.damage.reason, raw, num_bytes or len(raw), piece.damage.breaks_off)

    def resume(self) -> int:
        """Drop what is before the next line that begins a record; return how many bytes."""
        dropped = 0
        while (at := self.archive.next_start(self.buffer)) < 0:
            # The line may have begun in what is held.
            dropped += len(self.take(max(0, len(self.buffer) - self.archive.next_bytes)))
            if not self.fill():
                return dropped + len(self.take(len(self.buffer)))
        return dropped + len(self.take(at + 1))


def _frame(reader: _Reader, max_bytes: int) -> Framed | Lost:
    """Read the record that begins here, and whether what follows it is in order."""
    offset, archive = reader.offset, reader.archive
    while not (found := archive.head(reader.buffer)) and len(reader.buffer) < _MAX_HEAD_BYTES:
        if not reader.fill():
            break
    end, head = found or (0, b"")
    length = Framed(offset, head, b"", 0).field("Content-Length")
    if not end or not archive.begins(reader.buffer) or not (length.isascii() and length.isdecimal()):
        return _lose(reader, offset, b"", "no header of a WARC record" if archive is WARC else _NO_ARC)
    raw = reader.take(end)
    size, seen, block = int(length), 0, bytearray()
    while seen < size:
        if not reader.buffer and not reader.fill():
            reason = "ends before its Content-Length"
            return _lose(reader, offset, raw + block, reason, size <= max_bytes)
        data = reader.take(size - seen)
        if size > max_bytes and reader.follows and (at := archive.next_start(data)) >= 0:
            # Too large to be kept: a wrong length is likelier than an archive in an archive.
            reader.put_back(data[at + 1 :])
            return Lost(offset, _WRONG_LENGTH, raw + block, seen + at + 1)
        block += data[: max(0, max_bytes + 1 - len(block))]
        seen += len(data)
    reader.skip_line_ends()
    if reader.is_broken_inside:
        return reader.broken(offset, raw + block, seen)
    if not archive.begins(reader.buffer):
        return _lose(reader, offset, raw + block, _WRONG_LENGTH, size <= max_bytes)
    return Framed(offset, head, bytes(block), size)


def _lose(reader: _Reader, offset: int, read: bytes, reason: str, is_whole: bool = False) -> Lost:
    """Give a record up. The next one may begin in what was ``read`` of it, if that is the whole."""
    raw = (read + bytes(reader.buffer[:_MAX_HEAD_BYTES]))[:_MAX_HEAD_BYTES]
    if reader.is_broken_inside:
        return reader.broken(offset, raw, len(read))
    if is_whole and (at := reader.archive.next_start(read)) >= 0:
        reader.put_back(read[at + 1 :])
        return Lost(offset, reason, raw[: at + 1], at + 1)
    num_bytes = len(read) + reader.resume()
    if reader.is_broken_inside:
        return reader.broken(offset, raw, num_bytes)
    return Lost(offset, reason, raw, num_bytes, breaks_off=not reader.buffer and reader.ends_here)
