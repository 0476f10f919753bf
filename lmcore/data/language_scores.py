"""Score texts by py3langid's model as py3langid does, many at once and by compiled code.

Its automaton reads the bytes, its naive Bayes classifier adds a row of logarithms for each feature it saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmcore.data.arrow import bytes_array, text_buffers
from lmcore.data.compiled import compiled

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


class Model(NamedTuple):
    """Arrays of py3langid's model.

    Attributes:
        moves: Next state by row and byte; int64 [rows * 256].
        rows: Where the row of each state starts in ``moves``; int64 [states].
        features: Feature that each state tells of, or -1; int64 [states].
        weights: Logarithm of the probability of each feature in each language; float32 [features, languages].
        priors: The same of each language; float32 [languages].
    """

    moves: np.ndarray
    rows: np.ndarray
    features: np.ndarray
    weights: np.ndarray
    priors: np.ndarray


def model_of(identifier: LanguageIdentifier) -> Model:
    """The arrays of ``identifier``."""
    return Model(
        np.asarray(identifier.tk_nextmove, np.uint32),
        np.asarray(identifier.tk_row, np.int64) << 8,
        np.asarray(identifier.tk_output, np.int64),
        np.ascontiguousarray(identifier.nb_ptc, np.float32),
        np.ascontiguousarray(identifier.nb_pc, np.float32),
    )


def probabilities(texts: Sequence[bytes], model: Model, same: Sequence[tuple[int, int]]) -> np.ndarray:
    """Probability of each language for each text (NFC, in UTF-8); float32 [n, languages].

    Args:
        texts: As ``LanguageIdentifier._encode`` makes them.
        model: The model.
        same: Pairs of columns that are one language; the second adds to the first.
    """
    data, offsets = text_buffers(bytes_array(texts, room=1))
    sizes = np.diff(offsets)
    scores = np.zeros((len(texts), len(model.priors)), np.float32)
    longest = int(sizes.max(initial=0))
    logarithms = np.log1p(np.arange(longest + 1, dtype=np.float32))
    counts, seen = np.zeros(len(model.weights), np.int64), np.zeros(longest + 1, np.int64)
    _add_up(data, offsets, *model, logarithms, counts, seen, scores)
    scores /= np.sqrt(np.maximum(sizes, 1)).astype(np.float32)[:, None]
    np.exp(scores - scores.max(axis=1, keepdims=True), out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    for first, second in same:
        scores[:, first] += scores[:, second]
        scores[:, second] = 0
    return scores


@compiled
def _add_up(data, offsets, moves, rows, features, weights, priors, logarithms, counts, seen, scores):
    """Scores of each text: of its features, weighted by the logarithm of how often each was seen."""
    for d in range(len(offsets) - 1):
        state, num_seen = np.int64(0), 0
        for i in range(offsets[d], offsets[d + 1]):
            state = np.int64(moves[rows[state] + np.int64(data[i])])
            feature = features[state]
            if feature >= 0:
                if counts[feature] == 0:
                    seen[num_seen] = feature
                    num_seen += 1
                counts[feature] += 1
        if num_seen == 0:
            continue
        for language in range(len(priors)):
            scores[d, language] = priors[language]
        for s in range(num_seen):
            feature = seen[s]
            weight = logarithms[counts[feature]]
            counts[feature] = 0
            for language in range(len(priors)):
                scores[d, language] += weight * weights[feature, language]
