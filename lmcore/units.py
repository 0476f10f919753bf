"""Conversions between the units that a language model is measured in, and units that fit a number."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lmcore.errors import DataError

Unit = tuple[str, float]  # its name, and how large it is
# From the largest to the smallest.
TIMES: tuple[Unit, ...] = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
DURATIONS: tuple[Unit, ...] = (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0), *TIMES)  # in seconds
BYTES: tuple[Unit, ...] = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
ENERGIES: tuple[Unit, ...] = (("MWh", 1e6), ("kWh", 1e3), ("Wh", 1.0))  # in watt-hours


def bits_per_byte(loss_sum: float, num_bytes: float) -> float:
    """Convert summed token loss (nats) to bits per UTF-8 byte.

    Dividing by bytes, not tokens, keeps scores comparable across tokenizers.

    Raises:
        DataError: ``num_bytes`` is not positive.
    """
    if num_bytes <= 0:
        raise DataError(
            "bits per byte of no text", expected="a positive number of bytes", found=f"{num_bytes}"
        )
    return loss_sum / math.log(2) / num_bytes


def unit_for(values: Iterable[float], units: tuple[Unit, ...]) -> Unit:
    """The largest of ``units`` that the largest of ``values`` has at least one of; the smallest for none."""
    largest = max(values, default=0.0)
    return next((unit for unit in units if largest >= unit[1]), units[-1])


def number(value: float, digits: int = 3) -> str:
    """A number with so many digits that tell something, and all of those before the point."""
    places = digits - 1
    while places and value >= 10 ** (digits - places) - 0.5 / 10**places:
        places -= 1
    return f"{value:.1g}" if 0 < value < 0.5 / 10**places else f"{value:,.{places}f}"


def told(value: float, units: tuple[Unit, ...], digits: int = 3) -> str:
    """A value in the unit that fits its size: ``told(0.0042, TIMES)`` is 4.20 ms."""
    name, size = unit_for([value], units)
    return f"{number(value / size, digits)} {name}"
