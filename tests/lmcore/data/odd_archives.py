"""Archives of records that are lawful and odd, each with what should become of it."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import brotli

WORDS = ["mill", "stone", "flour", "wheel", "river", "grain", "the", "turns", "bread", "d\u00e9j\u00e0"]


@dataclass(frozen=True)
class Odd:
    """A record.

    Attributes:
        raw: Its bytes, with the line ends behind it.
        text: That of the page in it; None if there is none, or if it cannot be read.
        is_page: Whether it is one of the documents in.
        type: Its WARC-Type, in lower case.
    """

    raw: bytes
    text: str | None
    is_page: bool
    type: str


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)


# Content-Encoding, and what makes a body of it; whether it can be read
BODIES = [
    ("", bytes, True),
    ("gzip", gzip.compress, True),
    ("X-GZIP", gzip.compress, True),
    ("deflate", zlib.compress, True),
    ("Deflate", _deflate, True),
    ("br", brotli.compress, True),
    ("gzip, br", lambda data: brotli.compress(gzip.compress(data)), True),
    ("gzip", bytes, True),  # stored decoded
    ("identity", bytes, True),
    ("gzip", lambda data: gzip.compress(data)[:-12], False),
    ("br", lambda data: brotli.compress(data)[:-9], False),
    ("sdch", lambda data: zlib.compress(data)[2:], False),
    ("", lambda data: zlib.compress(data)[2:], False),  # without a word
]
# HTTP's Content-Type and fields of the archive; whether the body is HTML, or a page at all
TYPES = [
    ("Content-Type: text/plain; charset=utf-8", "", False),
    ("content-type:TEXT/PLAIN;CHARSET=UTF-8", "", False),
    ("Content-Type: text/plain,\r\n text/plain; charset=utf-8", "", False),
    ("Server: x", "WARC-Identified-Payload-Type: text/plain", False),
    ("Content-Type: text/html; charset=utf-8", "", True),
    ("Content-Type: text/html, text/html; charset=utf-8", "", True),
    ("CONTENT-TYPE :\tApplication/XHTML+XML", "", True),
    ("Server: x", "warc-identified-payload-type: text/html", True),
    ("Server: x", "", True),
    ("Content-Type: image/png", "", None),
    ("Content-Type: application/pdf", "", None),
    ("Content-Type: x/unheard-of", "", None),
]
STATUSES = [
    ("200 OK", True),
    ("200", True),
    ("203 x", True),
    ("404 Not Found", False),
    ("206 Partial", False),
]
MEDIA = ["application/http; msgtype=response", "Application/HTTP", "application/http;msgtype=response", ""]


def records(count: int, seed: int) -> Iterator[Odd]:
    """Yield ``count`` of them."""
    draw = random.Random(seed)
    for number in range(count):
        text = f"{number} " + " ".join(draw.choices(WORDS, k=60))
        odd = draw.random()
        if odd < 0.1:
            kind = draw.choice(["warcinfo", "request", "metadata", "revisit", "unheard-of"])
            yield Odd(_record(draw, kind, "", "application/warc-fields", b"a: b\r\n"), None, False, kind)
        elif odd < 0.25:
            kind = draw.choice(["conversion", "resource"])
            media, is_page = draw.choice(
                [("text/plain", True), ("Text/Plain; charset=utf-8", True), ("image/gif", False)]
            )
            yield Odd(_record(draw, kind, "", media, text.encode()), text if is_page else None, is_page, kind)
        else:
            yield _response(draw, text)


def _response(draw: random.Random, text: str) -> Odd:
    line_end = draw.choice(["\r\n", "\n"])
    version = draw.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/2", "HTTP/2.0"])
    status, is_page = draw.choice(STATUSES) if draw.random() < 0.4 else STATUSES[0]
    media, of_archive, is_html = draw.choice(TYPES)
    coding, code, is_whole = draw.choice(BODIES)
    content = f"<!DOCTYPE html><html><body><main><p>{text}</p></main></body></html>" if is_html else text
    body = code(content.encode())
    fields = [media, *([f"Content-Encoding: {coding}"] if coding else [])]
    if draw.random() < 0.2:
        fields.append("Transfer-Encoding: chunked")
        body = _chunked(body) if draw.random() < 0.5 else body
    draw.shuffle(fields)
    head = "\r\n".join((f"{version} {status}", *fields, "", "")).replace("\r\n", line_end)
    raw = _record(draw, "response", of_archive, draw.choice(MEDIA), head.encode() + body)
    if not is_whole and is_html is not None and not coding and media == "Server: x" and not of_archive:
        is_page = False  # what is sniffed and is no text is no page
    is_page = is_page and is_html is not None
    return Odd(raw, text if is_page and is_whole else None, is_page, "response")


def _record(draw: random.Random, kind: str, more: str, media: str, block: bytes) -> bytes:
    case = draw.choice([str, str.lower, str.upper, str.title])
    colon = draw.choice([": ", ":", ":\t", " : "])
    fields = {"WARC-Type": kind, "WARC-Target-URI": "http://mill.example/"}
    fields |= {"WARC-Record-ID": "<urn:uuid:11111111-1111-1111-1111-111111111111>"}
    fields |= {"WARC-Date": "2024-01-01T00:00:00Z", "Content-Length": str(len(block))}
    fields |= {"Content-Type": media} if media else {}
    lines = [f"{case(name)}{colon}{value}" for name, value in fields.items()] + ([more] if more else [])
    lines += ["X-Folded: one\r\n two"] if draw.random() < 0.3 else []
    draw.shuffle(lines)
    version = draw.choice(["WARC/1.0", "WARC/1.1", "WARC/0.18", "WARC/0.17"])
    head = "\r\n".join((version, *lines, "", "")).replace("\r\n", draw.choice(["\r\n", "\n"]))
    return head.encode() + block + b"\r\n\r\n"
