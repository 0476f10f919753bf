"""HTTP responses as archives store them: header fields, transfer and content codings (RFC 9110, RFC 9112).

Archives differ from the wire. Some crawlers store a body decoded and leave the field that says it is encoded;
so a body that cannot be decoded is taken as it is if it is text beyond doubt. Any other is damaged: what is
whole is told from what is not, and a part is never taken for the whole.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lmcore.data.media_type import is_certainly_text

HEAD_END = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(rb"\r?\n")
STATUS_LINE = re.compile(rb"\s*HTTP(?:/\d+(?:\.\d+)?)?[ \t]+(\d{3})(?![0-9])[^\n]*", re.IGNORECASE)
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
_PADDING = b"\0\r\n\t "
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_INPUT_BYTES = 1 << 10  # see lmcore.data.streams
_IDENTITY = ("", "identity", "none")


class BrokenMessageError(Exception):
    """A response cannot be read; the message is the reason."""


class _NotDecodableError(Exception):
    """A body is not in the coding that is named; the message is the reason."""


@dataclass(frozen=True)
class Response:
    """A response, its body as stored.

    Attributes:
        status: Its code.
        fields: Header fields by name in lower case.
        body: As stored.
    """

    status: int
    fields: Mapping[str, str]
    body: bytes


def fields_of(head: bytes) -> dict[str, str]:
    """Header fields of the lines of ``head`` behind its first, by name in lower case.

    Folded lines are joined; several fields of one name are one, with commas between their values.
    """
    fields: dict[str, str] = {}
    name = ""
    for line in _LINE_END.split(head)[1:]:
        if line[:1] in (b" ", b"\t"):
            if name:
                fields[name] = f"{fields[name]} {line.strip().decode('utf-8', 'replace')}".strip()
            continue
        key, colon, value = line.partition(b":")
        if not colon:
            name = ""
            continue
        name = key.strip().lower().decode("utf-8", "replace")
        text = value.strip().decode("utf-8", "replace")
        fields[name] = f"{fields[name]}, {text}" if fields.get(name) else text
    return fields


def parse_response(block: bytes) -> Response:
    """The final response in ``block``: interim ones (1xx), and a proxy's to CONNECT, are passed over.

    Raises:
        BrokenMessageError: it is no HTTP response, or its header has no end.
    """
    while True:
        status = STATUS_LINE.match(block)
        if not status:
            raise BrokenMessageError("no HTTP response in it")
        end = HEAD_END.search(block)
        if not end:
            raise BrokenMessageError("the header of the HTTP response has no end")
        code, head, body = int(status[1]), block[: end.start()], block[end.end() :]
        tunnel = b"connection established" in status[0].lower() and STATUS_LINE.match(body)
        if not (100 <= code < 200 and code != 101) and not tunnel:
            return Response(code, fields_of(head), body)
        block = body


def decoded_body(response: Response, max_bytes: int) -> bytes:
    """Body of ``response`` without its codings; cut off behind ``max_bytes`` + 1 or a little more.

    Raises:
        BrokenMessageError: it is damaged, truncated, or in a coding that is not known.
    """
    fields, body = response.fields, response.body
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _without_chunks(body)
    codings = _codings(fields.get("content-encoding", ""))
    # gzip and deflate are transfer codings, too.
    transfer = [name for name in _codings(fields.get("transfer-encoding", "")) if name != "chunked"]
    if not codings and not transfer:
        _check_length(fields, body)
        return body
    for name in reversed(codings + transfer):
        if not body or len(body) > max_bytes:
            break
        body = _decode(name, body, max_bytes)
    return body


def _codings(field: str) -> list[str]:
    names = [name.strip().strip("\"'").lower().removeprefix("x-") for name in field.split(",")]
    return [name for name in names if name not in _IDENTITY]


def _check_length(fields: Mapping[str, str], body: bytes) -> None:
    """A body that is shorter than its Content-Length is truncated, unless it was decoded for the archive."""
    stated = {value.strip() for value in fields.get("content-length", "").split(",")}
    was_coded = any(
        name.endswith(("content-encoding", "transfer-encoding")) and _codings(value)
        for name, value in fields.items()
    )
    if was_coded or len(stated) != 1:
        return
    length = stated.pop()
    if length.isascii() and length.isdigit() and len(body) < int(length[:18]):
        raise BrokenMessageError(f"truncated HTTP body: {len(body)} of {length} bytes")


def _without_chunks(body: bytes) -> bytes:
    """Join the chunks of ``body``; as it is, if it has none."""
    parts: list[bytes] = []
    place = 0
    while head := _CHUNK.match(body, place):
        size = int(head[1], 16)
        if not size:
            return b"".join(parts)
        place = head.end() + size
        end = _LINE_END.match(body, place)
        if not end:
            break
        parts.append(body[head.end() : place])
        place = end.end()
    # One chunk in order, or the promise of more than there is: it is chunked, and not whole.
    if parts or (head and place >= len(body)):
        raise BrokenMessageError("damaged or truncated HTTP body: its last chunk is missing")
    return body


def _decode(name: str, body: bytes, max_bytes: int) -> bytes:
    decoder = _DECODERS.get(name)
    try:
        if decoder is None:
            raise _NotDecodableError(f"Content-Encoding {name[:40]!r} is not known")
        return decoder(body, max_bytes)
    except _NotDecodableError as error:
        # Crawlers that store a page decoded often leave the field that says it is encoded.
        if is_certainly_text(body):
            return body
        raise BrokenMessageError(f"undecodable HTTP body: {error}") from None


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    return _inflate_members(body, max_bytes, "gzip", 31, _GZIP_MAGIC)


def _inflate_members(body: bytes, max_bytes: int, name: str, window_bits: int, magic: bytes = b"") -> bytes:
    output = bytearray()
    while True:
        member = zlib.decompressobj(window_bits)
        try:
            output += member.decompress(body, max_bytes + 1 - len(output))
        except zlib.error:
            raise _NotDecodableError(f"damaged {name} body") from None
        if len(output) > max_bytes:
            return bytes(output)
        if not member.eof:
            raise _NotDecodableError(f"truncated {name} body")
        body = member.unused_data
        if not body.strip(_PADDING):
            return bytes(output)
        if not magic or not body.startswith(magic):
            raise _NotDecodableError(f"damaged {name} body: something follows it")


def _inflate(body: bytes, max_bytes: int) -> bytes:
    """Inflate: RFC 9110 means zlib's format, many servers send raw deflate, and a few gzip."""
    reason = "damaged deflate body"
    for window_bits in (15, -15):
        try:
            return _inflate_members(body, max_bytes, "deflate", window_bits)
        except _NotDecodableError as error:
            reason = str(error) if "truncated" in str(error) else reason
    if body.startswith(_GZIP_MAGIC):
        return _gunzip(body, max_bytes)
    raise _NotDecodableError(reason)


def _unbrotli(body: bytes, max_bytes: int) -> bytes:
    import brotli

    decoder = brotli.Decompressor()
    output = bytearray()
    try:
        output += decoder.process(body, output_buffer_limit=max_bytes + 1)
        while not decoder.is_finished() and len(output) <= max_bytes and not decoder.can_accept_more_data():
            output += decoder.process(b"", output_buffer_limit=max_bytes + 1 - len(output))
    except brotli.error:
        raise _NotDecodableError("damaged br body") from None
    if len(output) <= max_bytes and not decoder.is_finished():
        raise _NotDecodableError("truncated br body")
    return bytes(output)


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    import zstandard

    output = bytearray()
    while body.strip(_PADDING):
        frame, place = zstandard.ZstdDecompressor().decompressobj(), 0
        try:
            while not frame.eof and place < len(body) and len(output) <= max_bytes:
                output += frame.decompress(body[place : place + _ZSTD_INPUT_BYTES])
                place += _ZSTD_INPUT_BYTES
        except zstandard.ZstdError:
            raise _NotDecodableError("damaged zstd body") from None
        if len(output) > max_bytes:
            break
        if not frame.eof:
            raise _NotDecodableError("truncated zstd body")
        body = frame.unused_data + body[place:]
    return bytes(output)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
