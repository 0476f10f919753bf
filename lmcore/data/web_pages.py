"""The page in a record of a web archive: HTTP taken off, and its media type found."""

from __future__ import annotations

from dataclasses import dataclass

from lmcore.data import media_type
from lmcore.data.http_message import STATUS_LINE, BrokenMessageError, decoded_body, parse_response
from lmcore.data.warc import Framed

_PAGE_STATUSES = (200, 201, 202, 203)  # 206 is a part of a page, 204 and 205 have none
_WITHOUT_PAGE = ("warcinfo", "request", "metadata", "revisit", "continuation")
_HTTP = "application/http"
_GENERIC = ("", "application/octet-stream", "binary/octet-stream", "application/x-unknown")


@dataclass(frozen=True)
class Page:
    """A fetched page.

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
    """A page cannot be read; the message is the reason."""


def page_of(record: Framed, max_bytes: int) -> Page | str:
    """The page in ``record``, or the name of what the record holds instead, of which there are few.

    Its content is cut off behind ``max_bytes`` + 1, or not decoded, where it is larger.

    Raises:
        BrokenPageError: it should hold a page, and cannot be read.
    """
    kind = record.field("WARC-Type").lower()
    if kind in _WITHOUT_PAGE:
        return kind
    if kind not in ("response", "resource", "conversion"):
        if kind:
            return "record of another type"
        raise BrokenPageError("no WARC-Type")
    url = record.field("WARC-Target-URI").strip("<>")
    media, charset = media_type.parse(record.field("Content-Type"))
    is_http = media == _HTTP or (kind == "response" and STATUS_LINE.match(record.block))
    if is_http and not media_type.begins_html(record.block):
        return _fetched(record, url, max_bytes)
    if media == _HTTP:  # HTTP/0.9, or a header that a crawler lost
        media = charset = ""
    return _page(record, url, record.block, media, charset)


def _fetched(record: Framed, url: str, max_bytes: int) -> Page | str:
    try:
        response = parse_response(record.block)
        if response.status not in _PAGE_STATUSES:
            return f"status {response.status}"
        media, charset = media_type.parse(response.fields.get("content-type", ""))
        known = media if media not in _GENERIC else _identified(record) or media
        if known and not _is_page(known):
            return media_type.name_of(known)
        if record.num_bytes > max_bytes:
            return _page(record, url, record.block, known or "text/html", charset)
        content = decoded_body(response, max_bytes)
    except BrokenMessageError as error:
        raise BrokenPageError(str(error)) from None
    return _page(record, url, content, media, charset)


def _page(record: Framed, url: str, content: bytes, media: str, charset: str) -> Page | str:
    if media in _GENERIC:
        media = _identified(record) or media or media_type.sniff(content)
    if not _is_page(media):
        return media_type.name_of(media)
    if cut := record.field("WARC-Truncated"):
        raise BrokenPageError(f"truncated by its crawler (WARC-Truncated: {cut[:40]})")
    if record.field("WARC-Segment-Number"):
        raise BrokenPageError("a segment of a page (WARC-Segment-Number)")
    return Page(url, content, charset, media in media_type.HTML_TYPES)


def _identified(record: Framed) -> str:
    """Media type by the crawler's own look at the content; empty if it did not look."""
    return media_type.parse(record.field("WARC-Identified-Payload-Type"))[0]


def _is_page(media: str) -> bool:
    return media in (*media_type.HTML_TYPES, *media_type.TEXT_TYPES)
