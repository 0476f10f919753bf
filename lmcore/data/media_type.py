"""Media types: parsing of Content-Type fields, and sniffing where there is none.

Both follow the WHATWG standards (Fetch, "extract a MIME type"; MIME Sniffing, "unknown MIME type").
"""

from __future__ import annotations

import codecs
import re

HTML_TYPES = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml")
TEXT_TYPES = ("text/plain",)
# Servers write these where they do not know the type.
_UNKNOWN = ("unknown/unknown", "application/unknown", "*/*")
# Named in the books; anything else is one of "another media type", so that an archive cannot invent names.
_NAMED = (
    *(f"application/{kind}" for kind in ("javascript", "json", "octet-stream", "pdf", "xml", "zip")),
    *(f"application/{kind}" for kind in ("rss+xml", "atom+xml", "x-javascript", "ld+json")),
    *(f"text/{kind}" for kind in ("css", "csv", "javascript", "xml", "dns", "calendar", "markdown")),
)
_FAMILIES = ("image", "audio", "video", "font")

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"\s*({_NAME}/{_NAME})\s*$")
# Commas and semicolons inside of quotes separate nothing.
_MEMBER = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*(?:"|$))+')
_PARAMETER = re.compile(r';\s*([^=;\s]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"?|([^;]*))')

_TAGS = (
    b"!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE|A|STYLE|TITLE|B|BODY|BR|P"  # of the standard
    b"|META|LINK|MAIN|ARTICLE|SECTION|HEADER|NAV|UL|OL|SPAN|H2|IMG|CENTER|FORM"
)
_HTML = re.compile(rb"[\t\n\x0c\r ]*(?:<(?:" + _TAGS + rb")[\s>/]|<!--)", re.IGNORECASE)
_XHTML = re.compile(
    rb"[\t\n\x0c\r ]*<\?xml[^>]*>.{0,1000}?<(?:!DOCTYPE\s+)?html\b", re.IGNORECASE | re.DOTALL
)
_SIGNATURES = (
    (b"%PDF-", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"BM", "image/bmp"),
    (b"RIFF", "image/webp"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"wOF", "font/woff"),
    (b"PK\x03\x04", "application/zip"),
)
_XML = re.compile(rb"[\t\n\x0c\r ]*<\?xml")
_BINARY_BYTES = bytes([*range(0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)])
_SNIFFED_BYTES = 1445


def parse(field: str) -> tuple[str, str]:
    """Media type (lower case) and charset of a Content-Type field; empty where it has none that is valid.

    Of several, joined by commas, the last valid one counts; a charset stays as long as the type does.
    """
    media = charset = ""
    for member in _MEMBER.findall(field):
        found = _TYPE.match(member.partition(";")[0])
        if not found or found[1] == "*/*":
            continue
        parameters = {
            name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(member)[::-1]
        }
        named = parameters.get("charset", "").strip(" \t\"'")
        essence = found[1].lower()
        charset = named or (charset if essence == media else "")
        media = essence
    return ("", "") if media in _UNKNOWN else (media, charset)


def sniff(content: bytes) -> str:
    """Media type of ``content`` by its first bytes."""
    content = content[:_SNIFFED_BYTES]
    for mark in (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if content.startswith(mark):
            is_utf8 = mark == codecs.BOM_UTF8
            text = content[len(mark) :] if is_utf8 else content.replace(b"\0", b"")[2:]
            return "text/html" if begins_html(text) else "text/plain"
    if begins_html(content):
        return "text/html"
    if _XML.match(content):
        return "text/xml"
    for signature, media in _SIGNATURES:
        if content.startswith(signature):
            return media
    return "application/octet-stream" if has_binary(content) else "text/plain"


def begins_html(content: bytes) -> bool:
    """Whether ``content`` begins as HTML does, or is XML with an html element near its start."""
    return bool(_HTML.match(content) or _XHTML.match(content))


def has_binary(content: bytes) -> bool:
    """Whether ``content`` has a byte that no text in an encoding like ASCII has."""
    return len(content.translate(None, _BINARY_BYTES)) < len(content)


def is_certainly_text(content: bytes) -> bool:
    """Whether ``content`` cannot be compressed: no binary byte, and HTML or valid UTF-8."""
    if has_binary(content):
        return False
    if begins_html(content):
        return True
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def name_of(media: str) -> str:
    """``media`` as the books name it: one of few."""
    family = media.partition("/")[0]
    return family if family in _FAMILIES else media if media in _NAMED else "another media type"
