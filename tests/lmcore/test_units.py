"""Numbers are told in units that fit their size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.units import BYTES, DURATIONS, ENERGIES, TIMES, number, told, unit_for


@pytest.mark.parametrize(
    ("value", "units", "text"),
    [
        (7.68, TIMES, "7.68 s"),
        (0.00423, TIMES, "4.23 ms"),
        (0.000_012_3, TIMES, "12.3 us"),
        (82.6 * 86_400, DURATIONS, "82.6 days"),
        (5_400, DURATIONS, "1.50 h"),
        (0.5, DURATIONS, "500 ms"),
        (71.2e9, BYTES, "71.2 GB"),
        (4_200_000, BYTES, "4.20 MB"),
        (49_718.3e6, ENERGIES, "49,718 MWh"),
        (0.05, ENERGIES, "0.05 Wh"),
        (0.0, TIMES, "0.00 us"),
    ],
)
def test_a_value_is_told_in_the_unit_that_fits_it(value, units, text):
    assert told(value, units) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (9.96, 2, "10"),
        (9.94, 2, "9.9"),
        (205.3, 2, "205"),
        (9.996, 3, "10.0"),
        (99.96, 3, "100"),
        (0.0004, 3, "0.0004"),
    ],
)
def test_digits_that_tell_something_are_counted(value, digits, text):
    assert number(value, digits) == text


@given(st.floats(1e-6, 1e15), st.sampled_from([TIMES, DURATIONS, BYTES, ENERGIES]))
def test_what_is_told_is_the_value_to_three_digits(value, units):
    number, name = told(value, units).split()
    size = dict(units)[name]
    assert float(number.replace(",", "")) * size == pytest.approx(value, rel=0.006 if value >= size else 0.5)
    assert float(number.replace(",", "")) > 0
    assert unit_for([value], units) == (name, size)
