"""Scores of evaluation sets: as one sentence at a time, by any number of processes, in any batches."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmcore.data.encoding import Encoder
from lmcore.data.tokenizer import load_tokenizer
from lmcore.data.tokens import TokenDataset
from lmcore.eval.perplexity import SlidingWindows, score_text
from lmcore.eval.scorer import WholeScorer
from lmcore.eval.set_scores import PairSet, Scoring, TextSet
from lmcore.eval.sets import Pair

PAIRS = [
    Pair("def self return x", "x return self def", "order"),
    Pair("if value = x else 日本", "if value value = = x", "order"),
    Pair("def", "def def def if else return naïve 🙂 value self x " * 4, "length"),
    Pair("naïve 日本", "naïve 🙂", ""),
    Pair("return self", "return self", "same"),
]


@pytest.fixture(scope="module")
def encoder(corpus):
    return Encoder(corpus.tokenizer, "tokenizers")


def how(**changes):
    return Scoring(**{"seq_len": 16, "stride": 4, "batch_size": 2, **changes})


def alone(model, text, encoder, seq_len=16, stride=4):
    """Loss of a sentence, its windows computed one at a time."""
    tokens = torch.from_numpy(encoder.encode([text])[0].astype(np.int64))
    inputs = torch.cat([torch.tensor([encoder.eos_id]), tokens[:-1]])
    windows, total = SlidingWindows(len(tokens), seq_len, stride), 0.0
    with torch.no_grad():
        for window in (windows[i] for i in range(len(windows))):
            logits = model(inputs[None, window.start : window.stop])[0]
            losses = F.cross_entropy(logits, tokens[window.start : window.stop], reduction="none")
            total += losses[window.scored - window.start :].double().sum().item()
    return total


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_sentence_is_scored_as_if_alone_however_it_is_batched(corpus, encoder, position):
    model = corpus.make_model(position=position)
    expected = [alone(model, text, encoder) for pair in PAIRS for text in (pair.good, pair.bad)]
    pairs = PairSet("mini", PAIRS, encoder)
    assert max(len(encoder.encode([pair.bad])[0]) for pair in PAIRS) > 16, "one slides"
    for batch_size in (1, 3, 100):
        losses = pairs.losses(WholeScorer(model), how(batch_size=batch_size))
        assert losses == pytest.approx(expected, rel=1e-6)
    for world_size in (2, 5):
        shares = [pairs.losses(WholeScorer(model, rank, world_size), how()) for rank in range(world_size)]
        assert np.sum(shares, axis=0) == pytest.approx(pairs.losses(WholeScorer(model), how()), rel=1e-13)


def test_every_batch_is_told_and_none_is_larger_than_asked(corpus, encoder):
    pairs, told = PairSet("mini", PAIRS, encoder), []
    pairs.losses(
        WholeScorer(corpus.make_model()), how(batch_size=1), lambda scored: bool(told.append(scored))
    )
    assert sum(told) == pairs.num_tokens
    assert max(told) <= 16
    told.clear()
    pairs.losses(WholeScorer(corpus.make_model()), how(batch_size=1), lambda scored: not told.append(scored))
    assert len(told) == 1, "asked to stop after the first"


class Letters(torch.nn.Module):
    """Predicts each token by a share that was written down, whatever came before."""

    def __init__(self, shares):
        super().__init__()
        self.vocab_size = len(shares)
        self.table = torch.nn.Embedding.from_pretrained(shares.log().repeat(len(shares), 1))

    def hidden(self, tokens, positions=None, document_ids=None):
        return self.table(tokens)

    def logits(self, hidden):
        return hidden


def test_accuracy_is_that_of_shares_that_were_written_down(corpus, encoder):
    letters = {"a": 0.1, "b": 0.5, "c": 0.25}
    shares = torch.full((corpus.vocab_size,), 0.15 / (corpus.vocab_size - len(letters)))
    for letter, share in letters.items():
        shares[load_tokenizer(corpus.tokenizer).token_to_id(letter)] = share
    listed = [
        Pair("b", "c", "one"),  # 0.5 is more than 0.25
        Pair("c", "b", "one"),
        Pair("bb", "a", "one"),  # 0.25 is more than 0.1
        Pair("b", "bb", "two"),
        Pair("bb", "b", "two"),
        Pair("cb", "bc", "two"),  # as likely is not likelier
        Pair("ac", "ab", ""),
    ]
    pairs = PairSet("mini", listed, encoder)
    assert pairs.num_tokens == sum(len(pair.good + pair.bad) for pair in listed), "a letter is a token"
    losses = pairs.losses(WholeScorer(Letters(shares)), how())
    by_hand = [sum(-math.log(letters[c]) for c in text) for pair in listed for text in (pair.good, pair.bad)]
    assert losses == pytest.approx(by_hand, rel=1e-6)
    result = pairs.result(losses)
    assert (result["accuracy"], result["num_pairs"]) == (3 / 7, 7)
    assert result["groups"] == {
        "one": {"accuracy": 2 / 3, "num_pairs": 3},
        "two": {"accuracy": 1 / 3, "num_pairs": 3},
    }
    samples = pairs.samples(losses)
    margins = [sample["bad_loss"] - sample["good_loss"] for sample in samples]
    assert margins == sorted(margins)
    assert json.loads(json.dumps(samples)) == samples


@pytest.mark.parametrize("document_mask", [False, True])
def test_a_text_is_scored_as_the_validation_split_is(corpus, encoder, document_mask):
    model, stream = corpus.make_model(), TokenDataset(corpus.tokens / "validation")
    texts = corpus.texts["validation"]
    scored = TextSet("texts", texts, encoder)
    options = {"batch_size": 3, "document_mask": document_mask}
    expected = score_text(WholeScorer(model), stream, SlidingWindows(stream.num_tokens, 16, 4), **options)
    losses = scored.losses(WholeScorer(model), how(**options))
    assert losses == [expected]
    result = scored.result(losses)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert result["bits_per_byte"] == pytest.approx(expected / math.log(2) / num_bytes)
    counts = (result["num_bytes"], result["num_tokens"], result["num_documents"])
    assert counts == (num_bytes, stream.num_tokens, len(texts))
    shares = [scored.losses(WholeScorer(model, rank, 2), how(**options))[0] for rank in range(2)]
    assert sum(shares) == pytest.approx(expected, rel=1e-13)
