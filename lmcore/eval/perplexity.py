"""The loss of a text under a model, each token scored once with as much context as a window gives.

Sliding windows as in Transformer-XL's evaluation (Dai et al. 2019) and Hugging Face's "Perplexity of
fixed-length models" (https://huggingface.co/docs/transformers/perplexity): the window moves on by
``stride`` tokens, scores those that are new, and the rest of it is context.

A text is a stream that windows slide over (``score_text``), or many short items, each scored alone
(``score_items``). Both ask a ``Scorer``, the one place where a model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lmcore.data.loader import documents_by_eos
from lmcore.errors import ConfigError, DataError
from lmcore.eval.scorer import Scorer


class Tokens(Protocol):
    """A text in tokens; ``lmcore.data.tokens.TokenDataset`` is one."""

    @property
    def eos_id(self) -> int:
        """The token before the first."""
        ...

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop)."""
        ...


@dataclass(frozen=True)
class Window:
    """Targets [scored, stop) are predicted from the inputs [start, stop); target i follows input i."""

    start: int
    scored: int
    stop: int


class SlidingWindows:
    """Windows that score each of ``num_tokens`` targets exactly once.

    All are ``seq_len`` long (unless the text is shorter), so that they form batches without padding: the
    first scores all its targets, the last reaches back for more context.

    Args:
        num_tokens: Targets.
        seq_len: Inputs of a window.
        stride: New targets of each window but the first.

    Raises:
        ConfigError: ``stride`` is longer than a window, or one of them is not positive.
    """

    def __init__(self, num_tokens: int, seq_len: int, stride: int) -> None:
        if not 1 <= stride <= seq_len:
            raise ConfigError(
                "the windows would not cover the text",
                expected=f"evaluation.stride_tokens from 1 to the {seq_len} tokens of a window",
                found=f"{stride}",
            )
        self.num_tokens, self.seq_len, self.stride = num_tokens, seq_len, stride

    def __len__(self) -> int:
        rest = max(0, self.num_tokens - self.seq_len)
        return min(1, self.num_tokens) + -(-rest // self.stride)

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        scored = self.seq_len + (index - 1) * self.stride if index else 0
        stop = min(self.seq_len + index * self.stride, self.num_tokens)
        return Window(max(0, stop - self.seq_len), scored, stop)

    def batches(self, batch_size: int) -> Sequence[list[Window]]:
        """The windows in batches, each made when it is asked for."""
        return _Batches(self, batch_size)


class _Batches(Sequence[list[Window]]):
    """Runs of windows; a slice is of the same kind of thing."""

    def __init__(self, windows: SlidingWindows, size: int, numbers: range | None = None) -> None:
        self._windows, self._size = windows, size
        self._numbers = range(-(-len(windows) // size)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Batches(self._windows, self._size, self._numbers[index])
        first = self._numbers[index] * self._size
        return [self._windows[i] for i in range(first, min(first + self._size, len(self._windows)))]


def score_text(
    scorer: Scorer,
    stream: Tokens,
    windows: SlidingWindows,
    *,
    batch_size: int,
    document_mask: bool = False,
    on_scored: Callable[[int], bool] = lambda num_tokens: False,
) -> float:
    """Return the summed loss in nats of this process's share of ``windows``, added up in fp64.

    Args:
        scorer: Who computes, and which share is ours; the batches are the same at any world size.
        stream: The text; its first token is predicted from EOS, as any document's first token is.
        windows: Over the text.
        batch_size: Windows computed at a time.
        document_mask: Attention sees only its own document, as when the model was trained.
        on_scored: Told how many tokens each batch scored; true: stop here.

    Raises:
        ConfigError: the windows are longer than the model is made for.
        DataError: a token is not in the model's vocabulary.
    """
    total = 0.0
    for batch in scorer.deal(windows.batches(batch_size)):
        num_scored = 0
        if batch is None:
            scorer.keep_up()
        else:
            tokens, scored = read_windows([(stream, window) for window in batch], scorer.vocab_size)
            num_scored = int(scored.sum())
            tokens = tokens.to(scorer.device)
            documents = documents_by_eos(tokens[:, :-1], stream.eos_id) if document_mask else (None, None)
            losses = scorer.losses(tokens, scored.to(scorer.device), documents)
            total += losses.sum(dtype=torch.float64).item()
        if scorer.agree(on_scored(num_scored)):
            break
    return total


def score_items(
    scorer: Scorer,
    items: Sequence[Tokens],
    windows: Sequence[SlidingWindows],
    *,
    batch_tokens: int,
    on_scored: Callable[[int], bool] = lambda num_tokens: False,
) -> np.ndarray:
    """Return the loss in nats of each of ``items``, summed over its tokens; 0 what others score; fp64 [n].

    Each is scored alone, as the beginning of a document: no other is in its context. Windows of about the
    same length are computed together, padded on the right, where causal attention does not look.

    Args:
        scorer: Who computes, and which share is ours; the batches are the same at any world size.
        items: Short texts.
        windows: Over each of them.
        batch_tokens: Tokens computed at a time, padding included.
        on_scored: Told how many tokens each batch scored; true: stop here.

    Raises:
        ConfigError: the windows are longer than the model is made for.
        DataError: a token is not in the model's vocabulary.
    """
    losses = np.zeros(len(items))
    for batch in scorer.deal(_batches_by_length(windows, batch_tokens)):
        num_scored = 0
        if batch is None:
            scorer.keep_up()
        else:
            rows = [(items[number], window) for number, window in batch]
            tokens, scored = read_windows(rows, scorer.vocab_size)
            num_scored = int(scored.sum())
            found = scorer.losses(tokens.to(scorer.device), scored.to(scorer.device))
            sums = found.sum(dim=1, dtype=torch.float64)
            np.add.at(losses, [number for number, _ in batch], sums.cpu().numpy())
        if scorer.agree(on_scored(num_scored)):
            break
    return losses


def _batches_by_length(
    windows: Sequence[SlidingWindows], batch_tokens: int
) -> list[list[tuple[int, Window]]]:
    """Number of its item and each window, in batches of at most ``batch_tokens``, padding included."""
    rows = [(number, of_item[i]) for number, of_item in enumerate(windows) for i in range(len(of_item))]
    rows.sort(key=lambda row: row[1].stop - row[1].start)  # stable: the order is that of the items
    batches: list[list[tuple[int, Window]]] = []
    for row in rows:  # each at least as long as those before it
        length = row[1].stop - row[1].start
        if not batches or (len(batches[-1]) + 1) * length > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def read_windows(rows: Sequence[tuple[Tokens, Window]], vocab_size: int) -> tuple[Tensor, Tensor]:
    """Read a window of a text for each row.

    Args:
        rows: A text and its window; shorter windows are padded on the right.
        vocab_size: Ids are below this.

    Returns:
        The tokens, int64 [B, T + 1], and which targets count, bool [B, T].

    Raises:
        DataError: a token is not in the vocabulary.
    """
    width = max(window.stop - window.start for _, window in rows)
    tokens = np.full((len(rows), width + 1), rows[0][0].eos_id, np.int64)
    scored = np.zeros((len(rows), width), bool)
    for row, (text, window) in enumerate(rows):
        # Input i is the token before target i; there is none before the first, so EOS stands there.
        read = text.slice(max(0, window.start - 1), window.stop)
        first = 0 if window.start else 1
        tokens[row, first : first + len(read)] = read
        scored[row, window.scored - window.start : window.stop - window.start] = True
    if tokens.max() >= vocab_size or tokens.min() < 0:
        raise DataError(
            "the tokens are not of this model's tokenizer",
            expected=f"ids in [0, {vocab_size})",
            found=f"ids from {tokens.min()} to {tokens.max()}",
            remedy="Tokenize the text with the model's own tokenizer.",
        )
    return torch.from_numpy(tokens), torch.from_numpy(scored)
