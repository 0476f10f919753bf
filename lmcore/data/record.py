"""A record of a raw file, or what is known of one that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from lmcore.config import LimitsConfig
from lmcore.data.sources import SourceFile
from lmcore.errors import DataError

RAW_BYTES_KEPT = 1 << 20  # of a record that cannot be read: nearly all are kept whole


@dataclass(frozen=True)
class Record:
    """A readable record.

    Attributes:
        index: Position in its file, bad records counted; in a file of lines the line, from 0.
        id: From ``id_field``; empty if the source names none.
        text: As stored; it may hold lone surrogates. Bytes, where they were asked for, are UTF-8.
        num_chars: Code points of bytes; 0 of a text that counts its own.
        charset: The codec that it was decoded by; empty: UTF-8.
    """

    index: int
    id: str
    text: str | bytes
    num_chars: int = 0
    charset: str = ""


@dataclass(frozen=True)
class Quarantined:
    """A record that could not be read.

    Attributes:
        index: Position in its file.
        offset: Where it starts, in bytes of the uncompressed file, but in a web archive of the stored one, as
            its indexes have it; None where a file has no such places, as one that is not UTF-8.
        reason: What is wrong with it.
        raw: Its first bytes, as stored.
        num_bytes: Size of the record, as far as it was seen.
        num_records: Records that it stands for, where the file says how many there are.
        breaks_off: Whether the file cannot be read from here on, and holds nobody knows how many more.
    """

    index: int
    offset: int | None
    reason: str
    raw: bytes = b""
    num_bytes: int = 0
    num_records: int = 1
    breaks_off: bool = False


class BadRecordError(Exception):
    """One record cannot be read; the message is the reason."""


def too_large(limits: LimitsConfig) -> str:
    """The reason that a record is larger than it may be."""
    return f"larger than {limits.max_record_bytes} bytes (limits.max_record_bytes)"


def expands(limits: LimitsConfig) -> str:
    """The reason that a file holds more than its size lets expect."""
    return f"expands more than {limits.max_expansion:g} times (limits.max_expansion)"


def quarantine(
    index: int, offset: int | None, reason: str, raw: bytes, num_bytes: int | None = None
) -> Quarantined:
    """A record that cannot be read, with the first of its bytes; ``num_bytes``: its size, if not theirs."""
    size = len(raw) if num_bytes is None else num_bytes
    return Quarantined(index, offset, reason, raw[:RAW_BYTES_KEPT], size)


def changed(file: SourceFile) -> DataError:
    """The error that a file is not what the inventory found."""
    return DataError(
        f"file {file.name} of source {file.source!r} changed while it was being read",
        remedy="Run again when nothing writes to it.",
    )
