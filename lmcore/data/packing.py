"""Which tokens make a sequence: documents cut into pieces and packed, from their lengths alone.

``chunk`` lays documents end to end and cuts every ``seq_len`` tokens. ``best_fit`` cuts only documents that
are longer than a sequence and packs the pieces by best-fit decreasing (Ding et al. 2024, "Fewer Truncations
Improve Language Modeling", https://arxiv.org/abs/2404.10830). Nothing is read but where documents begin and
end, so another sequence length is another plan, not another tokenization. A plan holds a few numbers for each
document, however many sequences it makes: the rest is arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lmcore.data.order import Indices

Method = Literal["chunk", "best_fit"]

_RADIX_SORTED = 2**16  # numpy sorts integers of 16 bits by counting, wider ones by merging


@dataclass(frozen=True)
class Pieces:
    """Ranges of tokens, each of one document.

    Attributes:
        starts: Where each starts in the split, int64 [pieces].
        lengths: Tokens of each, int64 [pieces].
        counts: How many each sequence is made of, int64 [sequences]; they are in its order.
    """

    starts: Indices
    lengths: Indices
    counts: Indices


class Packing(ABC):
    """Sequences made of pieces; those of a sequence are in the order of the split.

    Attributes:
        seq_len: No sequence holds more tokens.
        num_sequences: Of an epoch.
        num_tokens: Of all sequences.
    """

    seq_len: int
    num_sequences: int
    num_tokens: int

    def __len__(self) -> int:
        return self.num_sequences

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        return 1 - self.num_tokens / max(1, self.num_sequences * self.seq_len)

    @abstractmethod
    def pieces(self, sequences: Indices) -> Pieces:
        """Pieces of ``sequences`` [B]."""

    @abstractmethod
    def sizes(self, sequences: Indices) -> Indices:
        """Tokens of each of ``sequences`` [B], int64 [B]."""


def pack(offsets: Indices, documents: Indices, seq_len: int, method: Method) -> Packing:
    """Put ``documents`` into sequences; each of their tokens is in exactly one.

    Args:
        offsets: Where each document of the split starts, int64 [documents + 1]; the last is the end.
        documents: Which of them, int64, ascending; the others are left out.
        seq_len: Tokens of a sequence.
        method: See above.
    """
    lengths = offsets[documents + 1] - offsets[documents]
    starts, lengths = offsets[documents[lengths > 0]], lengths[lengths > 0]
    return (Chunks if method == "chunk" else BestFit)(starts, lengths, seq_len)


class Chunks(Packing):
    """Documents laid end to end and cut every ``seq_len`` tokens; the last sequence alone is padded.

    Args:
        starts: Where each document starts in the split, int64 [documents].
        lengths: Its tokens, at least 1, int64 [documents].
        seq_len: Tokens of a sequence.
    """

    def __init__(self, starts: Indices, lengths: Indices, seq_len: int) -> None:
        self.seq_len = seq_len
        self.num_tokens = int(lengths.sum())
        self.num_sequences = -(-self.num_tokens // seq_len)
        self._starts = starts
        self._begins = np.zeros(len(lengths) + 1, np.int64)  # when laid end to end; the last is the end
        np.cumsum(lengths, out=self._begins[1:])

    def pieces(self, sequences: Indices) -> Pieces:
        """Pieces of ``sequences`` [B]."""
        lows = sequences * self.seq_len
        highs = lows + self.sizes(sequences)
        firsts = np.searchsorted(self._begins, lows, "right") - 1
        counts = np.searchsorted(self._begins, highs) - firsts
        documents = _ranges(firsts, counts)
        begins = self._begins[documents]
        lows = np.maximum(begins, np.repeat(lows, counts))
        highs = np.minimum(self._begins[documents + 1], np.repeat(highs, counts))
        return Pieces(self._starts[documents] + (lows - begins), highs - lows, counts)

    def sizes(self, sequences: Indices) -> Indices:
        """Tokens of each of ``sequences`` [B], int64 [B]."""
        return np.minimum(self.num_tokens - sequences * self.seq_len, self.seq_len)


class BestFit(Packing):
    """Whole sequences of longer documents, then what is left of all documents, packed.

    Args:
        starts: Where each document starts in the split, int64 [documents].
        lengths: Its tokens, at least 1, int64 [documents].
        seq_len: Tokens of a sequence.
    """

    def __init__(self, starts: Indices, lengths: Indices, seq_len: int) -> None:
        self.seq_len = seq_len
        self.num_tokens = int(lengths.sum())
        self._starts = starts
        self._whole_before = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths // seq_len, out=self._whole_before[1:])
        self._num_whole = int(self._whole_before[-1])

        rests = (lengths % seq_len).astype(np.int32)
        documents = np.flatnonzero(rests)
        bins = best_fit_decreasing(rests[documents], seq_len)
        counts = np.bincount(bins)
        # Stable: in a sequence, pieces stay in the order of the split and not by length.
        order = np.argsort(bins, kind="stable")
        del bins
        self._rest_documents = documents[order].astype(np.uint32)
        self._rest_lengths = rests[self._rest_documents]
        self._rest_firsts = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=self._rest_firsts[1:])
        self.num_sequences = self._num_whole + len(counts)
        self._filled = (
            np.add.reduceat(self._rest_lengths, self._rest_firsts[:-1]) if len(counts) else self._rest_lengths
        )

    def pieces(self, sequences: Indices) -> Pieces:
        """Pieces of ``sequences`` [B]."""
        whole, packed = self._split(sequences)
        counts = np.ones_like(sequences)
        firsts = self._rest_firsts[packed]
        counts[~whole] = self._rest_firsts[packed + 1] - firsts
        rests = _ranges(firsts, counts[~whole])
        documents, wholes = np.empty((2, int(counts.sum())), np.int64)
        lengths = np.full_like(documents, self.seq_len)
        here = np.repeat(whole, counts)
        documents[here] = np.searchsorted(self._whole_before, sequences[whole], "right") - 1
        wholes[here] = sequences[whole] - self._whole_before[documents[here]]
        documents[~here] = self._rest_documents[rests]
        packed_documents = documents[~here]
        wholes[~here] = self._whole_before[packed_documents + 1] - self._whole_before[packed_documents]
        lengths[~here] = self._rest_lengths[rests]
        return Pieces(self._starts[documents] + wholes * self.seq_len, lengths, counts)

    def sizes(self, sequences: Indices) -> Indices:
        """Tokens of each of ``sequences`` [B], int64 [B]."""
        whole, packed = self._split(sequences)
        sizes = np.full_like(sequences, self.seq_len)
        sizes[~whole] = self._filled[packed]
        return sizes

    def _split(self, sequences: Indices) -> tuple[npt.NDArray[np.bool_], Indices]:
        """Which are whole, and the numbers of the others among those that are packed."""
        whole = sequences < self._num_whole
        return whole, sequences[~whole] - self._num_whole


class Joined(Packing):
    """The sequences of several packings, one packing after another.

    Args:
        parts: At least one; all of one length.

    Attributes:
        firsts: Number of each packing's first sequence.
    """

    def __init__(self, parts: Sequence[Packing]) -> None:
        self.parts = tuple(parts)
        self.seq_len = parts[0].seq_len
        self.num_tokens = sum(part.num_tokens for part in parts)
        ends = np.cumsum([len(part) for part in parts])
        self.firsts: list[int] = [0, *ends[:-1].tolist()]
        self.num_sequences = int(ends[-1])

    def pieces(self, sequences: Indices) -> Pieces:
        """Pieces of ``sequences`` [B]."""
        counts = np.empty_like(sequences)
        found = []
        for part, here, local in self._by_part(sequences):
            pieces = part.pieces(local)
            counts[here] = pieces.counts
            found.append((here, pieces))
        places = np.cumsum(counts) - counts
        starts, lengths = np.empty((2, int(counts.sum())), np.int64)
        for here, pieces in found:
            there = _ranges(places[here], pieces.counts)
            starts[there], lengths[there] = pieces.starts, pieces.lengths
        return Pieces(starts, lengths, counts)

    def sizes(self, sequences: Indices) -> Indices:
        """Tokens of each of ``sequences`` [B], int64 [B]."""
        sizes = np.empty_like(sequences)
        for part, here, local in self._by_part(sequences):
            sizes[here] = part.sizes(local)
        return sizes

    def _by_part(self, sequences: Indices) -> list[tuple[Packing, Indices, Indices]]:
        """Each packing that is touched, where in ``sequences``, and the numbers within it."""
        numbers = np.searchsorted(self.firsts, sequences, "right") - 1
        wheres = [(number, np.flatnonzero(numbers == number)) for number in np.unique(numbers).tolist()]
        return [(self.parts[n], here, sequences[here] - self.firsts[n]) for n, here in wheres]


def best_fit_decreasing(lengths: npt.NDArray[np.int32], capacity: int) -> npt.NDArray[np.int32]:
    """Assign pieces to sequences of ``capacity``: the longest first, each where it leaves the least room.

    Pieces of one length are placed together. A sequence with room ``r`` that takes the first of them has
    less room than any other that could, so it takes ``r // length`` before another takes one: sequences
    move in runs, each to less than half its room. So the work is in the number of distinct lengths,
    times a logarithm, and two sorts; the result is that of placing one piece after another.

    Args:
        lengths: Of the pieces, from 1 to ``capacity``.
        capacity: Of a sequence.

    Returns:
        The sequence of each piece, numbered from 0 as they are opened; int32 [pieces].
    """
    lacking = capacity - lengths
    order = np.argsort(lacking.astype(np.uint16) if capacity < _RADIX_SORTED else lacking, kind="stable")
    counts = np.bincount(lengths, minlength=1)
    shelf = _Shelf(capacity)
    for length in np.flatnonzero(counts)[::-1].tolist():
        shelf.place(length, int(counts[length]))
    first, run, each = np.array(shelf.placed, np.int64).reshape(-1, 3).T
    within = _ranges(np.zeros_like(run), run * each)
    found = np.empty(len(lengths), np.int32)
    found[order] = np.repeat(first, run * each) + within // np.repeat(each, run * each)
    return found


class _Shelf:
    """Open sequences by their room, in runs of consecutive numbers.

    Attributes:
        placed: What was done, in order: first sequence, number of sequences, pieces that each of them took.
    """

    def __init__(self, capacity: int) -> None:
        self.placed: list[tuple[int, int, int]] = []
        self._capacity = capacity
        self._num_sequences = 0
        self._rooms: list[int] = []  # those that some sequence has, ascending
        self._runs: dict[int, list[tuple[int, int]]] = {}

    def place(self, length: int, count: int) -> None:
        """Place ``count`` pieces of ``length``; none placed later may be longer."""
        while count:
            index = bisect_left(self._rooms, length)
            if index == len(self._rooms):
                self._open(-(-count // (self._capacity // length)))
            room = self._rooms[index]
            first, run = self._take(index)
            each = room // length
            full = min(run, count // each)
            if full:
                self._put(first, full, each, room - each * length)
                count -= full * each
            if full < run and count:  # fewer are left than the next sequence could take
                self._put(first + full, 1, count, room - count * length)
                full, count = full + 1, 0
            self._keep(first + full, run - full, room)

    def _open(self, run: int) -> None:
        self._keep(self._num_sequences, run, self._capacity)
        self._num_sequences += run

    def _take(self, index: int) -> tuple[int, int]:
        runs = self._runs[self._rooms[index]]
        taken = runs.pop()
        if not runs:
            del self._runs[self._rooms.pop(index)]
        return taken

    def _put(self, first: int, run: int, each: int, room: int) -> None:
        self.placed.append((first, run, each))
        self._keep(first, run, room)

    def _keep(self, first: int, run: int, room: int) -> None:
        if not run or not room:
            return
        if room not in self._runs:
            insort(self._rooms, room)
            self._runs[room] = []
        self._runs[room].append((first, run))


def _ranges(firsts: Indices, counts: Indices) -> Indices:
    """``firsts[i], firsts[i] + 1, ...``, ``counts[i]`` of them, for one i after another."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(firsts - (ends - counts), counts)
