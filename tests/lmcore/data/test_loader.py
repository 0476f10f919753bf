import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.data.loader import IGNORE_INDEX, TrainLoader, Windows, validation_batches
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
