"""Errors say what was expected, what was found, what to do; and survive a process boundary."""

import pickle

import pytest

from lmcore import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind):
    error = kind("batch", expected="96", found="100", remedy="Use 96.")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is kind
    assert str(copy) == str(error) == "batch: expected 96, found 100. Use 96."
    assert copy.remedy == "Use 96."


def test_parts_that_are_not_known_are_left_out():
    assert str(errors.DataError("no text")) == "no text"
    assert str(errors.DataError("no text", remedy="Add some.")) == "no text. Add some."
