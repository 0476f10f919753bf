"""Workers on threads: what they share, and what is left when one fails."""

import threading
import time

import pytest

from lmcore.data.pool import Threads


def name_of_thread(_number):
    time.sleep(0.01)
    return threading.get_ident()


def threads_of(count):
    return set(Threads(count).map(name_of_thread, ((i,) for i in range(4 * count))))


def test_work_is_done_by_the_threads_that_did_the_work_before():
    first = threads_of(3)
    assert len(first) == 3
    assert threads_of(3) == first


def test_work_within_work_has_threads_of_its_own():
    def outer(_number):
        return threads_of(2), threading.get_ident()

    found = list(Threads(2).map(outer, ((i,) for i in range(6))))
    outer_threads = {own for _, own in found}
    assert all(len(inner) == 2 and not inner & outer_threads for inner, _ in found)


def test_results_are_in_the_order_of_calls():
    def slow_at_first(number):
        time.sleep(0.05 / (number + 1))
        return number

    assert list(Threads(3).map(slow_at_first, ((i,) for i in range(20)))) == list(range(20))


def test_nothing_goes_on_behind_an_error():
    begun, ended = [], []

    def work(number):
        begun.append(number)
        time.sleep(0.01 * number)
        if number == 0:
            raise RuntimeError("no")
        ended.append(number)

    with pytest.raises(RuntimeError, match="no"):
        list(Threads(2).map(work, ((i,) for i in range(50))))
    assert set(begun) - {0} == set(ended)
    assert len(begun) < 50
    assert list(Threads(2).map(len, (([],) for _ in range(3)))) == [0, 0, 0]
