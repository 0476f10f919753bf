import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.data.order import BLOCK, Order, permute

seeds = st.integers(0, 2**40)


@given(n=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_an_epoch_is_a_permutation(n, seed, epoch):
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n))


@given(n=st.integers(1, 2**45), seed=seeds, data=st.data())
@settings(max_examples=80, deadline=None)
def test_far_places_cost_no_more_and_stay_inside(n, seed, data):
    start = data.draw(st.integers(0, 3 * n))
    samples = Order(n, seed)[start : start + 64]
    assert samples.min() >= 0
    assert samples.max() < n


@given(n=st.integers(1, 500), seed=seeds, cuts=st.lists(st.integers(0, 1200), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_slice_is_the_same_part_of_the_whole(n, seed, cuts):
    order, cuts = Order(n, seed), sorted(cuts)
    parts = [order[a:b] for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), order[cuts[0] : cuts[-1]])


@given(n=st.integers(BLOCK - 2, 10_000), seed=seeds, around=st.integers(1, 5), data=st.data())
@settings(max_examples=40, deadline=None)
def test_places_around_the_edge_of_a_block_are_those_of_the_permutation(n, seed, around, data):
    order = Order(n, seed)
    for _ in range(4):  # there and back, so that blocks are let go of and come again
        start = around * BLOCK - data.draw(st.integers(0, 70))
        places = np.arange(start, start + data.draw(st.integers(0, 140)))
        expected = [permute(np.array([place % n]), n, seed, int(place // n))[0] for place in places]
        assert order[start : start + len(places)].tolist() == expected


def test_what_is_handed_out_is_the_callers():
    order = Order(2 * BLOCK, 0)
    before = order[10:20].tolist()
    order[10:20][:] = -1
    assert order[10:20].tolist() == before


def test_seeds_and_epochs_differ_and_neighbours_are_scattered():
    n = 10_000
    first = permute(np.arange(n), n, 0, 0)
    for other in (permute(np.arange(n), n, 1, 0), permute(np.arange(n), n, 0, 1)):
        # Two random permutations agree in about one place.
        assert (first == other).sum() < 10
    assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


def test_the_order_never_changes():
    # Checkpoints rely on it: a change here needs a new version of the training stage.
    assert Order(1000, 7)[995:1005].tolist() == [122, 27, 994, 621, 488, 806, 655, 877, 542, 489]
