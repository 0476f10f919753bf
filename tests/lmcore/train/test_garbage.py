import gc
import weakref

import pytest

from lmcore.train.garbage import collected_every


class Node:
    """Garbage that only the collector finds: it knows itself."""

    def __init__(self):
        self.me = self


def test_garbage_goes_at_its_step_and_at_no_other():
    with collected_every(3) as collect:
        assert not gc.isenabled()
        left = weakref.ref(Node())
        for step in (1, 2):
            collect(step)
            assert left() is not None
        collect(3)
        assert left() is None
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_the_collector_is_put_back_when_a_run_fails():
    def fail():
        with collected_every(1):
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fail()
    assert gc.isenabled()


def test_python_may_be_left_alone():
    with collected_every(0) as collect:
        collect(1)
        assert gc.isenabled()
