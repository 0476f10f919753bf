"""What a document's text is known by, and the number that decides on which side of a split it falls.

Both look at the text alone, so they do not depend on shards, workers or file names: the same text lands in
the same split wherever it is found.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from lmcore.data.arrow import text_array, views_of

HASH_BYTES = 16


def content_hash(text: str) -> bytes:
    """BLAKE2b-128 of the UTF-8 bytes of the canonical form of normalised ``text``: 16 bytes.

    White space at the ends of lines and blank lines do not count (``lmcore.data.canonical``). Two of a
    trillion documents that differ by more share one with a probability of about 1e-15.
    """
    return content_hashes(text_array([text]))[0].as_py()


def content_hashes(texts: pa.Array) -> pa.Array:
    """``content_hash`` of each of ``texts`` (``pa.large_string``); ``pa.binary(16)``."""
    from lmcore.data.canonical import canonical_texts  # loads compiled code

    forms = views_of(canonical_texts(texts))
    digests = [hashlib.blake2b(form, digest_size=HASH_BYTES).digest() for form in forms]
    return pa.Array.from_buffers(pa.binary(HASH_BYTES), len(digests), [None, pa.py_buffer(b"".join(digests))])


def order_by_hash(hashes: np.ndarray) -> np.ndarray:
    """Indices that sort ``hashes`` (uint8 [n, 16]) by value, then by position; int64 [n]."""
    upper, lower = halves(hashes)
    return np.lexsort((lower, upper))


def halves(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower half of each of ``hashes`` (uint8 [n, 16]), as numbers; uint64 [n] each."""
    both = np.ascontiguousarray(hashes).view(">u8").reshape(-1, 2).astype(np.uint64)
    return both[:, 0], both[:, 1]


def draws(hashes: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each of ``hashes`` (uint8 [n, 16]), drawn from it and ``seed``; float64 [n].

    Splitmix64's finalizer (Steele et al. 2014) on a half of the hash, which is random already.
    """
    key = int.from_bytes(hashlib.blake2b(seed.to_bytes(16, "little"), digest_size=8).digest(), "big")
    x = halves(hashes)[1] ^ np.uint64(key)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
