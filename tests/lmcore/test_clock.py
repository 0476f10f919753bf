"""Each moment belongs to one part."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcore.clock import PARTS, Clock

CPU = torch.device("cpu")


@pytest.fixture
def ticks(monkeypatch):
    """Let time pass by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def test_an_inner_part_takes_its_time_from_the_outer(ticks):
    clock = Clock(CPU)
    ticks(1)
    with clock.part("backward"):
        ticks(2)
        with clock.part("forward"):
            ticks(4)
        ticks(8)
    with clock.part("data"):
        ticks(16)
    lap = clock.lap()
    ticks(32)
    assert lap.is_known
    expected = {"other": 1, "backward": 10, "forward": 4, "data": 16}
    assert lap.seconds() == {part: expected.get(part, 0) for part in PARTS}
    with clock.part("data"):
        ticks(64)
        assert clock.lap().seconds()["data"] == 64  # a lap may end within a part
        ticks(1)
    assert clock.lap().seconds()["data"] == 1


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.booleans()), max_size=30))
def test_nothing_is_counted_twice_or_lost(changes):
    clock, began = Clock(CPU), time.perf_counter()
    clock.start()
    open_parts = []
    for name, ends in changes:
        if ends and open_parts:
            open_parts.pop().__exit__(None, None, None)
        else:
            open_parts.append(clock.part(name))
            open_parts[-1].__enter__()
    seconds = clock.lap().seconds()
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) <= time.perf_counter() - began


def test_a_part_that_fails_is_left(ticks):
    clock = Clock(CPU)
    with pytest.raises(KeyError), clock.part("data"):
        raise KeyError
    ticks(3)
    assert clock.lap().seconds()["other"] == 3
