"""The loss of a text under a model, each token scored once with as much context as a window gives.

Sliding windows as in Transformer-XL's evaluation (Dai et al. 2019) and Hugging Face's "Perplexity of
fixed-length models" (https://huggingface.co/docs/transformers/perplexity): the window moves on by
``stride`` tokens, scores those that are new, and the rest of it is context.

A text is a stream that windows slide over (``score_text``), or many short items, each scored alone
(``score_items``). Both ask ``token_losses``, the one place where the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmcore.data.loader import documents_by_eos
from lmcore.errors import ConfigError, DataError
from lmcore.model.transformer import Transformer

_LOGITS_AT_ONCE = 1 << 24  # 64 MB in fp32


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

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[list[Window]]:
        """Yield this rank's share: the batches are the same at any world size and are dealt out in turn."""
        for start in range(rank * batch_size, len(self), world_size * batch_size):
            yield [self[i] for i in range(start, min(start + batch_size, len(self)))]


def score_text(
    model: Transformer,
    stream: Tokens,
    windows: SlidingWindows,
    *,
    batch_size: int,
    document_mask: bool = False,
    rank: int = 0,
    world_size: int = 1,
    on_scored: Callable[[int], bool] = lambda num_tokens: False,
) -> float:
    """Return the summed loss in nats of this rank's share of ``windows``, added up in fp64.

    Args:
        model: Ready to evaluate.
        stream: The text; its first token is predicted from EOS, as any document's first token is.
        windows: Over the text.
        batch_size: Windows computed at a time.
        document_mask: Attention sees only its own document, as when the model was trained.
        rank, world_size: Which share is ours.
        on_scored: Told how many tokens each batch scored; true: stop here.

    Raises:
        ConfigError: the windows are longer than the model is made for.
        DataError: a token is not in the model's vocabulary.
    """
    device = next(model.parameters()).device
    total = 0.0
    for batch in windows.batches(batch_size, rank, world_size):
        tokens, scored = read_windows([(stream, window) for window in batch], model.vocab_size)
        tokens = tokens.to(device)
        documents = documents_by_eos(tokens[:, :-1], stream.eos_id) if document_mask else (None, None)
        total += token_losses(model, tokens, scored.to(device), documents).sum(dtype=torch.float64).item()
        if on_scored(int(scored.sum())):
            break
    return total


def score_items(
    model: Transformer,
    items: Sequence[Tokens],
    windows: Sequence[SlidingWindows],
    *,
    batch_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    on_scored: Callable[[int], bool] = lambda num_tokens: False,
) -> np.ndarray:
    """Return the loss in nats of each of ``items``, summed over its tokens; 0 what others score; fp64 [n].

    Each is scored alone, as the beginning of a document: no other is in its context. Windows of about the
    same length are computed together, padded on the right, where causal attention does not look.

    Args:
        model: Ready to evaluate.
        items: Short texts.
        windows: Over each of them.
        batch_tokens: Tokens computed at a time, padding included.
        rank, world_size: Which share is ours; the batches are the same at any world size.
        on_scored: Told how many tokens each batch scored; true: stop here.

    Raises:
        ConfigError: the windows are longer than the model is made for.
        DataError: a token is not in the model's vocabulary.
    """
    device = next(model.parameters()).device
    losses = np.zeros(len(items))
    batches = _batches_by_length(windows, batch_tokens)
    for batch in batches[rank::world_size]:
        rows = [(items[number], window) for number, window in batch]
        tokens, scored = read_windows(rows, model.vocab_size)
        sums = token_losses(model, tokens.to(device), scored.to(device)).sum(dim=1, dtype=torch.float64)
        np.add.at(losses, [number for number, _ in batch], sums.cpu().numpy())
        if on_scored(int(scored.sum())):
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


@torch.inference_mode()
def token_losses(
    model: Transformer,
    tokens: Tensor,
    scored: Tensor,
    documents: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """Return the loss in nats of each target that is ``scored``, and 0 of the others; fp32 [B, T].

    Args:
        model: Ready to evaluate.
        tokens: Int64 [B, T + 1]; target i follows input i.
        scored: Which targets count, bool [B, T].
        documents: Positions and document numbers of the inputs, each [B, T], or None.
    """
    losses = torch.zeros(scored.shape, device=tokens.device)
    # The head is the dearest product of a small model: what is only context does not go through it.
    hidden = model.hidden(tokens[:, :-1], *documents)[scored]  # [N, D]
    targets = tokens[:, 1:][scored]  # [N]
    rows = max(1, _LOGITS_AT_ONCE // model.vocab_size)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    found = [F.cross_entropy(model.head(part).float(), target, reduction="none") for part, target in parts]
    losses[scored] = torch.cat(found)
    return losses
