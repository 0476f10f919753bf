"""Who computes the losses of an evaluation: a whole model on each process, or one divided over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lmcore.data.loader import Batch
from lmcore.layout import sequence_multiple
from lmcore.model.transformer import Transformer
from lmcore.parallel.divided import DividedModel

_LOGITS_AT_ONCE = 1 << 24  # 64 MB in fp32
_T = TypeVar("_T")


class Scorer(Protocol):
    """Computes losses.

    Attributes:
        vocab_size: Rows of the embedding.
        device: Where the model is.
        rank, world_size: Which share of the batches is this process's.
    """

    vocab_size: int
    device: torch.device
    rank: int
    world_size: int

    def losses(
        self, tokens: Tensor, scored: Tensor, documents: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> Tensor:
        """Return the loss in nats of each target that is ``scored``, and 0 of the others; fp32 [B, T].

        Args:
            tokens: Int64 [B, T + 1]; target i follows input i.
            scored: Which targets count, bool [B, T].
            documents: Positions and document numbers of the inputs, each [B, T], or None.
        """
        ...

    def deal(self, batches: Sequence[_T]) -> Iterator[_T | None]:
        """Yield this process's share of ``batches``; None where it must only keep up with the others."""
        ...

    def keep_up(self) -> None:
        """Compute nothing of use, as others who compute with us need us."""
        ...

    def agree(self, stop: bool) -> bool:
        """Whether to stop after a batch: as any of those who compute together wants."""
        ...


class WholeScorer:
    """A whole model, on this process alone.

    Args:
        model: Ready to evaluate.
        rank, world_size: Which share of the batches is ours.
    """

    def __init__(self, model: Transformer, rank: int = 0, world_size: int = 1) -> None:
        self.model, self.rank, self.world_size = model, rank, world_size
        self.vocab_size = model.vocab_size
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def losses(
        self, tokens: Tensor, scored: Tensor, documents: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> Tensor:
        """Return the losses of what is scored (``Scorer``)."""
        losses = torch.zeros(scored.shape, device=tokens.device)
        # The head is the dearest product of a small model: what is only context does not go through it.
        hidden = self.model.hidden(tokens[:, :-1], *documents)[scored]  # [N, D]
        targets = tokens[:, 1:][scored]  # [N]
        rows = max(1, _LOGITS_AT_ONCE // self.vocab_size)
        parts = zip(hidden.split(rows), targets.split(rows), strict=True)
        found = [
            F.cross_entropy(self.model.logits(part).float(), target, reduction="none")
            for part, target in parts
        ]
        losses[scored] = torch.cat(found)
        return losses

    def deal(self, batches: Sequence[_T]) -> Iterator[_T | None]:
        """Yield every ``world_size``-th of ``batches``."""
        return iter(batches[self.rank :: self.world_size])

    def keep_up(self) -> None:
        """Nobody waits for us."""

    def agree(self, stop: bool) -> bool:
        """Each stops when it is asked to."""
        return stop


class DividedScorer:
    """A model divided over processes, which compute together.

    Args:
        model: In evaluation.
    """

    def __init__(self, model: DividedModel) -> None:
        self.model, self.vocab_size = model, model.vocab_size
        self.device = model.layout.world.device
        self.rank, self.world_size = model.layout.dp_rank, model.layout.parallel.dp

    @property
    def sharing(self) -> int:
        """Processes that compute the same batches, and all have their losses."""
        return self.model.layout.world.size // self.world_size

    def losses(
        self, tokens: Tensor, scored: Tensor, documents: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> Tensor:
        """Return the losses of what is scored (``Scorer``); all who share the batch call it together."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        width = inputs.shape[1]
        padding = -width % sequence_multiple(
            self.model.layout.parallel
        )  # on the right, where causal attention does not look
        batch = Batch(
            F.pad(inputs, (0, padding)),
            F.pad(targets, (0, padding)),
            *(None if part is None else F.pad(part, (0, padding)) for part in documents),
        )
        found = self.model.token_losses(batch)[:, :width]
        return torch.where(scored, found, 0.0)

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits [V] of the token after ``tokens``, in fp32 on the CPU; all processes call it."""
        return self.model.next_logits(list(tokens))

    def deal(self, batches: Sequence[_T]) -> Iterator[_T | None]:
        """Yield every ``world_size``-th of ``batches``, and as many times as the process with most."""
        for first in range(0, len(batches), self.world_size):
            place = first + self.rank
            yield batches[place] if place < len(batches) else None

    def keep_up(self) -> None:
        """Compute the losses of nothing: weights are gathered, and experts visited, by all together."""
        self.losses(
            torch.zeros(1, 2, dtype=torch.long, device=self.device),
            torch.zeros(1, 1, dtype=torch.bool, device=self.device),
        )

    def agree(self, stop: bool) -> bool:
        """All stop when one of them is asked to."""
        if self.model.layout.world.size == 1:
            return stop
        asked = torch.tensor(int(stop), device=self.device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked.item())
