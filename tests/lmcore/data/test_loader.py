import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.data.loader import IGNORE_INDEX, PackedSequences, TrainLoader, Windows, validation_batches
from lmcore.data.packing import pack
from lmcore.errors import DataError


class Stream:
    """Documents in memory; token t is t + 1, and 0 ends a document."""

    eos_id = 0

    def __init__(self, lengths):
        self.document_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.num_tokens = int(self.document_offsets[-1])
        self.tokens = np.arange(1, self.num_tokens + 1, dtype=np.int32)
        self.tokens[self.document_offsets[1:] - 1] = 0

    def slice(self, start, stop):
        assert 0 <= start <= stop <= self.num_tokens
        return self.tokens[start:stop].copy()

    def doc_id(self, i):
        return f"doc-{i}"


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)
streams = lengths.map(Stream).filter(lambda s: s.num_tokens > 40)


def loaders(windows, world_size, batch=4, micro=1):
    return [
        TrainLoader(
            windows, global_batch_size=batch, micro_batch_size=micro, seed=3, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]


@given(stream=streams, seq_len=st.integers(2, 9), document_mask=st.booleans(), step=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_a_step_is_the_same_at_any_world_size(stream, seq_len, document_mask, step):
    windows = Windows(stream, seq_len, document_mask=document_mask)
    whole = list(loaders(windows, 1, micro=4)[0].micro_batches(step))
    for world_size in (2, 4):
        parts = [b for loader in loaders(windows, world_size) for b in loader.micro_batches(step)]
        for name in ("tokens", "targets", "positions", "document_ids"):
            a = [getattr(b, name) for b in whole]
            b = [getattr(b, name) for b in parts]
            assert a[0] is None if b[0] is None else torch.equal(torch.cat(a), torch.cat(b))
    counted = sum(int((b.targets != IGNORE_INDEX).sum()) for b in whole)
    assert loaders(windows, 1)[0].num_targets(step) == counted


@given(stream=streams, seq_len=st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_an_epoch_reads_each_token_once_as_input(stream, seq_len):
    windows = Windows(stream, seq_len, document_mask=False)
    loader = loaders(windows, 1, batch=1)[0]
    steps = [next(iter(loader.micro_batches(step))) for step in range(len(windows))]
    inputs = torch.cat([b.tokens for b in steps]).flatten().sort().values
    expected = torch.from_numpy(stream.tokens[: len(windows) * seq_len].astype(np.int64)).sort().values
    assert torch.equal(inputs, expected)
    for batch in steps:
        assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])


@given(stream=streams, seq_len=st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_documents_start_anew_under_the_mask(stream, seq_len):
    windows = Windows(stream, seq_len, document_mask=True)
    batch = windows.batch(np.arange(len(windows)))
    plain = Windows(stream, seq_len, document_mask=False).batch(np.arange(len(windows)))
    assert torch.equal(batch.tokens, plain.tokens)
    assert torch.equal(batch.targets, plain.targets)
    assert (batch.positions[:, 0] == 0).all()
    starts = batch.document_ids[:, 1:] != batch.document_ids[:, :-1]
    # EOS, which ends a document as a target, begins the next one as an input.
    assert torch.equal(starts, batch.tokens[:, 1:] == 0)
    assert torch.equal(batch.positions[:, 1:], (batch.positions[:, :-1] + 1) * ~starts)


@given(
    stream=streams,
    seq_len=st.integers(2, 9),
    max_tokens=st.integers(1, 400),
    batch_size=st.integers(1, 5),
    document_mask=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_validation_reads_the_same_targets_at_any_world_size(
    stream, seq_len, max_tokens, batch_size, document_mask
):
    windows = Windows(stream, seq_len, document_mask=document_mask)
    seen = []
    for world_size in (1, 3):
        ranks = [
            list(
                validation_batches(
                    windows, max_tokens=max_tokens, batch_size=batch_size, rank=rank, world_size=world_size
                )
            )
            for rank in range(world_size)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        targets = torch.cat([b.targets.flatten() for batches in ranks for b in batches])
        seen.append(targets[targets != IGNORE_INDEX].sort().values)
    assert torch.equal(*seen)
    whole_windows = -(-min(max_tokens, stream.num_tokens - 1) // seq_len) * seq_len
    expected = stream.tokens[1 : 1 + whole_windows]
    assert seen[0].tolist() == sorted(expected.tolist())


def test_which_documents_made_a_step():
    stream = Stream([10, 10, 10, 10])
    loader = loaders(Windows(stream, 5, document_mask=False), 1, batch=1)[0]
    for step in range(7):
        (sample,) = loader.samples_of_step(step)
        first, last = sample * 5 // 10, min(sample * 5 + 5, 39) // 10
        assert loader.documents_of_step(step) == [f"doc-{i}" for i in range(first, last + 1)]


def test_too_little_text_for_a_batch_is_an_error():
    with pytest.raises(DataError, match="global_batch_tokens"):
        loaders(Windows(Stream([12]), 5, document_mask=False), 1)


# --- packed sequences ------------------------------------------------------------------------------


def packed(stream, seq_len, method, document_mask=True):
    every = np.arange(len(stream.document_offsets) - 1)
    packing = pack(stream.document_offsets, every, seq_len, method)
    return PackedSequences(stream, packing, document_mask=document_mask)


packings = {"seq_len": st.integers(2, 9), "method": st.sampled_from(["chunk", "best_fit"])}


@given(stream=streams, document_mask=st.booleans(), step=st.integers(0, 5), **packings)
@settings(max_examples=60, deadline=None)
def test_a_packed_step_is_the_same_at_any_world_size(stream, seq_len, method, document_mask, step):
    sequences = packed(stream, seq_len, method, document_mask)
    whole = list(loaders(sequences, 1, micro=4)[0].micro_batches(step))
    for world_size in (2, 4):
        parts = [b for loader in loaders(sequences, world_size) for b in loader.micro_batches(step)]
        for name in ("tokens", "targets", "positions", "document_ids"):
            a = [getattr(b, name) for b in whole]
            b = [getattr(b, name) for b in parts]
            assert a[0] is None if b[0] is None else torch.equal(torch.cat(a), torch.cat(b))
    counted = sum(int((b.targets != IGNORE_INDEX).sum()) for b in whole)
    assert loaders(sequences, 1)[0].num_targets(step) == counted


@given(stream=streams, **packings)
@settings(max_examples=60, deadline=None)
def test_each_token_is_once_a_target_and_its_input_is_the_one_before(stream, seq_len, method):
    sequences = packed(stream, seq_len, method)
    batch = sequences.batch(np.arange(len(sequences)))
    counts = batch.targets != IGNORE_INDEX
    targets, inputs = batch.targets[counts].numpy(), batch.tokens[counts].numpy()
    assert sorted(targets.tolist()) == sorted(stream.tokens.tolist())
    before = np.append(0, stream.tokens)  # EOS is before the first
    known = targets != 0  # token t is t + 1, but for EOS
    assert (inputs[known] == before[targets[known] - 1]).all()
    assert (batch.tokens[~counts] == stream.eos_id).all()


@given(stream=streams, **packings)
@settings(max_examples=60, deadline=None)
def test_pieces_do_not_see_one_another_and_padding_is_a_document_of_its_own(stream, seq_len, method):
    sequences = packed(stream, seq_len, method)
    batch = sequences.batch(np.arange(len(sequences)))
    for row in range(len(sequences)):
        lengths = sequences.packing.pieces(np.array([row])).lengths.tolist()
        padding = seq_len - sum(lengths)
        expected = [i for length in [*lengths, padding] for i in range(length)]
        assert batch.positions[row].tolist() == expected
        ids = batch.document_ids[row]
        assert torch.equal(ids[1:] != ids[:-1], batch.positions[row, 1:] == 0)
        assert (batch.targets[row, seq_len - padding :] == IGNORE_INDEX).all()


@given(stream=streams, seq_len=st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_packed_chunks_are_windows_that_begin_with_an_end(stream, seq_len):
    ahead = Stream([1, *np.diff(stream.document_offsets)])  # one more EOS before the first document
    ahead.tokens[1:] = stream.tokens
    sequences = packed(stream, seq_len, "chunk")
    windows = Windows(ahead, seq_len, document_mask=True)
    found, expected = sequences.batch(np.arange(len(windows))), windows.batch(np.arange(len(windows)))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.targets, expected.targets)
    assert torch.equal(found.positions, expected.positions)


def test_which_documents_made_a_packed_step():
    stream = Stream([3, 7, 2, 5])
    sequences = packed(stream, 5, "best_fit")
    loader = loaders(sequences, 1, batch=1)[0]
    found = sorted(loader.documents_of_step(step) for step in range(len(sequences)))
    assert found == [["doc-0", "doc-1"], ["doc-1"], ["doc-2"], ["doc-3"]]


def test_packed_tokens_of_another_tokenizer_are_refused():
    stream = Stream([3, 7])
    sequences = packed(stream, 5, "best_fit")
    sequences.vocab_size = 9
    with pytest.raises(DataError, match="not of the model's tokenizer"):
        sequences.batch(np.arange(len(sequences)))
