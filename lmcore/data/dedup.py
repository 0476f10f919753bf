"""Decide which documents are kept once, and which are held out.

Both decisions look at the content hash alone, so they do not depend on shards, workers or file names: the
same text lands in the same split wherever it is found.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import cast

import numpy as np
import pyarrow as pa

from lmcore.data.arrow import text_buffers
from lmcore.errors import DataError

HASH_BYTES = 16


def content_hash(text: str) -> bytes:
    """BLAKE2b-128 of the UTF-8 bytes of normalised ``text``: 16 bytes.

    Two of a trillion different documents share one with a probability of about 1e-15.
    """
    return hashlib.blake2b(text.encode("utf-8"), digest_size=HASH_BYTES).digest()


def content_hashes(texts: pa.Array) -> pa.Array:
    """``content_hash`` of each of ``texts`` (``pa.large_string``); ``pa.binary(16)``."""
    data, offsets = text_buffers(texts)
    ends, view = offsets.tolist(), memoryview(cast("bytes", data))
    digests = [
        hashlib.blake2b(view[start:end], digest_size=HASH_BYTES).digest()
        for start, end in itertools.pairwise(ends)
    ]
    return pa.array(digests, pa.binary(HASH_BYTES))


def order_by_hash(hashes: np.ndarray) -> np.ndarray:
    """Indices that sort ``hashes`` (uint8 [n, 16]) by value, then by position; int64 [n]."""
    halves = np.ascontiguousarray(hashes).view(">u8").reshape(-1, 2)
    return np.lexsort((halves[:, 1], halves[:, 0]))


def first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """For each of ``hashes`` (uint8 [n, 16]) the position of the first equal one; int64 [n]."""
    if not len(hashes):
        return np.empty(0, np.int64)
    order = order_by_hash(hashes)
    ordered = hashes[order]
    starts_group = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]
    # lexsort is stable: the first of a group is the one that comes first in the corpus.
    firsts = np.empty(len(hashes), np.int64)
    firsts[order] = order[starts_group][np.cumsum(starts_group) - 1]
    return firsts


def hold_out(hashes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, str]:
    """Choose the validation documents among distinct ``hashes`` (uint8 [n, 16]).

    Each is held out when a number drawn from its hash and ``seed`` falls below ``fraction``. Should that
    take none of them, the one with the smallest number is taken; should it take all, the one with the
    largest is given back.

    Returns:
        bool [n], and what was done about an empty split (usually nothing: an empty text).

    Raises:
        DataError: fewer than two documents cannot be split.
    """
    if len(hashes) < 2:
        raise DataError(
            "the corpus cannot be split into training and validation",
            expected="at least 2 distinct documents",
            found=str(len(hashes)),
            remedy="Add documents, or loosen data.quality.",
        )
    key = seed.to_bytes(16, "little")
    draws = np.array(
        [
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest(), "big")
            for row in np.ascontiguousarray(hashes)
        ],
        np.uint64,
    )
    held = draws < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    if not held.any():
        held[np.argmin(draws)] = True
        return held, "no document fell into validation, so the one with the smallest draw was held out"
    if held.all():
        held[np.argmax(draws)] = False
        return held, "every document fell into validation, so the one with the largest draw was given back"
    return held, ""
