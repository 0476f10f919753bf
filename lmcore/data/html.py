"""The main text of a web page, without menus and footers, by resiliparse (Bevendorff et al. 2018)."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator
from html import unescape

from lmcore.data.content_lists import TooDeepError, keep_content

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META_BYTES = 4096
_WHOLE_FOR_BROKEN = 10  # characters that are not ASCII
# ``alt_texts=False`` skips figures with all that is in them, code and captions too; so images are named here.
_SKIPPED = ("object", "video", "audio", "embed", "img", "area", "svg")
# No text holds many of these: what could not be decoded, and controls but for tabs and line ends.
_ASCII_CONTROLS = bytes([*range(0x09), *range(0x0E, 0x20), 0x7F])
_OTHER_CONTROL = re.compile(rb"\xc2[\x80-\x9f]")
_REPLACEMENT = "\ufffd".encode()
_UNDECODED_SHARE = 0.01
_UNDECODED_AT_LEAST = 4  # so that a short page may hold a broken letter

_ALONE = re.compile(r">\s*[\u0800-\ud7ff\uf900-\uffff](?=\s*<)")
_NAMED_ALONE = re.compile(r"&(?:#\w{1,8}|\w{2,32});(?=\s*<)")
_BEHIND_TAG = re.compile(r">\s*\Z")
_SPACES = 100  # more are not looked at
_MARK = "\x01"

RawPage = tuple[bytes | str, str, bool]  # content, charset as HTTP names it, whether it is HTML


class BadPageError(Exception):
    """A page cannot be read; the message is the reason."""


def text_of_page(page: RawPage) -> str:
    """The text of a page as it was fetched: of HTML its main text, of plain text all.

    Raises:
        BadPageError: it cannot be decoded, or its elements are nested deeper than browsers allow.
    """
    content, charset, is_html = page
    if isinstance(content, bytes):
        content = decode(content, charset)
        check_decoded(content)
    if not is_html:
        return content
    try:
        return main_text(content)
    except TooDeepError as error:
        raise BadPageError(str(error)) from None


def decode(raw: bytes, charset: str = "") -> str:
    """Decode a page: by its byte order mark, else ``charset`` (of HTTP), its own meta element, or its bytes.

    That is the order of the HTML standard; but bytes beyond ASCII that are valid UTF-8 are UTF-8 whatever is
    named, as hardly any others are, and where bytes are not in the encoding named, the next one is tried. A
    page with a few broken characters stays in its encoding, and they are replaced, as browsers do; what fits
    none is taken as Windows-1252.
    """
    from resiliparse.parse.encoding import bytes_to_str

    for mark, name in _MARKS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(name, "replace")
    if not raw.isascii() and b"\0" not in raw[:_META_BYTES]:
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode("utf-8")
    names: list[str] = []
    for name in _encodings(raw, charset):
        if name not in names:
            names.append(name)
            try:
                return raw.decode("utf-8") if name == "utf-8" else bytes_to_str(raw, name, "strict", ())
            except UnicodeDecodeError:
                continue
    for name in names:
        text = bytes_to_str(raw, name, "replace", ())
        broken = text.count("\ufffd")
        if broken * _WHOLE_FOR_BROKEN <= len(text) - broken - len(text.encode("ascii", "ignore")):
            return text
    return bytes_to_str(raw, names[0], errors="replace", fallback_encodings=("utf-8", "cp1252"))


def _encodings(raw: bytes, charset: str) -> Iterator[str]:
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    def without_utf16(name: str) -> str:
        # A page whose meta element can be read as ASCII is not UTF-16, whatever it says.
        return "utf-8" if name.startswith("utf-16") and b"\0" not in raw[:_META_BYTES] else name

    if charset and (name := map_encoding_to_html5(charset, fallback_utf8=False)):
        yield without_utf16(name)
    if b"charset" in raw[:_META_BYTES].lower() and (name := detect_encoding(raw, from_html_meta=True)):
        yield without_utf16(name)
    yield "utf-8"
    if name := detect_encoding(raw):
        yield without_utf16(name)


def check_decoded(text: str) -> None:
    """Raise BadPageError if ``text`` is no text: more than 1 % (and 4) of it are U+FFFD or controls."""
    most = max(_UNDECODED_AT_LEAST, int(_UNDECODED_SHARE * len(text)))
    raw = text.encode("utf-8", "replace")  # counting in bytes takes a third of the time
    bad = len(raw) - len(raw.translate(None, _ASCII_CONTROLS))
    if len(raw) > len(text):
        bad += raw.count(_REPLACEMENT)
        bad += len(_OTHER_CONTROL.findall(raw)) if b"\xc2" in raw else 0
    if bad > most:
        raise BadPageError(
            f"undecodable: {bad} of {len(text)} characters are U+FFFD or controls (at most {most} may be)"
        )


def main_text(page: str) -> str:
    """The text of a page without what stands around it; empty if there is none.

    Raises:
        TooDeepError: its elements are nested deeper than browsers allow.
    """
    page = _NAMED_ALONE.sub(_marked, page if page.isascii() else _ALONE.sub(_mark_behind, page))
    page = keep_content(page)
    try:
        return _extract(page)
    except TypeError:  # a lone surrogate is no text to the extractor
        return _extract(page.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


# The extractor takes any character of three bytes that is alone between tags for an icon: nearly all of
# Chinese, Japanese and Korean. It means the private use area, which icon fonts have. With a mark none is
# alone.


def _mark_behind(found: re.Match[str]) -> str:
    return found[0] + _MARK


def _marked(found: re.Match[str]) -> str:
    character = unescape(found[0])
    is_taken = len(character) == 1 and character >= "\u0800" and not "\ud800" <= character <= "\uf8ff"
    before = found.string[max(0, found.start() - _SPACES) : found.start()]
    return found[0] + _MARK if is_taken and _BEHIND_TAG.search(before) else found[0]


def _extract(page: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    text = extract_plain_text(page, main_content=True, alt_texts=True, skip_elements=_SKIPPED)
    return text.replace(_MARK, "")
