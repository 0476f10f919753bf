import threading

import pytest
import torch

from lmcore.data.loader import Batch
from lmcore.data.prefetch import Prefetcher

CPU = torch.device("cpu")


class Source:
    """Batches that say which step they are of; one step may be damaged."""

    def __init__(self, damaged=-1):
        self.damaged, self.read = damaged, []

    def num_targets(self, step):
        return 10 * step

    def micro_batches(self, step):
        self.read.append(step)
        if step == self.damaged:
            raise ValueError(f"step {step} is damaged")
        for part in range(2):
            yield Batch(torch.full((1, 3), step), torch.full((1, 3), part))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_step_gets_its_own_batches_in_order(depth):
    source = Source()
    batches = Prefetcher(source, 20, depth, CPU)
    for step in range(20):
        data = batches.take(step)
        assert (data.step, data.num_targets) == (step, 10 * step)
        assert [int(batch.tokens[0, 0]) for batch in data.batches] == [step, step]
        assert [int(batch.targets[0, 0]) for batch in data.batches] == [0, 1]
    batches.close()
    assert source.read == list(range(20))  # each once, and none behind the end
    assert threads() == []


def test_it_goes_on_anywhere():
    batches = Prefetcher(Source(), 50, 2, CPU)
    assert [batches.take(step).step for step in (7, 8, 3, 40, 41, 49)] == [7, 8, 3, 40, 41, 49]
    batches.close()
    batches.close()
    assert batches.take(5).step == 5
    batches.close()
    assert threads() == []


def test_no_more_is_read_than_may_lie_ready():
    source = Source()
    batches = Prefetcher(source, 1_000, 2, CPU)
    for step in range(5):
        batches.take(step)
        assert max(source.read) <= step + 3  # two ready, and one that waits for room
    batches.close()


@pytest.mark.parametrize("depth", [0, 2])
def test_what_goes_wrong_is_raised_at_its_step(depth):
    batches = Prefetcher(Source(damaged=3), 9, depth, CPU)
    assert [batches.take(step).step for step in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="step 3 is damaged"):
        batches.take(3)
    assert threads() == []
    assert batches.take(4).step == 4
    batches.close()


def test_a_step_behind_the_end_is_not_waited_for_in_vain():
    batches = Prefetcher(Source(damaged=9), 9, 2, CPU)
    assert batches.take(8).step == 8
    with pytest.raises(ValueError, match="step 9"):
        batches.take(9)


def test_a_device_that_is_not_there_is_an_error_and_no_wait_for_ever():
    batches = Prefetcher(Source(), 9, 2, torch.device("cuda", 99))
    with pytest.raises((RuntimeError, AssertionError, AttributeError)):  # whatever this torch says
        batches.take(0)
    assert threads() == []


def test_a_thread_that_is_no_more_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("lmcore.data.prefetch.LOOK_SECONDS", 0.01)
    batches = Prefetcher(Source(), 9, 2, CPU)
    batches._work = lambda first, device: None  # as if it had been killed
    with pytest.raises(RuntimeError, match="before it had read step 4"):
        batches.take(4)
    batches.close()
