"""Which tokens make a sequence: documents cut into pieces and packed, from their lengths alone.

``chunk`` lays documents end to end and cuts every ``seq_len`` tokens. ``best_fit`` cuts only documents that
are longer than a sequence and packs the pieces by best-fit decreasing (Ding et al. 2024, "Fewer Truncations
Improve Language Modeling", https://arxiv.org/abs/2404.10830). Nothing is read but where documents begin and
end, so another sequence length is another plan, not another tokenization.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lmcore.data.order import Indices

Method = Literal["chunk", "best_fit"]

_RADIX_SORTED = 2**16  # numpy sorts integers of 16 bits by counting, wider ones by merging


@dataclass(frozen=True)
class Packing:
    """Sequences of pieces; a piece is a range of tokens of one document.

    Attributes:
        seq_len: No sequence holds more tokens.
        starts: Where each piece starts in the split, int64 [pieces]; those of a sequence are together, in
            the order of the split.
        lengths: Tokens of each piece, int32 [pieces].
        firsts: First piece of each sequence, int64 [sequences + 1]; the last is the number of pieces.
        sizes: Tokens of each sequence, int32 [sequences].
    """

    seq_len: int
    starts: Indices
    lengths: npt.NDArray[np.int32]
    firsts: Indices
    sizes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        return 1 - self.num_tokens / max(1, len(self) * self.seq_len)

    def pieces(self, sequences: Indices) -> Indices:
        """Numbers of the pieces of ``sequences``, int64, one sequence after another."""
        firsts = self.firsts[sequences]
        return _ranges(firsts, self.firsts[sequences + 1] - firsts)


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
    return (_chunk if method == "chunk" else _best_fit)(starts, lengths, seq_len)


def join(packings: list[Packing]) -> Packing:
    """Put the sequences of several packings behind one another."""
    behind = np.cumsum([0] + [len(packing.starts) for packing in packings])
    firsts = [packing.firsts[:-1] + before for packing, before in zip(packings, behind[:-1], strict=True)]
    return Packing(
        packings[0].seq_len,
        np.concatenate([packing.starts for packing in packings]),
        np.concatenate([packing.lengths for packing in packings]),
        np.append(np.concatenate(firsts), behind[-1]).astype(np.int64),
        np.concatenate([packing.sizes for packing in packings]),
    )


def _chunk(starts: Indices, lengths: Indices, seq_len: int) -> Packing:
    """The last sequence alone is padded."""
    ends = np.cumsum(lengths)
    begins = ends - lengths  # places, when the documents are laid end to end
    total = int(ends[-1]) if len(ends) else 0
    counts = (ends - 1) // seq_len - begins // seq_len + 1
    sequences = _ranges(begins // seq_len, counts)  # of each piece
    begins = np.repeat(begins, counts)
    cuts = np.maximum(begins, sequences * seq_len)
    num_sequences = -(-total // seq_len)
    return Packing(
        seq_len,
        np.repeat(starts, counts) + (cuts - begins),
        np.diff(cuts, append=total).astype(np.int32),
        np.searchsorted(sequences, np.arange(num_sequences + 1)).astype(np.int64),
        np.minimum(total - np.arange(num_sequences) * seq_len, seq_len).astype(np.int32),
    )


def _best_fit(starts: Indices, lengths: Indices, seq_len: int) -> Packing:
    counts = -(-lengths // seq_len)
    before = _ranges(np.zeros_like(counts), counts) * seq_len  # tokens of the document before each piece
    starts = np.repeat(starts, counts) + before
    sizes = np.minimum(np.repeat(lengths, counts) - before, seq_len).astype(np.int32)
    del before
    sequences = best_fit_decreasing(sizes, seq_len)
    num_sequences = int(sequences.max()) + 1 if len(sequences) else 0
    # Stable: in a sequence, pieces stay in the order of the split and not by length.
    order = np.argsort(sequences, kind="stable")
    firsts = np.zeros(num_sequences + 1, np.int64)
    np.cumsum(np.bincount(sequences, minlength=num_sequences), out=firsts[1:])
    sizes = sizes[order]
    filled = np.add.reduceat(sizes, firsts[:-1]) if num_sequences else sizes
    return Packing(seq_len, starts[order], sizes, firsts, filled.astype(np.int32))


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
