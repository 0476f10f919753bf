import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.tokens import TokenDataset
from lmcore.errors import ConfigError, DataError
from lmcore.eval.perplexity import SlidingWindows, read_windows, score_text
from lmcore.eval.scorer import WholeScorer


@given(
    num_tokens=st.integers(0, 300),
    seq_len=st.integers(1, 40),
    stride=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 4),
)
def test_every_token_is_scored_exactly_once(num_tokens, seq_len, stride, batch_size, world_size):
    stride = min(stride, seq_len)
    windows = SlidingWindows(num_tokens, seq_len, stride)
    counts = np.zeros(num_tokens, int)
    for rank in range(world_size):
        for batch in windows.batches(batch_size)[rank::world_size]:
            for window in batch:
                counts[window.scored : window.stop] += 1
                assert window.stop - window.start == min(seq_len, num_tokens)
                # All but what the window's length forbids is context.
                assert window.scored - window.start >= min(window.scored, seq_len - stride)
    assert (counts == 1).all()


@pytest.mark.parametrize("stride", [0, 9])
def test_windows_that_leave_gaps_are_refused(stride):
    with pytest.raises(ConfigError, match="stride_tokens"):
        SlidingWindows(100, 8, stride)


@pytest.fixture(scope="module")
def stream(corpus):
    return TokenDataset(corpus.tokens / "validation")


def score(model, stream, *, seq_len=32, stride=16, batch_size=3, rank=0, world_size=1, **options):
    windows = SlidingWindows(stream.num_tokens, seq_len, stride)
    scorer = WholeScorer(model, rank, world_size)
    return score_text(scorer, stream, windows, batch_size=batch_size, **options)


@pytest.mark.parametrize("tie", [False, True])
def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_for_each_token(corpus, stream, tie):
    model = corpus.make_model(tie_embeddings=tie)
    with torch.no_grad():
        model.head.weight.zero_()
    bits = score(model, stream) / math.log(2) / stream.num_tokens
    assert bits == pytest.approx(math.log2(corpus.vocab_size), rel=1e-6)


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize(("seq_len", "stride"), [(32, 16), (32, 32), (7, 1), (1, 1), (32, 5)])
def test_the_loss_is_that_of_one_window_at_a_time(corpus, stream, position, seq_len, stride):
    model = corpus.make_model(position=position)
    tokens = torch.from_numpy(stream.slice(0, stream.num_tokens).astype(np.int64))
    inputs = torch.cat([torch.tensor([stream.eos_id]), tokens[:-1]])
    expected = 0.0
    windows = SlidingWindows(stream.num_tokens, seq_len, stride)
    with torch.no_grad():
        for window in (windows[i] for i in range(len(windows))):
            logits = model(inputs[None, window.start : window.stop])[0]
            losses = F.cross_entropy(logits, tokens[window.start : window.stop], reduction="none")
            expected += losses[window.scored - window.start :].double().sum().item()
    assert score(model, stream, seq_len=seq_len, stride=stride) == pytest.approx(expected, rel=1e-6)


def test_batches_and_shares_do_not_change_the_loss(corpus, stream):
    model = corpus.make_model()
    expected = score(model, stream, batch_size=1)
    for batch_size in (2, 5, 1000):
        assert score(model, stream, batch_size=batch_size) == pytest.approx(expected, rel=1e-6)
    for world_size in (2, 3):
        shares = [score(model, stream, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert sum(shares) == pytest.approx(score(model, stream), rel=1e-13)


def test_a_long_vocabulary_is_scored_in_parts(corpus, stream, monkeypatch):
    model = corpus.make_model()
    expected = score(model, stream)
    monkeypatch.setattr("lmcore.eval.scorer._LOGITS_AT_ONCE", 5 * corpus.vocab_size)
    assert score(model, stream) == pytest.approx(expected, rel=1e-6)


def test_a_model_without_context_scores_the_same_at_any_stride(corpus, stream):
    model = corpus.make_model()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight.zero_()
    losses = [score(model, stream, seq_len=n, stride=s) for n, s in ((32, 32), (32, 1), (20, 7), (3, 2))]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_the_first_token_is_predicted_from_the_end_of_a_document(stream):
    windows = SlidingWindows(stream.num_tokens, 32, 4)
    tokens, scored = read_windows([(stream, windows[0]), (stream, windows[1])], stream.vocab_size)
    assert tokens[0, 0] == stream.eos_id
    assert tokens[0, 1:].tolist() == stream.slice(0, 32).tolist()
    assert tokens[1].tolist() == stream.slice(3, 36).tolist()
    assert scored.sum(dim=1).tolist() == [32, 4]


def test_tokens_the_model_does_not_have_are_refused(corpus, stream):
    with pytest.raises(DataError, match="not of this model's tokenizer"):
        score(corpus.make_model(vocab_size=100), stream)


def test_under_the_document_mask_each_document_is_scored_as_if_alone(corpus, stream):
    seq_len = int(np.diff(stream.document_offsets).max())
    model = corpus.make_model(max_seq_len=seq_len)
    expected = 0.0
    with torch.no_grad():
        for index in range(stream.num_documents):
            begin, end = stream.document_offsets[index : index + 2]
            document = torch.from_numpy(stream.slice(int(begin), int(end)).astype(np.int64))
            inputs = torch.cat([torch.tensor([stream.eos_id]), document[:-1]])
            expected += F.cross_entropy(model(inputs[None])[0], document, reduction="sum").item()
    scored = score(model, stream, seq_len=seq_len, stride=1, document_mask=True)
    assert scored == pytest.approx(expected, rel=1e-5)
    assert score(model, stream, seq_len=seq_len, stride=1) != pytest.approx(expected, rel=1e-5)
