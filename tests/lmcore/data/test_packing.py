import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.data.packing import Joined, best_fit_decreasing, pack

METHODS = ("chunk", "best_fit")
corpora = st.lists(st.integers(0, 60), max_size=60)
seq_lens = st.integers(2, 25)


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def pieces_of(packing, sequences):
    """The ranges of tokens that each of ``sequences`` is made of."""
    pieces = packing.pieces(sequences)
    ranges = [range(a, a + n) for a, n in zip(pieces.starts.tolist(), pieces.lengths.tolist(), strict=True)]
    ends = np.cumsum(pieces.counts)
    return [ranges[end - n : end] for end, n in zip(ends.tolist(), pieces.counts.tolist(), strict=True)]


def one_by_one(lengths, capacity):
    """Best-fit decreasing as it is told: the room that each sequence is left with."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append(min(fitting, default=capacity) - length)
    return sorted(rooms)


@given(lengths=corpora, taken=st.integers(0, 2**60), seq_len=seq_lens, method=st.sampled_from(METHODS))
@settings(max_examples=200, deadline=None)
def test_each_token_is_in_exactly_one_sequence(lengths, taken, seq_len, method):
    offsets = offsets_of(lengths)
    documents = np.array([i for i in range(len(lengths)) if taken >> i & 1], np.int64)
    packing = pack(offsets, documents, seq_len, method)
    every = np.arange(len(packing))
    sequences = pieces_of(packing, every)
    pieces = [piece for sequence in sequences for piece in sequence]
    found = sorted(token for piece in pieces for token in piece)
    assert found == [token for i in documents for token in range(offsets[i], offsets[i + 1])]
    assert packing.num_tokens == len(found)
    for piece in pieces:  # of one document
        assert np.searchsorted(offsets, piece[0], "right") == np.searchsorted(offsets, piece[-1], "right")
    sizes = [sum(map(len, sequence)) for sequence in sequences]
    assert sizes == packing.sizes(every).tolist()
    assert all(0 < size <= seq_len for size in sizes)
    for sequence in sequences:
        assert sequence == sorted(sequence, key=lambda piece: piece.start)


@given(lengths=corpora, seq_len=seq_lens, method=st.sampled_from(METHODS), data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_sequences_may_be_asked_for_in_any_order(lengths, seq_len, method, data):
    packing = pack(offsets_of(lengths), np.arange(len(lengths)), seq_len, method)
    every = pieces_of(packing, np.arange(len(packing)))
    some = data.draw(st.lists(st.integers(0, len(packing) - 1))) if len(packing) else []
    some = np.array(some, np.int64)
    assert pieces_of(packing, some) == [every[i] for i in some]
    assert packing.sizes(some).tolist() == [sum(map(len, every[i])) for i in some]


@given(lengths=corpora, seq_len=seq_lens)
@settings(max_examples=100, deadline=None)
def test_best_fit_cuts_only_what_is_longer_than_a_sequence(lengths, seq_len):
    offsets = offsets_of(lengths)
    packing = pack(offsets, np.arange(len(lengths)), seq_len, "best_fit")
    starts = packing.pieces(np.arange(len(packing))).starts
    counts = np.bincount(np.searchsorted(offsets, starts, "right") - 1, minlength=len(lengths))
    assert counts.tolist() == [-(-length // seq_len) for length in lengths]


@given(lengths=corpora, seq_len=seq_lens)
@settings(max_examples=100, deadline=None)
def test_best_fit_is_that_of_all_pieces(lengths, seq_len):
    packing = pack(offsets_of(lengths), np.arange(len(lengths)), seq_len, "best_fit")
    pieces = [min(seq_len, length - i) for length in lengths for i in range(0, length, seq_len)]
    rooms = seq_len - packing.sizes(np.arange(len(packing)))
    assert sorted(rooms.tolist()) == one_by_one(pieces, seq_len)


@given(lengths=corpora, seq_len=seq_lens)
@settings(max_examples=100, deadline=None)
def test_chunks_are_those_of_the_documents_laid_end_to_end(lengths, seq_len):
    packing = pack(offsets_of(lengths), np.arange(len(lengths)), seq_len, "chunk")
    sequences = pieces_of(packing, np.arange(len(packing)))
    assert [sequence[0].start for sequence in sequences] == list(range(0, sum(lengths), seq_len))
    assert all(sum(map(len, sequence)) == seq_len for sequence in sequences[:-1])


@given(capacity=st.integers(1, 60), data=st.data())
@settings(max_examples=200, deadline=None)
def test_runs_of_a_length_are_placed_as_one_piece_after_another_would_be(capacity, data):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=120))
    found = best_fit_decreasing(np.array(lengths, np.int32), capacity)
    filled = np.bincount(found, weights=lengths).astype(int) if lengths else np.zeros(0, int)
    assert sorted((capacity - filled).tolist()) == one_by_one(lengths, capacity)


@pytest.mark.parametrize("seq_len", [512, 100_000])
def test_padding_of_many_documents_is_under_one_percent(seq_len):
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 40_000).astype(np.int64) + 1
    packing = pack(offsets_of(lengths), np.arange(len(lengths)), seq_len, "best_fit")
    assert packing.padding < 0.01
    assert len(packing) * seq_len >= lengths.sum()


@pytest.mark.parametrize("method", METHODS)
def test_packings_are_joined_one_behind_another(method):
    offsets = offsets_of([3, 9, 4, 1, 12, 2])
    parts = [pack(offsets, np.array(documents, np.int64), 5, method) for documents in ([0, 2, 4], [], [1, 5])]
    joined = Joined(parts)
    assert len(joined) == sum(map(len, parts))
    assert joined.num_tokens == 30
    expected = [sequence for part in parts for sequence in pieces_of(part, np.arange(len(part)))]
    order = np.random.default_rng(0).permutation(len(joined))
    assert pieces_of(joined, order) == [expected[i] for i in order]
    assert joined.sizes(order).tolist() == [sum(map(len, expected[i])) for i in order]
