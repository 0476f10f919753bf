"""The loss of a text under a model, each token scored once with as much context as a window gives.

Sliding windows as in Transformer-XL's evaluation (Dai et al. 2019) and Hugging Face's "Perplexity of
fixed-length models" (https://huggingface.co/docs/transformers/perplexity): the window moves on by
``stride`` tokens, scores those that are new, and the rest of it is context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmcore.data.loader import documents_by_eos
from lmcore.data.tokens import TokenDataset
from lmcore.errors import ConfigError, DataError
from lmcore.model.transformer import Transformer

_LOGITS_AT_ONCE = 1 << 24  # 64 MB in fp32


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
    stream: TokenDataset,
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
    with torch.inference_mode():
        for batch in windows.batches(batch_size, rank, world_size):
            tokens, scored = read_windows(stream, batch, model.vocab_size)
            tokens = tokens.to(device)
            documents = documents_by_eos(tokens[:, :-1], stream.eos_id) if document_mask else (None, None)
            total += _loss_sum(model, tokens, scored.to(device), documents)
            if on_scored(int(scored.sum())):
                break
    return total


def read_windows(stream: TokenDataset, batch: list[Window], vocab_size: int) -> tuple[Tensor, Tensor]:
    """Read the tokens of ``batch``, int64 [B, T + 1], and which targets count, bool [B, T]."""
    width = batch[0].stop - batch[0].start
    tokens = np.full((len(batch), width + 1), stream.eos_id, np.int64)
    scored = np.zeros((len(batch), width), bool)
    for row, window in enumerate(batch):
        # Input i is the token before target i; there is none before the first, so EOS stands there.
        read = stream.slice(max(0, window.start - 1), window.stop)
        tokens[row, width + 1 - len(read) :] = read
        scored[row, window.scored - window.start :] = True
    if tokens.max() >= vocab_size or tokens.min() < 0:
        raise DataError(
            "the tokens are not of this model's tokenizer",
            expected=f"ids in [0, {vocab_size})",
            found=f"ids from {tokens.min()} to {tokens.max()}",
            remedy="Tokenize the text with the model's own tokenizer.",
        )
    return torch.from_numpy(tokens), torch.from_numpy(scored)


def _loss_sum(
    model: Transformer, tokens: Tensor, scored: Tensor, documents: tuple[Tensor | None, Tensor | None]
) -> float:
    # The head is the dearest product of a small model: what is only context does not go through it.
    hidden = model.hidden(tokens[:, :-1], *documents)[scored]  # [N, D]
    targets = tokens[:, 1:][scored]  # [N]
    rows = max(1, _LOGITS_AT_ONCE // model.vocab_size)
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for part, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.head(part).float()  # [n, V]
        total += F.cross_entropy(logits, target, reduction="none").sum(dtype=torch.float64)
    return total.item()
