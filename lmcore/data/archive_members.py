"""Uncompress a web archive member by member; after damage go on at the next one that begins a record.

A member is one of gzip, or a frame of zstd. Most writers make one of each record; one for all is lawful, too.
The dictionary of a ``.warc.zst`` is a skippable frame at its start, which may be compressed itself (the
specification by IIPC and archive.org).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import zstandard

from lmcore.data.archive_formats import Format
from lmcore.data.streams import Readable

_INPUT_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_RAW_BYTES = 1 << 16
_GZIP_FORMAT = 31
_ZSTD_INPUT_BYTES = 1 << 10  # see lmcore.data.streams
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"
_SKIPPABLE = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))
_MAX_DICTIONARY_BYTES = 1 << 26
_DECIDING_BYTES = 1 << 14


class ExpandsError(Exception):
    """A compressed archive holds more than its size lets expect."""


@dataclass(frozen=True)
class Damage:
    """What is wrong with a member.

    Attributes:
        reason: What it is.
        raw: First bytes of the member.
        inside: Whether some of the member was given before.
        breaks_off: Whether nothing can be read from here on.
    """

    reason: str
    raw: bytes
    inside: bool
    breaks_off: bool


@dataclass(frozen=True)
class Piece:
    """Some uncompressed bytes, or damage in their place.

    Attributes:
        data: The bytes.
        offset: Of the member that they begin, or that is damaged; None inside of one.
        damage: What is wrong, if anything is.
    """

    data: bytes
    offset: int | None = None
    damage: Damage | None = None


class _CorruptError(Exception):
    """A member is damaged; the message is the reason."""


class _Codec(Protocol):
    name: str
    magic: bytes
    input_bytes: int

    def start(self, window: _Window, place: int) -> int:
        """Go past what is no member at ``place``; the same place if one may be there."""
        ...

    def member(self) -> Any:
        """What uncompresses a member, as zlib's object does."""
        ...

    def decompress(self, member: Any, data: bytes) -> tuple[bytes, bytes]:
        """Some of the member's bytes, and what of ``data`` is left for the next call."""
        ...


class _Gzip:
    name, magic, input_bytes = "gzip", b"\x1f\x8b\x08", _INPUT_BYTES

    def start(self, window: _Window, place: int) -> int:
        head = window.read(place, _INPUT_BYTES)  # tapes pad a file with zeros
        return place + len(head) - len(head.lstrip(b"\0"))

    def member(self) -> Any:
        return zlib.decompressobj(_GZIP_FORMAT)

    def decompress(self, member: Any, data: bytes) -> tuple[bytes, bytes]:
        try:
            return member.decompress(data, _CHUNK_BYTES), member.unconsumed_tail
        except zlib.error as error:
            raise _CorruptError(str(error)) from None


class _Zstd:
    name, magic, input_bytes = "zstd", _ZSTD_MAGIC, _ZSTD_INPUT_BYTES

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def start(self, window: _Window, place: int) -> int:
        head = window.read(place, 8)
        if not head.startswith(_SKIPPABLE) or len(head) < 8:
            return place
        size = int.from_bytes(head[4:], "little")
        if head.startswith(_DICTIONARY_MAGIC) and not place and size <= _MAX_DICTIONARY_BYTES:
            self._learn(window.read(8, size))
        return place + 8 + size

    def _learn(self, dictionary: bytes) -> None:
        try:
            if dictionary.startswith(_ZSTD_MAGIC):
                packed = zstandard.ZstdDecompressor().decompressobj()
                dictionary = b"".join(
                    packed.decompress(dictionary[i : i + _ZSTD_INPUT_BYTES])
                    for i in range(0, min(len(dictionary), _MAX_DICTIONARY_BYTES), _ZSTD_INPUT_BYTES)
                    if not packed.eof
                )
            learned = zstandard.ZstdCompressionDict(dictionary)
            self._decompressor = zstandard.ZstdDecompressor(dict_data=learned)
        except zstandard.ZstdError:
            return  # each frame that needs it tells of the damage

    def member(self) -> Any:
        return self._decompressor.decompressobj()

    def decompress(self, member: Any, data: bytes) -> tuple[bytes, bytes]:
        try:
            return member.decompress(data), b""
        except zstandard.ZstdError as error:
            raise _CorruptError(str(error)) from None


_CODECS = {".gz": _Gzip, ".zst": _Zstd}


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
        place = min(place, self.start + len(self._held))
        if place > self.start:
            del self._held[: place - self.start]
            self.start = place


def members(
    stream: Readable, packed: str, archive: Format, keep_bytes: int, max_total_bytes: int
) -> Iterator[Piece]:
    """Yield the uncompressed bytes of an archive, and what is damaged.

    Args:
        stream: The file as stored.
        packed: ``.gz`` or ``.zst``.
        archive: How its records begin.
        keep_bytes: How far back in a damaged member the next one is looked for.
        max_total_bytes: What the file may expand to.

    Raises:
        ExpandsError: it expands to more; what came before was yielded.
    """
    codec: _Codec = _CODECS[packed]()
    window, start, total = _Window(stream), 0, 0
    while head := window.read(start, _INPUT_BYTES):
        if (place := codec.start(window, start)) > start:
            start = place
            _skip(window, start)
            continue
        member, place, offset = codec.member(), start, start
        try:
            while not member.eof:
                data = window.read(place, codec.input_bytes)
                if not data:
                    raise _CorruptError("truncated")
                place += len(data)
                while data and not member.eof:
                    output, data = codec.decompress(member, data)
                    total += len(output)
                    if total > max_total_bytes:
                        raise ExpandsError
                    if output:
                        yield Piece(output, offset)
                        offset = None
                window.forget(max(start, place - keep_bytes))
            start = place - len(member.unused_data)
        except _CorruptError as error:
            begun, start = start, _next_member(window, codec, archive, start + 1)
            reason = str(error)
            reason = f"truncated {codec.name}" if reason == "truncated" else f"damaged {codec.name}: {reason}"
            damage = Damage(reason, head[:_RAW_BYTES], offset is None, start is None)
            yield Piece(b"", begun, damage)
            if start is None:
                return


def _skip(window: _Window, place: int) -> None:
    """Read up to ``place`` without keeping it."""
    while window.start < place and window.read(window.start, _INPUT_BYTES):
        window.forget(min(place, window.start + _INPUT_BYTES))


def _next_member(window: _Window, codec: _Codec, archive: Format, place: int) -> int | None:
    place = max(place, window.start)
    while data := window.read(place, _INPUT_BYTES):
        at = data.find(codec.magic)
        if at < 0:
            place += max(1, len(data) - len(codec.magic) + 1)
        elif _begins_record(codec, archive, window.read(place + at, _INPUT_BYTES)):
            return place + at
        else:
            place += at + 1
        window.forget(place)
    return None


def _begins_record(codec: _Codec, archive: Format, data: bytes) -> bool:
    member = codec.member()
    begun = b""
    try:
        while data and not member.eof and not (begun and archive.is_decided(begun)):
            fed, rest = data[: codec.input_bytes], data[codec.input_bytes :]
            output, left = codec.decompress(member, fed)
            begun += output[:_DECIDING_BYTES]
            data = left + rest
    except _CorruptError:
        if not begun:
            return False
    return bool(begun) and archive.is_decided(begun) and archive.begins(begun)
