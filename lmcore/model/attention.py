"""Causal self-attention, its document mask and its cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from lmcore.config import ModelConfig
from lmcore.errors import ConfigError
from lmcore.model.backends import attend_by_blocks
from lmcore.model.dropout import DropoutKey
from lmcore.model.layers import RMSNorm, rotate
from lmcore.model.linear import Linear, are_plain
from lmcore.model.products import attend_by_products, attention_by_products


class OtherTokens(Protocol):
    """Where keys and values of tokens come from that are not at hand."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``keys`` and ``values`` [B, KV, T, head_dim] of ``layer`` and the others, [B, KV, S, .]."""
        ...


class KVCache:
    """Keys and values of the tokens seen so far, so that each new token costs one step.

    Args:
        config: The model's.
        batch_size: Sequences decoded side by side; all are of the same length.
        max_tokens: Room for this many tokens of each sequence.
        device: Where the model is.
        dtype: Of keys and values.

    Attributes:
        length: Tokens of each sequence held so far.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.num_layers, batch_size, config.kv_heads, max_tokens, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # [L, B, KV, S, head_dim]
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        self.max_tokens = max_tokens

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep ``keys`` and ``values`` [B, KV, T, head_dim] of ``layer``; return all [B, KV, S, head_dim].

        ``length`` moves on once all layers have been through (``advance``).

        Raises:
            ConfigError: there is no room.
        """
        stop = self.length + keys.shape[2]
        if stop > self.max_tokens:
            raise ConfigError(
                "the cache of keys and values is full",
                expected=f"at most {self.max_tokens} tokens",
                found=f"{stop}",
                remedy="Make it larger, or start again from the last part of the text.",
            )
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def advance(self, num_tokens: int) -> None:
        """Count ``num_tokens`` more tokens as held."""
        self.length += num_tokens


@dataclass(frozen=True)
class Context:
    """What all blocks of one forward pass share.

    Attributes:
        rotary: Table of these positions, [T, 1, head_dim/2, 2] or [B, T, 1, head_dim/2, 2]; or None.
        mask: Who may see whom, bool, broadcastable to [B, H, T, S]; None: plainly causal, or (with a
            cache and a single new token) everything.
        causal: Whether the plain causal mask applies.
        others: Keys and values of other tokens, such as earlier ones; or None.
        dropout: Which numbers are dropped in training; None: none.
        blocks: In place of a mask, for flex_attention; or None.
        products: Whether plain causal attention is computed by products of matrices.
    """

    rotary: Tensor | None
    mask: Tensor | None
    causal: bool
    others: OtherTokens | None = None
    dropout: DropoutKey | None = None
    blocks: BlockMask | None = None
    products: bool = False


def attention_mask(num_new: int, num_cached: int, documents: Tensor | None, device: torch.device) -> Tensor:
    """Return who may see whom: [T, S], or [B, 1, T, S] with ``documents`` [B, S]; S = cached + new."""
    total = num_cached + num_new
    mask = torch.ones(num_new, total, dtype=torch.bool, device=device).tril(num_cached)
    if documents is None:
        return mask
    same = documents[:, num_cached:, None] == documents[:, None, :]  # [B, T, S]
    return (mask & same)[:, None]


def widened(x: Tensor, group: int) -> Tensor:
    """Repeat each key head of ``x`` [B, KV, S, head_dim] for the ``group`` query heads that share it.

    On GPUs few fused kernels have both a mask and shared heads: torch would fall back to scores of all pairs
    in memory, [B, H, T, S], far more than the copies.
    """
    return x if group == 1 else x.repeat_interleave(group, dim=1)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023), with a norm of each head's queries and keys if set.

    Attributes:
        merged: Whether it may be one operation to autograd, where that is faster (as for ``MLP``).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.merged = True
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.kv_heads, config.head_size
        # One product instead of three. Rows: for each key head its query heads, then its key, then its value,
        # so that a part of the rows is a part of the heads.
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = Linear(config.hidden_size, rows, bias=config.bias)
        self.out = Linear(self.heads * self.head_dim, config.hidden_size, bias=config.bias)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map ``x`` [B, T, D] to [B, T, D]."""
        if context.products and self._is_plain(x, context):
            qkv, out = self.qkv, self.out
            return attention_by_products(x, qkv.weight, qkv.bias, out.weight, out.bias, self.heads)
        q, k, v = self._project(x, context)  # [B, T, H, hd], [B, T, KV, hd] twice
        if context.products:
            return self.out(attend_by_products(q, k, v))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if context.others is not None:
            k, v = context.others.extend(self.layer, k, v)
        return self.out(self._attend(q, k, v, context).transpose(1, 2).flatten(2))

    def _is_plain(self, x: Tensor, context: Context) -> bool:
        """Whether there is nothing between the matrices but attention."""
        bare = self.q_norm is None and context.rotary is None
        return bare and self.merged and are_plain(x, self.qkv, self.out)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Return [B, H, T, hd]."""
        if context.blocks is not None:
            return attend_by_blocks(q, k, v, context.blocks)
        if context.mask is not None and q.is_cuda:
            k, v = widened(k, self.heads // self.kv_heads), widened(v, self.heads // self.kv_heads)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=context.mask,
            is_causal=context.causal,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def _project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        group = self.heads // self.kv_heads
        heads = self.qkv(x).unflatten(-1, (-1, group + 2, self.head_dim))  # [B, T, KV, H / KV + 2, hd]
        # Going back, one split is one copy; three slices are three tensors of zeros, and their sum.
        q, k, v = (part.flatten(2, 3) for part in heads.split((group, 1, 1), dim=3))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        return q, k, v
