"""Each moment belongs to one part."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcore.clock import MAX_UNREAD, PARTS, Clock

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


class Stream:
    """A device that is behind: what is put into its stream happens when it is told to go on."""

    def __init__(self):
        self.now, self.done, self.capturing = 0.0, 0.0, False

    def event(self):
        return Event(self)


class Event:
    def __init__(self, stream):
        self.stream, self.at = stream, stream.now

    def query(self):
        return self.at <= self.stream.done

    def synchronize(self):
        self.stream.done = max(self.stream.done, self.at)

    def elapsed_time(self, later):
        assert later.query(), "it was read before it happened"
        return (later.at - self.at) * 1000


@pytest.fixture
def stream(monkeypatch):
    """A recorded CUDA stream in the place of a device's."""
    stream = Stream()
    monkeypatch.setattr("lmcore.clock._event", stream.event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream.capturing)
    return stream


def test_parts_of_a_device_are_read_once_it_has_come_to_them(stream):
    clock = Clock(torch.device("cuda"))
    for seconds, part in [(1, "data"), (2, "forward"), (4, "backward")] * 3:
        with clock.part(part):
            stream.now += seconds
    first = clock.lap()
    with clock.part("optimizer"):
        stream.now += 8
    second = clock.lap()
    assert not first.is_known
    stream.done = 21
    assert first.is_known
    assert not second.is_known
    expected = dict.fromkeys(PARTS, 0.0)
    assert first.seconds() == expected | {"data": 3, "forward": 6, "backward": 12}
    assert second.seconds() == expected | {"optimizer": 8}  # who asks too early waits


def test_what_a_device_has_passed_is_not_kept(stream):
    clock = Clock(torch.device("cuda"))
    for _ in range(5000):
        with clock.part("forward"):
            stream.now += 1
        stream.done = stream.now
    assert len(clock._line._marks) <= MAX_UNREAD + 1
    seconds = clock.lap().seconds()
    assert (seconds["forward"], sum(seconds.values())) == (5000, 5000)


def test_nothing_is_marked_while_a_graph_is_captured(stream):
    clock = Clock(torch.device("cuda"))
    with clock.part("forward"):
        stream.capturing = True
        with clock.part("backward"):
            stream.now += 3
        stream.capturing = False
    stream.done = stream.now
    seconds = clock.lap().seconds()
    assert (seconds["forward"], seconds["backward"]) == (3, 0)
