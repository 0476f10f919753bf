"""Record headers of web archives: WARC 0.17 to 1.1 (ISO 28500), and ARC 1 and 2, which came before it.

Headers end their lines in CRLF or, as WARC 0.17 and many writers by hand have it, in LF.
"""

from __future__ import annotations

import re
from typing import Protocol

from lmcore.data.http_message import HEAD_END

_WARC_START = b"WARC/"
_NEXT_WARC = re.compile(rb"\nWARC/[0-9]\.[0-9]")
_ARC_LINE_BYTES = 10_000
# URL, IP address, date, then media type (ARC 1), or media type, status, checksum and more (ARC 2); length.
_ARC_LINE = (
    rb"([A-Za-z][A-Za-z0-9+.-]{1,15}:[^\r\n ]{0,8192}) [0-9A-Fa-f.:]{3,45} \d{8,14}"
    rb"([^\r\n]{0,1024}?)[ \t](\d+)[ \t]*\r?\n"
)
_ARC = re.compile(_ARC_LINE)
_NEXT_ARC = re.compile(rb"\n" + _ARC_LINE)


class Format(Protocol):
    """Headers of one kind of archive."""

    next_bytes: int  # that a line which begins a record takes at most

    def begins(self, data: bytes | bytearray) -> bool:
        """Whether a record begins with ``data``, as far as that goes."""
        ...

    def is_decided(self, data: bytes | bytearray) -> bool:
        """Whether ``data`` is enough for ``begins``."""
        ...

    def head(self, data: bytes | bytearray) -> tuple[int, bytes] | None:
        """Size of the header at the start of ``data``, and its lines in WARC; None: it has no end."""
        ...

    def next_start(self, data: bytes | bytearray) -> int:
        """Where the line end is behind which the next record begins; -1 if none does."""
        ...


class _Warc:
    next_bytes = 10

    def begins(self, data: bytes | bytearray) -> bool:
        return bytes(data[: len(_WARC_START)]) == _WARC_START[: len(data)]

    def is_decided(self, data: bytes | bytearray) -> bool:
        return len(data) >= len(_WARC_START)

    def head(self, data: bytes | bytearray) -> tuple[int, bytes] | None:
        found = HEAD_END.search(data)
        return (found.end(), bytes(data[: found.start()])) if found else None

    def next_start(self, data: bytes | bytearray) -> int:
        found = _NEXT_WARC.search(data)
        return found.start() if found else -1


class _Arc:
    next_bytes = _ARC_LINE_BYTES

    def begins(self, data: bytes | bytearray) -> bool:
        return not data or _ARC.match(data) is not None

    def is_decided(self, data: bytes | bytearray) -> bool:
        return b"\n" in data[:_ARC_LINE_BYTES] or len(data) >= _ARC_LINE_BYTES

    def head(self, data: bytes | bytearray) -> tuple[int, bytes] | None:
        found = _ARC.match(data)
        if not found:
            return None
        # The file's own record has this scheme.
        kind = b"warcinfo" if found[1].lower().startswith(b"filedesc:") else b"response"
        media = found[2].strip().split(b" ")[0]
        lines = (b"ARC", b"WARC-Type: " + kind, b"WARC-Target-URI: " + found[1])
        return found.end(), b"\r\n".join((*lines, b"Content-Type: " + media, b"Content-Length: " + found[3]))

    def next_start(self, data: bytes | bytearray) -> int:
        found = _NEXT_ARC.search(data)
        return found.start() if found else -1


WARC: Format = _Warc()
ARC: Format = _Arc()
