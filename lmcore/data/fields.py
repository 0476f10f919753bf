"""Fields of a record: the text, the id, and names that lead into a field, such as ``meta.text``.

An id of any type gives one stable text or is refused, the same in JSON and in Parquet: integers and integral
numbers in decimal digits, decimals without trailing zeros, UUIDs in their usual form, other bytes as UTF-8 or
else in hexadecimal behind ``0x``, dates and times in ISO 8601.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from lmcore.data.record import BadRecordError

_EXACT = 2**53  # from here on, several integers are one number of 64 bits
_SHOWN = 80


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """The value of ``name``: of a field of that name, else of a field in a field, as ``messages.0.content``.

    Raises:
        BadRecordError: there is none; the message says how far the name leads.
    """
    return record[name] if name in record else _value(record, name, "")


def _value(value: Any, path: str, above: str) -> Any:
    """What ``path`` leads to in ``value``, which ``above`` leads to; the longest key goes first."""
    reason = ""
    for key, rest in _splits(path):
        if isinstance(value, Mapping) and key in value:
            inner = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            inner = value[int(key)]
        else:
            continue
        if not rest:
            return inner
        try:
            return _value(inner, rest, f"{above}.{key}".lstrip("."))
        except BadRecordError as error:
            reason = reason or str(error)
    whole = f"{above}.{path}".lstrip(".")
    raise BadRecordError(
        reason or f"no field {whole!r}" + (f": {above!r} is {_seen(value)}" if above else "")
    )


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """A key and what follows it, for each place where ``path`` can be parted, the longest key first."""
    yield path, ""
    end = path.rfind(".")
    while end > 0:
        yield path[:end], path[end + 1 :]
        end = path.rfind(".", 0, end)


def _seen(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object of {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"no object but {type(value).__name__}"


def text_in(value: Any, name: str) -> str:
    """``value`` of field ``name``, if it is text.

    Raises:
        BadRecordError: it is not.
    """
    if isinstance(value, str):
        return value
    reason = f"field {name!r} is not text but {type(value).__name__}"
    if isinstance(value, list):
        reason += f" of {len(value)}; join its texts before, or name one, as {name}.0 in JSON"
    if isinstance(value, Mapping) and value:
        reason += f"; name a field in it, as {name}.{next(iter(value))}"
    raise BadRecordError(reason)


def id_in(value: Any, name: str) -> str:
    """``value`` of field ``name`` as the text that names a record.

    Raises:
        BadRecordError: it names none.
    """
    if type(value) is int:  # the most
        return _digits(value)
    found = _id(value)
    if not found:
        hint = ""
        if isinstance(value, Mapping) and value:
            hint = f"; name a field in it, as {name}.{next(iter(value))}"
        elif isinstance(value, float):
            hint = "; of numbers only integers below 2**53 do"
        raise BadRecordError(f"field {name!r} names no record: {repr(value)[:_SHOWN]}{hint}")
    return found.encode("utf-8", "replace").decode("utf-8")


def _id(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return _digits(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < _EXACT else ""
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, bytes):
        return bytes_id(value)
    if isinstance(value, (uuid.UUID, date, datetime, time)):
        return value.isoformat() if not isinstance(value, uuid.UUID) else str(value)
    return ""


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than Python writes
        return hex(value)


def _decimal(value: Decimal) -> str:
    if not value.is_finite():
        return ""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("", "-0") else text


def bytes_id(value: bytes) -> str:
    """UTF-8 as it is; other bytes in hexadecimal behind ``0x``."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
