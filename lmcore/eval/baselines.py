"""What simple compressors need for the same text, so that a model's bits per byte mean something."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard

from lmcore.data.decoding import END, Decoder
from lmcore.data.tokens import TokenDataset
from lmcore.eval.held_out import blocks

ZSTD_LEVEL = 19
BIGRAM_BYTES = 20_000_000
NUM_SYMBOLS = 257  # the bytes, and the end of a document


def zstd_bits_per_byte(documents: Sequence[bytes]) -> float:
    """Bits per byte of all ``documents`` as one stream, in which each profits from those before."""
    text = b"".join(documents)
    return 8 * len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(text)) / len(text)


def zstd_per_document_bits_per_byte(documents: Sequence[bytes]) -> float:
    """Bits per byte where each of ``documents`` is compressed alone."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    compressed = sum(len(compressor.compress(document)) for document in documents)
    return 8 * compressed / sum(map(len, documents))


def count_bigrams(stream: TokenDataset, decoder: Decoder, max_bytes: int = BIGRAM_BYTES) -> np.ndarray:
    """Count which symbol follows which in the first ``max_bytes`` of a split.

    Returns:
        int64 [257, 257]: bytes, and ``END``, which stands after each document and so before the next.
    """
    counts = np.zeros((NUM_SYMBOLS, NUM_SYMBOLS), np.int64)
    previous, left = END, max_bytes
    for _, block in blocks(stream):
        symbols = decoder.symbols(block)[:left]
        counts += _pairs(previous, symbols)
        left -= len(symbols)
        if left <= 0:
            break
        previous = int(symbols[-1]) if len(symbols) else previous
    return counts


def bigram_bits_per_byte(documents: Sequence[bytes], counts: np.ndarray) -> float:
    """Bits per byte of ``documents`` under byte bigrams with add-one smoothing.

    As with a token model, the end of each document is predicted too, from the byte before.

    Args:
        documents: The text.
        counts: Of ``count_bigrams``.
    """
    totals = counts.sum(axis=1, keepdims=True) + NUM_SYMBOLS
    bits = np.log2(totals) - np.log2(counts + 1)  # [257, 257]
    spent = 0.0
    for document in documents:
        symbols = np.append(np.frombuffer(document, np.uint8).astype(np.uint16), np.uint16(END))
        spent += float(bits[np.concatenate(([END], symbols[:-1])), symbols].sum())
    return spent / sum(map(len, documents))


def _pairs(previous: int, symbols: np.ndarray) -> np.ndarray:
    before = np.concatenate(([previous], symbols[:-1])) if len(symbols) else symbols
    pairs = before.astype(np.int64) * NUM_SYMBOLS + symbols
    return np.bincount(pairs, minlength=NUM_SYMBOLS**2).reshape(NUM_SYMBOLS, NUM_SYMBOLS)
