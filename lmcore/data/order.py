"""The order of the samples: a function of (seed, epoch, index), not a state.

Sample ``i`` of an epoch is found by arithmetic: a Feistel network on the smallest square power of two that
holds all indices, walked until it lands inside (Black and Rogaway 2002). So any place of the order costs the
same, nothing is stored, and every process agrees without talking.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

# Four rounds of a good round function make a pseudorandom permutation (Luby and Rackoff 1988); small
# domains have few bits to mix, and rounds are cheap.
ROUNDS = 8
BLOCK = 4096  # places that are computed at a time, since a few cost nearly as much


class Order:
    """Endless epochs, each its own permutation of ``num_samples``; the places around the last are kept.

    Args:
        num_samples: Samples of an epoch, at least 1.
        seed: Of the whole order.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self._block: tuple[int, Indices] = -1, np.empty(0, np.int64)

    def __getitem__(self, places: slice) -> Indices:
        """Return the samples at ``places`` [start, stop) of the endless order, int64 [stop - start]."""
        number = places.start // BLOCK
        if self.num_samples < BLOCK or places.stop > (number + 1) * BLOCK:  # many epochs, or two blocks
            return self._samples(places.start, places.stop)
        block = self._block
        if number != block[0]:
            block = self._block = number, self._samples(number * BLOCK, (number + 1) * BLOCK)
        first = number * BLOCK
        return block[1][places.start - first : places.stop - first].copy()

    def _samples(self, start: int, stop: int) -> Indices:
        counters = np.arange(start, stop, dtype=np.int64)
        epochs, indices = np.divmod(counters, self.num_samples)
        samples = np.empty_like(indices)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = permute(indices[here], self.num_samples, self.seed, int(epoch))
        return samples


def permute(indices: Indices, num_samples: int, seed: int, epoch: int) -> Indices:
    """Map ``indices`` in [0, num_samples) one-to-one onto [0, num_samples)."""
    # Two halves of `half` bits each; the domain is less than four times as large as needed.
    half = np.uint64(max(1, (max(num_samples - 1, 1).bit_length() + 1) // 2))
    keys = _round_keys(seed, epoch)
    values = _feistel(indices.astype(np.uint64), half, keys)
    outside = values >= num_samples
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= num_samples
    return values.astype(np.int64)


def _feistel(
    values: npt.NDArray[np.uint64], half: np.uint64, keys: list[np.uint64]
) -> npt.NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014); uint64 arithmetic wraps.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    digests = (hashlib.sha256(f"{seed}:{epoch}:{round_}".encode()).digest() for round_ in range(ROUNDS))
    return [np.uint64(int.from_bytes(digest[:8], "little")) for digest in digests]
