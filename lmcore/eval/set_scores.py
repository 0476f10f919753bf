"""Evaluation sets under a model: texts in bits per byte, minimal pairs by the share that it gets right.

Each set tells its losses as a list of numbers that the processes add up, and makes its result of the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lmcore.config import EvaluationSetConfig
from lmcore.data.encoding import Encoder
from lmcore.data.sources import SourceFile
from lmcore.eval.perplexity import SlidingWindows, score_items, score_text
from lmcore.eval.scorer import Scorer
from lmcore.eval.sets import Pair, read_pairs, read_texts
from lmcore.units import bits_per_byte

SAMPLED_PAIRS = 10
# Sentences with the same loss come out a little apart, by what else was in their batches.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Scoring:
    """How sets are scored.

    Attributes:
        seq_len: Tokens of a window.
        stride: New tokens of each window but the first.
        batch_size: Windows of ``seq_len`` computed at a time, or as many tokens in shorter ones.
        document_mask: Attention sees only its own document, as when the model was trained.
    """

    seq_len: int
    stride: int
    batch_size: int
    document_mask: bool = False


class ScoredSet(Protocol):
    """A set that is read and encoded.

    Attributes:
        name: Its name.
        num_tokens: What is to be scored.
    """

    name: str
    num_tokens: int

    def losses(self, scorer: Scorer, how: Scoring, on_scored: Callable[[int], bool] = ...) -> list[float]:
        """Return this process's share of the losses in nats, to be added to those of the others."""
        ...

    def result(self, losses: Sequence[float]) -> dict[str, Any]:
        """Return the figures, from the losses of all processes."""
        ...

    def samples(self, losses: Sequence[float]) -> list[dict[str, Any]]:
        """Return what people look at, from the losses of all processes."""
        ...


def read_set(wanted: EvaluationSetConfig, files: Sequence[SourceFile], encoder: Encoder) -> ScoredSet:
    """Read and encode the set ``wanted``.

    Raises:
        DataError: it holds nothing to score, or a record cannot be read.
    """
    if wanted.kind == "text":
        return TextSet(wanted.name, read_texts(wanted, files), encoder)
    return PairSet(wanted.name, read_pairs(wanted, files), encoder)


@dataclass(frozen=True)
class _Encoded:
    """A text in tokens, in memory."""

    tokens: np.ndarray
    eos_id: int

    def slice(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]


class TextSet:
    """Texts, scored as the validation split is: one after another, each followed by EOS, which counts too."""

    def __init__(self, name: str, texts: Sequence[str], encoder: Encoder) -> None:
        tokens, lengths = encoder.encode(texts)
        tokens = np.insert(tokens, np.cumsum(lengths), encoder.eos_id)
        self.name = name
        self.num_tokens = len(tokens)
        self.num_bytes = sum(len(text.encode()) for text in texts)
        self.num_documents = len(texts)
        self._text = _Encoded(tokens, encoder.eos_id)

    def losses(
        self, scorer: Scorer, how: Scoring, on_scored: Callable[[int], bool] = lambda num_tokens: False
    ) -> list[float]:
        """Return the summed loss."""
        loss_sum = score_text(
            scorer,
            self._text,
            SlidingWindows(self.num_tokens, how.seq_len, how.stride),
            batch_size=how.batch_size,
            document_mask=how.document_mask,
            on_scored=on_scored,
        )
        return [loss_sum]

    def result(self, losses: Sequence[float]) -> dict[str, Any]:
        """Return bits per byte, and of how much text."""
        (loss_sum,) = losses
        return {
            "kind": "text",
            "bits_per_byte": bits_per_byte(loss_sum, self.num_bytes),
            "loss": loss_sum / self.num_tokens,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "num_documents": self.num_documents,
        }

    def samples(self, losses: Sequence[float]) -> list[dict[str, Any]]:
        """Return nothing: the loss is that of all of it."""
        return []


class PairSet:
    """Minimal pairs (Warstadt et al. 2020, BLiMP): the good sentence of a pair should be the likelier one.

    A sentence is scored as the beginning of a document, by the sum over its tokens; EOS behind it does not
    count. What is no likelier than by rounding is not likelier.
    """

    def __init__(self, name: str, pairs: Sequence[Pair], encoder: Encoder) -> None:
        tokens, lengths = encoder.encode([text for pair in pairs for text in (pair.good, pair.bad)])
        self.name = name
        self.pairs = pairs
        self.num_tokens = len(tokens)
        parts = np.split(tokens, np.cumsum(lengths)[:-1])
        self._sentences = [_Encoded(part, encoder.eos_id) for part in parts]

    def losses(
        self, scorer: Scorer, how: Scoring, on_scored: Callable[[int], bool] = lambda num_tokens: False
    ) -> list[float]:
        """Return the loss of each sentence, first the good one of each pair, then the bad one."""
        windows = [SlidingWindows(len(s.tokens), how.seq_len, how.stride) for s in self._sentences]
        losses = score_items(
            scorer,
            self._sentences,
            windows,
            batch_tokens=how.batch_size * how.seq_len,
            on_scored=on_scored,
        )
        return losses.tolist()

    def result(self, losses: Sequence[float]) -> dict[str, Any]:
        """Return the share of pairs that are right, in all and by group, and how many there are."""
        good, bad = np.reshape(losses, (-1, 2)).T
        right = bad - good > _ROUNDING * np.maximum(good, bad)
        counts = Counter(pair.group for pair in self.pairs)
        hits = Counter(pair.group for pair, hit in zip(self.pairs, right, strict=True) if hit)
        groups = {
            name: {"accuracy": hits[name] / count, "num_pairs": count}
            for name, count in sorted(counts.items())
            if name
        }
        return {
            "kind": "minimal_pairs",
            "accuracy": int(right.sum()) / len(right),
            "num_pairs": len(right),
            "num_tokens": self.num_tokens,
            "groups": groups,
        }

    def samples(self, losses: Sequence[float]) -> list[dict[str, Any]]:
        """Return the pairs that are furthest from right, with the loss of each sentence in nats."""
        good, bad = np.reshape(losses, (-1, 2)).T
        worst = np.argsort(bad - good, kind="stable")[:SAMPLED_PAIRS].tolist()
        return [
            {
                "group": self.pairs[i].group,
                "good": self.pairs[i].good,
                "good_loss": float(good[i]),
                "bad": self.pairs[i].bad,
                "bad_loss": float(bad[i]),
            }
            for i in worst
        ]
