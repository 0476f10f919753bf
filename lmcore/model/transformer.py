"""One decoder-only Transformer, in the style of GPT-2 or of Llama and Qwen3, by composition.

It knows nothing of parallelism: ``lmcore.parallel`` wraps it from outside.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.config import ModelConfig, Role
from lmcore.errors import ConfigError
from lmcore.model.attention import Attention, Context, KVCache, attention_mask
from lmcore.model.dropout import Dropout
from lmcore.model.layers import make_norm, rotary_table
from lmcore.model.linear import Linear
from lmcore.model.mlp import MLP
from lmcore.model.moe import MoE, routers

_TABLES = ("embedding.weight", "head.weight")
_LAST_OF_BRANCH = ("attention.out.weight", "mlp.down.weight", "mlp.shared.down.weight", "mlp.experts.down")


class Block(nn.Module):
    """Attention and an MLP or a mixture of them, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MoE(config) if config.moe.replaces_mlp(layer) else MLP(config)
        self.attention_dropout = Dropout(config.dropout, 2 * layer + 1)
        self.mlp_dropout = Dropout(config.dropout, 2 * layer + 2)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map the residual stream ``x`` [B, T, D] to the next one."""
        attended = self.attention(self.attention_norm(x), context)
        x = x + self.attention_dropout(attended, context.dropout)
        return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)), context.dropout)


class Transformer(nn.Module):
    """Tokens in, logits of each next token out.

    Args:
        config: Its shape.
        vocab_size: Entries of the vocabulary; ``config.vocab_multiple`` may add rows that are none.
    """

    rotary: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        rows = config.vocab_rows(vocab_size)
        self.embedding = nn.Embedding(rows, config.hidden_size)
        self.position_embedding = (
            nn.Embedding(config.max_seq_len, config.hidden_size) if config.position == "learned" else None
        )
        self.dropout = Dropout(config.dropout, 0)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config)
        self.head = Linear(config.hidden_size, rows, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.restore_tables()

    def restore_tables(self, device: torch.device | str | None = None) -> None:
        """Compute what is no part of the state: the rotary table, in fp32 whatever the weights; others."""
        if self.config.position == "rope":
            self.register_buffer("rotary", rotary_table(self.config).to(device), persistent=False)
        for router in routers(self):
            router.restart_counts(device)
        for module in self.modules():
            if isinstance(module, Dropout):
                module.restore_site(device)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return logits [B, T, V] of the token after each of ``tokens`` [B, T].

        Args:
            tokens: Token ids.
            positions: [B, T]; None: counted from 0, or from the end of the cache.
            document_ids: [B, T]; attention stays within equal ids. None: no such limit.
            cache: Earlier keys and values, extended by these. Not together with ``document_ids``.

        Raises:
            ConfigError: the sequence is longer than ``max_seq_len``, or a cache came with documents.
        """
        return self.logits(self.hidden(tokens, positions, document_ids, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """Map ``hidden`` [..., D] to logits of the next token, [..., V]."""
        return hide_added(self.head(hidden), self.vocab_size)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return what the head reads, [B, T, D]: for those who need the logits of some places only.

        Arguments and errors are those of ``forward``.
        """
        context = self._context(tokens, positions, document_ids, cache)
        if positions is None:
            start = cache.length if cache else 0
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.embed(tokens, positions, context)
        for block in self.blocks:
            x = block(x, context)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor, context: Context) -> Tensor:
        """Return what the first block reads, [B, T, D]; ``positions`` are [T] or [B, T]."""
        x = self.embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        return self.dropout(x, context.dropout)

    def _context(
        self, tokens: Tensor, positions: Tensor | None, document_ids: Tensor | None, cache: KVCache | None
    ) -> Context:
        num_new, num_cached = tokens.shape[1], cache.length if cache else 0
        if num_cached + num_new > self.config.max_seq_len:
            raise ConfigError(
                "the sequence is longer than the model is made for",
                expected=f"at most {self.config.max_seq_len} tokens (model.max_seq_len)",
                found=f"{num_cached + num_new}",
                remedy="Shorten it, or train with a larger max_seq_len.",
            )
        if cache is not None and document_ids is not None:
            raise ConfigError(
                "a cache cannot be used with a document mask", remedy="Decode one document in each row."
            )
        rotary = mask = None
        if self.config.position == "rope":
            places = slice(num_cached, num_cached + num_new) if positions is None else positions
            rotary = self.rotary[places].unsqueeze(-3)
        causal = document_ids is None and num_cached == 0
        if document_ids is not None or (num_cached and num_new > 1):
            mask = attention_mask(num_new, num_cached, document_ids, tokens.device)
        return Context(rotary, mask, causal, cache)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw initial weights (``initial_weight``)."""
        for name, parameter in self.named_parameters():
            draw = functools.partial(initial_weight, config=self.config, seed=seed)
            parameter.copy_(first_weight(name, parameter.shape, self.vocab_size, draw))

    @property
    def num_parameters(self) -> int:
        """Trainable numbers, tied ones once; rows that are no entry of the vocabulary are none."""
        tables = 1 if self.config.tie_embeddings else 2
        added = (self.config.vocab_rows(self.vocab_size) - self.vocab_size) * self.config.hidden_size
        return sum(parameter.numel() for parameter in self.parameters()) - tables * added

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations of training on one token, forward and backward.

        Six for each weight that is multiplied (of experts, those that a token visits), plus 12 L H head_dim T
        for attention (Chowdhery et al. 2022, appendix B): the causal half is not subtracted, and looking up
        embeddings costs nothing.
        """
        config = self.config
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        experts = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 3)
        if experts:
            matrices += experts * config.moe.num_experts_per_token // config.moe.num_experts
        matrices += self.vocab_size * config.hidden_size
        return 6 * matrices + 12 * config.num_layers * config.num_heads * config.head_size * seq_len


def hide_added(logits: Tensor, num_entries: int) -> Tensor:
    """Have ``logits`` [..., V] behind the first ``num_entries`` take no probability, in place.

    Their softmax is exactly 0, and so is what goes backward through it: no rule for gradients is needed.
    """
    if num_entries < logits.shape[-1]:
        logits.data[..., num_entries:] = -math.inf
    return logits


def without_added(name: str, tensor: Tensor, vocab_size: int) -> Tensor:
    """The parameter of that name without rows behind the vocabulary; a view."""
    return tensor[:vocab_size] if name in _TABLES else tensor


def first_weight(
    name: str, shape: torch.Size, vocab_size: int, draw: Callable[[str, torch.Size], Tensor]
) -> Tensor:
    """What ``draw`` makes for a model without added rows; they are zeros and learn nothing."""
    if name not in _TABLES or shape[0] == vocab_size:
        return draw(name, shape)
    entries = draw(name, torch.Size((vocab_size, *shape[1:])))
    return F.pad(entries, (0, 0, 0, shape[0] - vocab_size))


def parameter_role(name: str) -> Role:
    """Say what a parameter of this name is to an optimizer; a tied head is the embedding."""
    if name.endswith("bias"):
        return "bias"
    if "norm" in name:
        return "norm"
    if "embedding" in name:
        return "embedding"
    if "router" in name:
        return "router"
    return "head" if name.startswith("head") else "matrix"


def initial_weight(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """Draw the parameter of that name, in fp32 on the CPU: a function of ``seed`` and the name alone.

    Normal with ``init_std``; the last projection of each branch is smaller by sqrt(2 num_layers)
    (Radford et al. 2019), or zero.
    """
    role = parameter_role(name)
    if role == "bias":  # that of experts too
        return torch.zeros(shape)
    if role == "norm":
        return torch.ones(shape)
    std = config.init_std
    if name.endswith(_LAST_OF_BRANCH):
        std = 0.0 if config.zero_init_projections else std / math.sqrt(2 * config.num_layers)
    elif role == "head" and config.zero_init_projections:
        std = 0.0
    return _normal(shape, std, seed, name)


def _normal(shape: torch.Size, std: float, seed: int, name: str) -> Tensor:
    if std == 0.0:
        return torch.zeros(shape)
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=False) >> 1)
    return torch.randn(shape, generator=generator) * std
