"""Several sources in shares: whose turn it is at a place of the order, by arithmetic on the place.

Turns repeat in a cycle that Tijdeman's rule lays out ("The chairman assignment problem", Discrete Mathematics
32, 1980): at every prefix each source is less than one sequence away from its share. Its length is the one up
to ``MAX_CYCLE`` whose whole numbers of turns come closest to the shares. A source that has given all it may
stops, and a new cycle shares its turns among the others.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmcore.data.order import Indices, Order
from lmcore.errors import ConfigError

MAX_CYCLE = 65_536


@dataclass(frozen=True)
class Share:
    """What one source is to give.

    Attributes:
        source: Its name; each source's order depends on its name and the seed alone.
        first: Its first sequence; the others follow.
        num_sequences: Of one epoch.
        weight: Turns, relative to those of the others.
        max_sequences: When it stops, all its epochs together; None: never.
    """

    source: str
    first: int
    num_sequences: int
    weight: float
    max_sequences: int | None = None

    def left(self, given: int) -> float:
        """How many more it may give after ``given``."""
        return math.inf if self.max_sequences is None else self.max_sequences - given


class Mixture:
    """The order of sequences from several sources, each in its own permutation of each epoch.

    Args:
        shares: What each source gives.
        seed: Of the whole order.

    Attributes:
        num_places: Places that the sources can fill; None: endless.

    Raises:
        ConfigError: a share is too small for a cycle.
    """

    def __init__(self, shares: Sequence[Share], seed: int) -> None:
        self.shares = tuple(shares)
        self._orders = [Order(share.num_sequences, _seed_of(share.source, seed)) for share in shares]
        self._phases: list[_Phase] = []
        self.num_places = self._lay_out()

    def __getitem__(self, places: slice) -> Indices:
        """Return the sequences at ``places`` [start, stop) of the order, int64 [stop - start]."""
        if self.num_places is not None and places.stop > self.num_places:
            raise IndexError(f"place {places.stop - 1} of {self.num_places}")
        found = np.empty(places.stop - places.start, np.int64)
        ends = [*(phase.start for phase in self._phases[1:]), places.stop]
        for phase, end in zip(self._phases, ends, strict=False):
            start, stop = max(phase.start, places.start), min(end, places.stop)
            if start < stop:
                here = found[start - places.start : stop - places.start]
                self._fill(here, phase, start - phase.start)
        return found

    def given(self, num_places: int) -> Indices:
        """Sequences that each source gives to the first ``num_places``, int64 [sources]."""
        given = np.zeros(len(self.shares), np.int64)
        for phase in self._phases:
            if phase.start <= num_places:
                given = phase.given(num_places - phase.start)
        return given

    def _fill(self, found: Indices, phase: _Phase, start: int) -> None:
        turns = phase.turns[(start + np.arange(len(found))) % len(phase.turns)]
        given = phase.given(start)
        for source in np.unique(turns):
            here = turns == source
            # The places of a source in a row of places are consecutive places of its own order.
            first = int(given[source])
            order = self._orders[source][first : first + int(here.sum())]
            found[here] = self.shares[source].first + order

    def _lay_out(self) -> int | None:
        most = [share.max_sequences for share in self.shares]
        given = np.zeros(len(most), np.int64)
        start = 0
        while True:
            left = [None if limit is None else limit - int(n) for limit, n in zip(most, given, strict=True)]
            weights = [
                0.0 if rest == 0 else share.weight for share, rest in zip(self.shares, left, strict=True)
            ]
            if not any(weights):
                return start
            phase = _Phase(start, _turns(weights), given)
            self._phases.append(phase)
            ends = [phase.place_of(source, rest) for source, rest in enumerate(left) if rest]
            if not ends:
                return None
            given = phase.given(min(ends) + 1)
            start += min(ends) + 1


class _Phase:
    """A stretch in which the same sources take turns.

    Attributes:
        start: Its first place.
        turns: Whose turn it is in a cycle, int64 [cycle].
    """

    def __init__(self, start: int, turns: Indices, given: Indices) -> None:
        self.start, self.turns = start, turns
        self._given = given  # before the phase
        self._places = [np.flatnonzero(turns == source) for source in range(len(given))]

    def given(self, num_places: int) -> Indices:
        """Sequences that each source has given before place ``num_places`` of the phase, int64 [sources]."""
        cycles, rest = divmod(num_places, len(self.turns))
        in_phase = [cycles * len(places) + np.searchsorted(places, rest) for places in self._places]
        return self._given + np.array(in_phase, np.int64)

    def place_of(self, source: int, number: int) -> int:
        """Place in the phase where ``source`` gives its ``number``th sequence of it, counted from 1."""
        places = self._places[source]
        cycles, rest = divmod(number - 1, len(places))
        return cycles * len(self.turns) + int(places[rest])


def _turns(weights: Sequence[float]) -> Indices:
    """Lay out a cycle: the source that each place belongs to, int64."""
    sources = np.flatnonzero(weights)
    shares = np.array(weights)[sources] / sum(weights)
    return sources[take_turns(_closest_quotas(shares))]


def _closest_quotas(shares: npt.NDArray[np.float64]) -> list[int]:
    """Whole numbers in the proportion of ``shares``; their sum is the length of the cycle."""
    lengths = np.arange(1, MAX_CYCLE + 1)
    quotas = np.rint(shares * lengths[:, None])
    errors = np.abs(quotas / lengths[:, None] - shares).max(axis=1).round(12)
    errors[(quotas.sum(axis=1) != lengths) | (quotas.min(axis=1) < 1)] = np.inf
    best = int(errors.argmin())
    if np.isinf(errors[best]):
        raise ConfigError(
            "a weight of train.mixture is too small beside the others",
            expected=f"at least {1 / MAX_CYCLE:.6f} of their sum",
            found=f"{shares.min():.2g}",
            remedy="Raise it, or leave its source out.",
        )
    return quotas[best].astype(int).tolist()


def take_turns(quotas: Sequence[int]) -> Indices:
    """Order ``quotas[i]`` turns of each source i so that every prefix is fair to all.

    Each source is at most 1 - 1 / (2n - 2) of a turn away from its share at every prefix, n being the number
    of sources (Tijdeman 1980): of those whose share has grown enough for another turn, the one takes it
    whose share would first be too large otherwise.
    """
    length, slack = sum(quotas), max(1, 2 * (len(quotas) - 1))
    waiting = sorted(
        (-(-length * (slack * number + 1) // (slack * quota)) - 1, (slack * (number + 1) - 1) / quota, source)
        for source, quota in enumerate(quotas)
        for number in range(quota)
    )
    turns, ready, released = np.empty(length, np.int64), [], 0
    for place in range(length):
        while released < length and waiting[released][0] <= place:
            heapq.heappush(ready, waiting[released][1:])
            released += 1
        turns[place] = heapq.heappop(ready)[1]
    return turns


def _seed_of(source: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{source}".encode()).digest()[:8], "little")
