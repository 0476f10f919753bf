"""How many numbers a model has, and where: counted on the model itself, on the meta device."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from lmcore.config import ModelConfig
from lmcore.model.mlp import MLP
from lmcore.model.transformer import Block, Transformer


@dataclass(frozen=True)
class BlockShape:
    """Numbers of one block.

    Attributes:
        divided: Those that tensor parallel divides.
        whole: Those that all processes of tp hold: norms, routers, shared experts.
        experts: Those of experts, which expert parallel divides.
        matrices: Of ``divided`` and ``whole``, those that Muon would move.
        largest_matrix: The largest of these.
    """

    divided: int
    whole: int
    experts: int
    matrices: int
    largest_matrix: int

    @functools.cached_property
    def total(self) -> int:
        """All of them."""
        return self.divided + self.whole + self.experts


@dataclass(frozen=True)
class Shape:
    """Numbers of a whole model.

    Attributes:
        config: Its settings.
        vocab_size: Rows of its tables.
        blocks: First block first.
        embedding: Of the table of tokens.
        positions: Of the table of positions.
        norm: Of the last norm.
        head: Of the head; 0 where it is the embedding.
        matrix_flops: Of training on a token, but for attention.
    """

    config: ModelConfig
    vocab_size: int
    blocks: tuple[BlockShape, ...]
    embedding: int
    positions: int
    norm: int
    head: int
    matrix_flops: int

    @functools.cached_property
    def num_mixtures(self) -> int:
        """Blocks with experts."""
        return sum(map(self.config.moe.replaces_mlp, range(self.config.num_layers)))

    @functools.cached_property
    def total(self) -> int:
        """Trainable numbers, tied ones once."""
        return self.in_blocks + self.embedding + self.positions + self.norm + self.head

    @functools.cached_property
    def in_blocks(self) -> int:
        """Those of blocks."""
        return sum(block.total for block in self.blocks)

    @functools.cached_property
    def is_even(self) -> bool:
        """Whether all blocks are alike."""
        return len(set(self.blocks)) == 1

    def count(self, layers: Collection[int]) -> Mapping[BlockShape, int]:
        """How many blocks of each kind ``layers`` are; of an even model without looking at each."""
        if self.is_even:
            return {self.blocks[0]: len(layers)} if layers else {}
        return Counter(self.blocks[layer] for layer in layers)

    def flops_per_token(self, seq_len: int) -> float:
        """Operations of training on a token, as ``Transformer.flops_per_token`` counts them for MFU."""
        config = self.config
        return self.matrix_flops + 12 * config.num_layers * config.num_heads * config.head_size * seq_len


def shape_of(config: ModelConfig, vocab_size: int) -> Shape:
    """Build the model on the meta device, and count.

    Args:
        config: Its settings.
        vocab_size: Rows of its tables.
    """
    with torch.device("meta"):
        model = Transformer(config, vocab_size)
    positions = model.position_embedding
    return Shape(
        config=config,
        vocab_size=model.embedding.weight.shape[0],  # with the rows that are added
        blocks=tuple(_block(block) for block in model.blocks if isinstance(block, Block)),
        embedding=model.embedding.weight.numel(),
        positions=0 if positions is None else positions.weight.numel(),
        norm=sum(p.numel() for p in model.norm.parameters()),
        head=0 if config.tie_embeddings else model.head.weight.numel(),
        matrix_flops=model.flops_per_token(0),
    )


def _block(block: Block) -> BlockShape:
    divided = {block.attention.qkv.weight, block.attention.out.weight}
    if isinstance(block.mlp, MLP):
        divided |= {block.mlp.up.weight, block.mlp.down.weight}
    count: Counter[str] = Counter()
    largest = 0
    for name, parameter in block.named_parameters():
        kind = "experts" if parameter.ndim == 3 else "divided" if parameter in divided else "whole"
        count[kind] += parameter.numel()
        if parameter.ndim == 2 and "router" not in name:
            count["matrices"] += parameter.numel()
            largest = max(largest, parameter.numel())
    return BlockShape(count["divided"], count["whole"], count["experts"], count["matrices"], largest)
