import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import SamplingConfig
from lmcore.errors import CheckpointError
from lmcore.eval.sampling import draw, keep_likeliest

# Few values, so that there are ties; and some far apart, so that probabilities vanish.
any_logits = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-80, 80)), min_size=1, max_size=30)


def reference(logits, top_k, top_p):
    """Ids to be drawn from, in plain numpy."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[:top_k] if top_k else order
    shares = np.exp(np.array([logits[i] for i in order]) - max(logits))
    shares /= shares.sum()
    kept, held = [], 0.0
    for index, share in zip(order, shares, strict=True):
        kept.append((index, held))
        held += share
        if held >= top_p and top_p < 1:
            break
    return kept, shares


@given(any_logits, st.integers(0, 35), st.floats(0.01, 1.0))
def test_what_is_kept_is_what_the_reference_keeps(values, top_k, top_p):
    logits = torch.tensor(values, dtype=torch.float64)
    filtered = keep_likeliest(logits, top_k, top_p)
    kept = set(torch.isfinite(filtered).nonzero()[:, 0].tolist())
    expected, shares = reference(values, top_k, top_p)
    close = np.any(np.abs(np.cumsum(shares) - top_p) < 1e-9)  # rounding may decide either way
    if not close or top_p == 1:
        assert kept == {index for index, _ in expected}
    assert kept
    assert int(logits.argmax()) in kept or values.count(max(values)) > 1
    assert len(kept) <= (top_k or len(values))
    assert all(filtered[i] == logits[i] for i in kept)
    worst = min(values[i] for i in kept)
    assert all(values[i] <= worst for i in set(range(len(values))) - kept)


@given(any_logits, st.integers(0, 100), st.integers(0, 10), st.floats(0.01, 1.0), st.floats(0.0, 3.0))
def test_draws_are_kept_tokens_and_repeat_with_the_seed(values, seed, top_k, top_p, temperature):
    logits = torch.tensor(values)
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    first, second = (draw(logits, sampling, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert first == second
    if temperature == 0 or top_k == 1:
        assert logits[first] == logits.max()
    if top_k:
        assert (logits > logits[first]).sum() < top_k


def test_draws_come_as_often_as_their_probability():
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    generator = torch.Generator().manual_seed(0)
    sampling = SamplingConfig(temperature=1.0, top_k=3, top_p=1.0)
    drawn = [draw(shares.log(), sampling, generator) for _ in range(3000)]
    found = np.bincount(drawn, minlength=4) / len(drawn)
    assert found == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], abs=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_not_numbers_are_refused(temperature, bad):
    with pytest.raises(CheckpointError, match="not numbers"):
        draw(torch.tensor([1.0, bad]), SamplingConfig(temperature=temperature), torch.Generator())
