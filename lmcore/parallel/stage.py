"""What a process computes of a model: some of its blocks, on some of each sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lmcore.errors import ConfigError
from lmcore.model.attention import Attention, Context, attention_mask
from lmcore.model.backends import Backend, document_blocks
from lmcore.model.dropout import DropoutKey
from lmcore.model.mlp import MLP
from lmcore.model.transformer import Block, Transformer, hide_added
from lmcore.parallel.context import SharedSequence

# The head, what it reads [B, t / stream, D] and targets [B, t] or None -> what the last stage returns.
Finish = Callable[[nn.Linear, Tensor, Tensor | None], Tensor]


class Stage(nn.Module):
    """A run of blocks, with the embedding before the first and the head behind the last.

    Args:
        model: Only ``layers`` of its blocks are kept, and its ends where they belong.
        layers: Blocks of this stage.
        shared: How sequences are divided over processes; None: they are whole.
        stream: Over how many processes the residual stream is divided along the sequence, and our rank.
        num_entries: Logits of ours that are entries of the vocabulary; None: as many as it has.
        attention: How it is computed.

    Attributes:
        finish: What the last stage does with the head, while its weight is gathered; set before each pass.
            Where it makes the losses, logits need not be whole, nor go through a pipeline's schedule.
    """

    def __init__(
        self,
        model: Transformer,
        layers: range,
        shared: SharedSequence | None = None,
        stream: tuple[int, int] = (1, 0),
        num_entries: int | None = None,
        attention: Backend | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.shared, self.stream = shared, stream
        self.num_entries = model.vocab_size if num_entries is None else num_entries
        self.attention = attention or Backend()
        self.is_first = layers.start == 0
        self.is_last = layers.stop == len(model.blocks)
        self.finish: Finish = lambda head, hidden, targets: hide_added(head(hidden), self.num_entries)
        _keep_only(model, layers, first=self.is_first, last=self.is_last)

    @property
    def blocks(self) -> Iterator[Block]:
        """The blocks of this stage."""
        return (block for block in self.model.blocks if isinstance(block, Block))

    def take_apart(self) -> None:
        """Have autograd see every operation of the blocks, for those who do some of them without others."""
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, Attention | MLP):
                    module.merged = False

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        sequences: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Map our tokens, or what the stage before made of them, to what the next one reads, or ``finish``.

        Args:
            x: Token ids [B, t] of a first stage, else the residual stream [B, t / stream, D]; of the T tokens
                of a sequence we hold t.
            positions: [B, t], from the start of the document; None: from the start of the sequence.
            document_ids: [B, T], of whole sequences.
            sequences: A number for each of them in the run, int64 [B]: its dropout; None: nothing drops.
            targets: [B, t], for ``finish``.
        """
        size, rank = self.stream
        held = x.shape[1] * (1 if self.is_first else size)
        places = self._places(held, x.device)
        mine = slice(rank * held // size, (rank + 1) * held // size)
        positions = places if positions is None else positions
        key = None if sequences is None else DropoutKey(sequences, places[mine])
        context = self._context(positions, held, document_ids, key)
        if self.is_first:
            x = self.model.embed(x, positions[..., mine], context)  # [B, t / stream, D]
        for block in self.blocks:
            x = block(x, context)
        return self.finish(self.model.head, self.model.norm(x), targets) if self.is_last else x

    def _places(self, held: int, device: torch.device) -> Tensor:
        """Places in their sequence of the ``held`` tokens."""
        if self.shared is None:
            return torch.arange(held, device=device)
        return self.shared.places(held * self.shared.size, device)

    def _context(
        self, positions: Tensor, held: int, document_ids: Tensor | None, key: DropoutKey | None
    ) -> Context:
        config, device = self.model.config, positions.device
        length = held * (self.shared.size if self.shared else 1)
        if length > config.max_seq_len:
            raise ConfigError(
                "the sequence is longer than the model is made for",
                expected=f"at most {config.max_seq_len} tokens (model.max_seq_len)",
                found=f"{length}",
                remedy="Shorten it, or train with a larger max_seq_len.",
            )
        rotary = self.model.rotary[positions].unsqueeze(-3) if config.position == "rope" else None
        if self.shared is not None:
            mask = self.shared.mask(length, document_ids, device)
            return Context(rotary, mask, causal=False, others=self.shared, dropout=key)
        if self.attention.flex and document_ids is not None:
            blocks = document_blocks(document_ids)
            return Context(rotary, None, causal=False, dropout=key, blocks=blocks)
        mask = None if document_ids is None else attention_mask(held, 0, document_ids, device)
        products = self.attention.products and mask is None
        return Context(rotary, mask, causal=mask is None, dropout=key, products=products)


def _keep_only(model: Transformer, layers: range, *, first: bool, last: bool) -> None:
    """Take out of ``model`` what other stages have; what stays keeps its name."""
    for layer in range(len(model.blocks)):
        if layer not in layers:
            model.blocks[layer] = None  # pyright: ignore[reportArgumentType]
    others = [] if first else ["embedding", "position_embedding"]
    for name in others + ([] if last else ["norm", "head"]):
        setattr(model, name, None)
