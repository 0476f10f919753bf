import math

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.decoding import Decoder
from lmcore.data.tokens import TokenDataset
from lmcore.eval import baselines
from lmcore.eval.held_out import HeldOut

documents_of_bytes = st.lists(st.binary(max_size=40), min_size=1, max_size=6).filter(any)


def test_zstd_is_the_library_s_own_result(corpus):
    documents = [text.encode() for text in corpus.texts["validation"]]
    text = b"".join(documents)
    once = zstandard.ZstdCompressor(level=19).compress(text)
    assert baselines.zstd_bits_per_byte(documents) == 8 * len(once) / len(text)
    each = [zstandard.ZstdCompressor(level=19).compress(document) for document in documents]
    assert baselines.zstd_per_document_bits_per_byte(documents) == 8 * sum(map(len, each)) / len(text)


def naive_bigrams(training, limit, documents):
    stream = [symbol for document in training for symbol in [*document, 256]][:limit]
    counts = {}
    for pair in zip([256, *stream], stream, strict=False):
        counts[pair] = counts.get(pair, 0) + 1
    totals = {}
    for (before, _), count in counts.items():
        totals[before] = totals.get(before, 0) + count
    bits = 0.0
    for document in documents:
        before = 256
        for symbol in [*document, 256]:
            bits -= math.log2((counts.get((before, symbol), 0) + 1) / (totals.get(before, 0) + 257))
            before = symbol
    return bits / sum(map(len, documents))


@pytest.mark.parametrize("limit", [1, 1000, 10**9])
def test_bigrams_are_those_of_the_naive_way(corpus, monkeypatch, limit):
    monkeypatch.setattr("lmcore.eval.held_out._BLOCK_TOKENS", 97)
    training = [text.encode() for text in corpus.texts["train"]]
    held_out = [text.encode() for text in corpus.texts["validation"]]
    stream = TokenDataset(corpus.tokens / "train")
    counts = baselines.count_bigrams(stream, Decoder(corpus.tokenizer), limit)
    expected = naive_bigrams(training, limit, held_out)
    assert baselines.bigram_bits_per_byte(held_out, counts) == pytest.approx(expected, rel=1e-12)


@given(documents_of_bytes)
def test_bigrams_of_any_bytes(documents):
    counts = np.zeros((257, 257), np.int64)
    expected = naive_bigrams([], 0, documents)
    assert baselines.bigram_bits_per_byte(documents, counts) == pytest.approx(expected, rel=1e-12)


def test_the_text_they_see_is_the_text(corpus):
    held_out = HeldOut(corpus.tokens / "validation", Decoder(corpus.tokenizer))
    assert held_out.documents() == [text.encode() for text in corpus.texts["validation"]]
