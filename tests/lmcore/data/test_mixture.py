import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.data.mixture import MAX_CYCLE, Mixture, Share, take_turns
from lmcore.errors import ConfigError

weights = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5)


def mixture_of(parts, seed=0):
    """A mixture of (weight, sequences, most) parts."""
    shares, first = [], 0
    for i, (weight, size, most) in enumerate(parts):
        shares.append(Share(f"source-{i}", first, size, weight, most))
        first += size
    return Mixture(shares, seed)


def sources_of(mixture, samples):
    firsts = [share.first for share in mixture.shares]
    return np.searchsorted(firsts, samples, "right") - 1


@given(quotas=st.lists(st.integers(1, 40), min_size=1, max_size=9))
@settings(max_examples=150, deadline=None)
def test_turns_are_fair_at_every_prefix(quotas):
    turns = take_turns(quotas)
    counts = np.cumsum(turns[:, None] == np.arange(len(quotas)), axis=0)
    shares = np.arange(1, len(turns) + 1)[:, None] * np.array(quotas) / sum(quotas)
    assert counts[-1].tolist() == quotas
    bound = 1 - 1 / (2 * len(quotas) - 2) if len(quotas) > 1 else 0
    assert np.abs(counts - shares).max() <= bound + 1e-9


@given(weights=weights)
@settings(max_examples=15, deadline=None)
def test_every_prefix_holds_the_shares_to_within_one_sequence(weights):
    mixture = mixture_of([(weight, 50, None) for weight in weights])
    assert mixture.num_places is None
    num = 20_000
    counts = np.cumsum(sources_of(mixture, mixture[0:num])[:, None] == np.arange(len(weights)), axis=0)
    expected = np.arange(1, num + 1)[:, None] * np.array(weights) / sum(weights)
    # The cycle's whole numbers are off the weights by less than a half in 65,536.
    assert np.abs(counts - expected).max() < 1 + num * 0.5 / MAX_CYCLE
    assert mixture.given(num).tolist() == counts[-1].tolist()


parts = st.tuples(st.integers(1, 30), st.integers(1, 40), st.one_of(st.none(), st.integers(0, 100)))
mixtures = st.lists(parts, min_size=1, max_size=5)


@given(parts=mixtures, seed=st.integers(0, 9), cuts=st.lists(st.integers(0, 400), min_size=2, max_size=6))
@settings(max_examples=80, deadline=None)
def test_any_slice_is_the_same_part_of_the_whole(parts, seed, cuts):
    mixture = mixture_of(parts, seed)
    limit = 400 if mixture.num_places is None else mixture.num_places
    cuts = sorted(min(cut, limit) for cut in cuts)
    slices = [mixture_of(parts, seed)[a:b] for a, b in reversed(list(itertools.pairwise(cuts)))]
    assert np.array_equal(np.concatenate(slices[::-1]), mixture[cuts[0] : cuts[-1]])


@given(parts=mixtures)
@settings(max_examples=80, deadline=None)
def test_sources_stop_at_their_limits_and_repeat_nothing_before_an_epoch_is_over(parts):
    mixture = mixture_of(parts)
    most = [limit for _, _, limit in parts]
    assert mixture.num_places == (None if None in most else sum(most))
    num = 600 if mixture.num_places is None else mixture.num_places
    samples = mixture[0:num]
    sources = sources_of(mixture, samples)
    for source, (_, size, limit) in enumerate(parts):
        mine = samples[sources == source]
        assert limit is None or len(mine) <= limit
        if mixture.num_places is not None:
            assert len(mine) == limit
        for start in range(0, len(mine) - size + 1, size):
            epoch = mine[start : start + size]
            assert len(set(epoch.tolist())) == size
    if mixture.num_places is not None:
        with pytest.raises(IndexError):
            mixture[0 : num + 1]


def test_the_others_share_the_weight_of_one_that_stopped():
    mixture = mixture_of([(0.5, 10, 20), (0.3, 1000, None), (0.2, 1000, None)])
    assert mixture.given(40).tolist() == [20, 12, 8]
    for num in (10, 100, 1_000):
        assert np.abs(mixture.given(40 + num) - [20, 12 + 0.6 * num, 8 + 0.4 * num]).max() < 1


def test_the_order_of_a_source_does_not_depend_on_the_others():
    alone = mixture_of([(1.0, 30, None)])[0:90]
    mixed = mixture_of([(1.0, 30, None), (0.5, 30, None)])[0:200]
    assert np.array_equal(mixed[mixed < 30][:90], alone)
    others = mixed[mixed >= 30] - 30
    assert not np.array_equal(others[:30], alone[:30])
    assert not np.array_equal(alone[:30], alone[30:60])  # another epoch


def test_far_places_cost_no_more():
    mixture = mixture_of([(0.61, 10**9, None), (0.39, 10**10, None)])
    assert len(mixture[10**12 : 10**12 + 64]) == 64


def test_a_weight_too_small_for_a_cycle_is_refused():
    with pytest.raises(ConfigError, match="too small beside the others"):
        mixture_of([(1.0, 10, None), (1e-7, 10, None)])


def test_the_order_never_changes():
    # Checkpoints rely on it: a change here needs a new version of the training stage.
    mixture = mixture_of([(0.7, 50, None), (0.2, 20, 5), (0.1, 10, None)], seed=7)
    assert mixture[18:30].tolist() == [68, 15, 17, 13, 62, 44, 9, 28, 40, 78, 8, 42]
