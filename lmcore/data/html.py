"""The main text of a web page, without menus and footers, by resiliparse (Bevendorff et al. 2018)."""

from __future__ import annotations

import codecs
import re

# The extractor's time grows with the square of how deep these are nested: half a second for 8,000, many
# minutes for 200,000. Chromium builds no more than 512 levels.
_MAX_DEPTH = 512
_NESTED = re.compile(r"<(/?)(?:div|article|section|blockquote)\b", re.IGNORECASE)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class TooDeepError(Exception):
    """A page would take too long; the message is the reason."""


def decode(raw: bytes, charset: str = "") -> str:
    """Decode a page: by its byte order mark, else ``charset`` (of HTTP), its own meta element, or its bytes.

    That is the order of the HTML standard. What fits no encoding is replaced, as browsers do.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    for mark, name in _MARKS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(name, "replace")
    name = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    name = name or detect_encoding(raw, from_html_meta=True) or "utf-8"
    # A page whose meta element can be read as ASCII is not UTF-16, whatever it says.
    name = "utf-8" if name.startswith("utf-16") else name
    return bytes_to_str(raw, name, errors="replace", fallback_encodings=("utf-8", "cp1252"))


def main_text(page: str) -> str:
    """The text of a page without what stands around it; empty if there is none.

    Raises:
        TooDeepError: its elements are nested deeper than browsers allow.
    """
    from resiliparse.extract.html2text import extract_plain_text

    if _is_too_deep(page):
        raise TooDeepError(f"HTML nested deeper than {_MAX_DEPTH} elements")
    # A lone surrogate is no text for what is written in C.
    page = page.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return extract_plain_text(page, main_content=True, alt_texts=False)


def _is_too_deep(page: str) -> bool:
    if page.count("<") <= _MAX_DEPTH:
        return False
    depth = 0
    for tag in _NESTED.finditer(page):
        depth = max(0, depth - 1) if tag[1] else depth + 1
        if depth > _MAX_DEPTH:
            return True
    return False
