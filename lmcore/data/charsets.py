"""The character set of a file: by its byte order mark, by where its NUL bytes are, as set, or by detection.

Everything is UTF-8 from here on. What does not decode strictly is refused with the remedy, never replaced.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable, Iterator

from lmcore.config import AUTO, DETECT
from lmcore.data.streams import BrokenStreamError, peek

HEAD_BYTES = 4_096
UTF_8 = "utf-8"
UTF_8_MARK = codecs.BOM_UTF8
# Those of UTF-32 first: that of UTF-16 begins one of them.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MARK, _SWAPPED_MARK = "\ufeff", "\ufffe"
_WIDE = ("utf-16", "utf-32")
_CERTAIN_SHARE = 0.7  # of the characters of a text in UTF-16 that are below U+0100
_HIGHEST_PLANE = 0x10
_EVIDENCE_BYTES = 1 << 18
_FEWEST_BEYOND_ASCII = 8
_CHAOS, _COHERENCE = 0.1, 0.05  # of charset-normalizer's measures


class CharsetError(Exception):
    """Bytes are not text of the character set that they should be; the message is the reason."""


def charset_of(head: bytes, setting: str) -> str:
    """The codec of what begins with ``head``, by ``SourceConfig.encoding``; UTF-8 where nothing tells.

    A mark, whatever is set, and NUL bytes where only UTF-16 and UTF-32 have them, are certain. JSON holds
    no NUL byte.
    """
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), "")
    if setting not in (AUTO, DETECT):
        return marked if marked and not setting.startswith(_WIDE) else setting.removesuffix("-sig")
    return marked or _by_zeros(head[:HEAD_BYTES]) or UTF_8


def _by_zeros(head: bytes) -> str:
    whole = head[: len(head) // 4 * 4]
    if b"\0" not in head or len(head) < 4:
        return ""
    for name, top in (("utf-32-le", 3), ("utf-32-be", 0)):
        planes = whole[2::4] if top else whole[1::4]
        if not any(whole[top::4]) and max(planes) <= _HIGHEST_PLANE and any(whole):
            return name
    for name, high in (("utf-16-le", 1), ("utf-16-be", 0)):
        zeros, pairs = head[high::2].count(0), len(head) // 2
        begins_json = head[high] == 0 and head[1 - high] in b"{["
        if not head[1 - high :: 2].count(0) and (zeros >= _CERTAIN_SHARE * pairs or begins_json):
            return name
    return ""


def may_be_cut(head: bytes, setting: str) -> bool:
    r"""Whether a file of lines may be cut behind any byte ``\n``; no where one may be half a character."""
    if setting == DETECT:
        return False  # all of the file is the evidence
    name = charset_of(head, setting)
    ascii_bytes = bytes(range(128))
    try:
        return ascii_bytes.decode(name) == ascii_bytes.decode("ascii")
    except UnicodeError:
        return False


def decode(raw: bytes, setting: str) -> tuple[str, str]:
    """The text of ``raw``, and the codec that it was decoded by.

    Raises:
        CharsetError: it is not of that character set, or detection is not certain.
    """
    name = charset_of(raw[:HEAD_BYTES], setting)
    if setting == DETECT and name == UTF_8 and not _is_utf8(raw):
        name = detect(raw)
    try:
        text = raw.decode(name)
    except UnicodeError as error:
        raise CharsetError(_not_of(name, error, raw)) from None
    if _SWAPPED_MARK in text and name.startswith(_WIDE):
        raise CharsetError(f"not {name}: the byte order changes at character {text.index(_SWAPPED_MARK)}")
    return text if name == UTF_8 else text.lstrip(_MARK), name


def decode_file(raw: bytes, setting: str) -> tuple[str, str]:
    """``decode`` of a whole file, without the marks that ``cat`` left between the files it was made of."""
    text, name = decode(raw, setting)
    text = text.lstrip(_MARK)
    if _MARK in text:
        is_marked = raw.startswith(tuple(mark for mark, _ in _MARKS))
        text = text.replace(_MARK, "") if is_marked else text.replace(f"\n{_MARK}", "\n")
    return text, name


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode(UTF_8)
    except UnicodeDecodeError:
        return False
    return True


def _not_of(name: str, error: UnicodeError, raw: bytes) -> str:
    place = f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
    if name != UTF_8:
        return f"not {name}: {place}; correct encoding of this source, or mend the file"
    zeros = [raw[:HEAD_BYTES][start::2].count(0) for start in (0, 1)]
    if max(zeros) and not min(zeros):
        wide = "utf-16-le" if zeros[1] else "utf-16-be"
        return f"not UTF-8: {place}; this looks like UTF-16: set encoding: {wide} of this source"
    return (
        f"not UTF-8: {place}; set encoding of this source if it is another, such as windows-1252, or detect"
    )


# --- streams ---------------------------------------------------------------------------------------


def to_utf8(pieces: Iterator[bytes], setting: str, evidence: bytes = b"") -> tuple[str, Iterator[bytes]]:
    """The codec of a stream, and its bytes in UTF-8, as they are if they were.

    A byte that a codec beside UTF-16 and UTF-32 does not know costs its line alone: there the result is no
    UTF-8.

    Args:
        pieces: Its bytes.
        setting: ``SourceConfig.encoding``.
        evidence: What ``detect`` is decided by (``evidence_of``).

    Raises:
        BrokenStreamError: by the iterator, where it cannot be decoded from here on.
        CharsetError: detection is not certain.
    """
    head, pieces = peek(pieces, lambda head: len(head) >= HEAD_BYTES)
    name = charset_of(head[:HEAD_BYTES], setting)
    if setting == DETECT and name == UTF_8 and evidence:
        name = detect(evidence)
    return name, pieces if name == UTF_8 else _transcoded(pieces, name)


def _transcoded(pieces: Iterator[bytes], name: str) -> Iterator[bytes]:
    is_wide = name.startswith(_WIDE)
    decoder = codecs.getincrementaldecoder(name)("surrogatepass" if is_wide else "surrogateescape")
    try:
        for piece in itertools.chain(pieces, [None]):
            text = decoder.decode(piece or b"", final=piece is None)
            end = text.find(_SWAPPED_MARK) if is_wide else -1
            text = text if end < 0 else text[:end]
            yield text.encode(UTF_8, "surrogatepass")
            if end >= 0:
                raise BrokenStreamError(f"not {name}: the byte order changes")
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise BrokenStreamError(f"not {name}: {reason}; correct encoding of this source") from None


def evidence_of(pieces: Iterable[bytes]) -> bytes:
    """Up to 256 KiB of those lines of a stream that are not UTF-8, for ``detect``; empty: all of it is."""
    found, held = bytearray(), b""
    for piece in itertools.chain(pieces, [b"\n"]):
        *lines, held = (held + piece[:_EVIDENCE_BYTES]).split(b"\n")
        for line in lines:
            if not line.isascii() and not _is_utf8(line):
                found += line[:_EVIDENCE_BYTES] + b"\n"
        held = held[:_EVIDENCE_BYTES]
        if len(found) >= _EVIDENCE_BYTES:
            break
    return bytes(found[:_EVIDENCE_BYTES])


def detect(raw: bytes) -> str:
    """The codec of ``raw``, which is not UTF-8, where two detectors that know nothing of each other agree.

    They are Mozilla's statistics (uchardet, in resiliparse) and charset-normalizer's tables of languages.

    Raises:
        CharsetError: they do not, or there is too little beyond ASCII to tell by.
    """
    from charset_normalizer import from_bytes
    from resiliparse.parse.encoding import detect_encoding

    raw = raw[:_EVIDENCE_BYTES]
    beyond_ascii = len(raw) - len(raw.translate(None, bytes(range(128, 256))))
    first = codecs.lookup(detect_encoding(raw) or UTF_8).name
    matches = list(from_bytes(raw))
    candidates = ", ".join(dict.fromkeys([first, *(match.encoding for match in matches)][:4]))
    remedy = f"set encoding of this source (candidates: {candidates})"
    if beyond_ascii < _FEWEST_BEYOND_ASCII:
        raise CharsetError(f"not UTF-8, and {beyond_ascii} bytes are too few to tell what it is: {remedy}")
    best = max((match.coherence for match in matches), default=0.0)
    text = raw.decode(first, "replace")
    for match in matches:
        agrees = str(match) == text or first in match.could_be_from_charset
        if agrees and match.chaos <= _CHAOS and match.coherence >= best - _COHERENCE:
            return first
    raise CharsetError(f"not UTF-8, and what it is is not certain: {remedy}")
