"""Uncompress a stream in bounded memory, giving all that can be had before any damage.

Arrow's reader tells of truncation but loses the last chunk before it, and zstandard's stream reader takes a
cut-off frame for the end; so both formats are fed by hand here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import zstandard

_CHUNK_BYTES = 1 << 20
_GZIP_INPUT_BYTES = 1 << 16
# zstd's one-shot interface has no bound on its output; a block of 4 bytes makes at most 128 KiB, so this much
# input makes at most 32 MiB.
_ZSTD_INPUT_BYTES = 1 << 10
_GZIP_FORMAT = 31
_LINE_FEED, _RETURN = b"\n\r"


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes; none at the end."""
        ...


class BrokenStreamError(Exception):
    """The rest of a stream cannot be read; the message is the reason."""


def chunks(stream: Readable, suffix: str) -> Iterator[bytes]:
    """Yield the uncompressed bytes of ``stream``: by ``suffix`` gzip, zstd or as is.

    Raises:
        BrokenStreamError: it is damaged or ends early; what came before was yielded.
    """
    if suffix.endswith(".gz"):
        return _frames(stream, "gzip", lambda: zlib.decompressobj(_GZIP_FORMAT), _GZIP_INPUT_BYTES)
    if suffix.endswith(".zst"):
        return _frames(stream, "zstd", zstandard.ZstdDecompressor().decompressobj, _ZSTD_INPUT_BYTES)
    return iter(lambda: stream.read(_CHUNK_BYTES), b"")


def peek(pieces: Iterator[bytes], is_enough: Callable[[bytes], bool]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes of a stream, as many as are enough or there are, and all of the stream."""
    head, taken, broken = b"", [], None
    try:
        for piece in pieces:
            taken.append(piece)
            head += piece
            if is_enough(head):
                break
    except BrokenStreamError as error:
        broken = error
    return head, _again(taken, pieces, broken)


def _again(taken: list[bytes], pieces: Iterator[bytes], broken: BrokenStreamError | None) -> Iterator[bytes]:
    while taken:
        yield taken.pop(0)  # held no longer than need be
    if broken:
        raise broken
    yield from pieces


def lone_returns(chunk: bytes) -> int:
    """Carriage returns in ``chunk`` that no line feed follows in it."""
    if b"\r" not in chunk:
        return 0
    data = np.frombuffer(chunk, np.uint8)
    places = np.flatnonzero(data == _RETURN)
    followed = places[:-1] if places[-1] == len(data) - 1 else places
    return len(places) - int(np.count_nonzero(data[followed + 1] == _LINE_FEED))


def _after_zeros(stream: Readable, input_bytes: int) -> bytes:
    while data := stream.read(input_bytes):
        if rest := data.lstrip(b"\0"):
            return rest
    return b""


def _frames(stream: Readable, kind: str, new_frame: Callable[[], Any], input_bytes: int) -> Iterator[bytes]:
    frame, fed, waiting = new_frame(), True, b""  # a file of no bytes is a truncated one
    while True:
        data = waiting or stream.read(input_bytes)
        if not data:
            break
        fed = True
        try:
            if kind == "gzip":
                output, waiting = frame.decompress(data, _CHUNK_BYTES), frame.unconsumed_tail
            else:
                output, waiting = frame.decompress(data), b""
        except (zlib.error, zstandard.ZstdError) as error:
            window = " (compressed with --long? without it, it can be read)" if "memory" in str(error) else ""
            raise BrokenStreamError(f"damaged {kind}: {error}{window}") from None
        if output:
            yield output
        if frame.eof:
            # Both formats allow several frames one after another, and tapes pad a gzip file with zeros.
            rest = frame.unused_data
            if kind == "gzip":
                rest = rest.lstrip(b"\0") or _after_zeros(stream, input_bytes)
            frame, fed, waiting = new_frame(), False, rest
    if fed:
        raise BrokenStreamError(f"truncated {kind}")
