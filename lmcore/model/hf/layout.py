"""Tensors of a family into parameters of ours, and back: nothing but other orders of the same numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmcore.config import ModelConfig, swiglu_block
from lmcore.model.hf.families import HEAD, Family, Source, Way
from lmcore.model.transformer import Transformer


@dataclass(frozen=True)
class Parameter:
    """A parameter of ours, and the tensors that it is made of.

    Attributes:
        name: Its name in a Transformer.
        shape: Its shape.
        tensors: Names and shapes of the tensors, in order.
        way: How they make it.
        config: Shape of the model.
    """

    name: str
    shape: torch.Size
    tensors: dict[str, torch.Size]
    way: Way
    config: ModelConfig

    def numel(self) -> int:
        """Numbers in it."""
        return self.shape.numel()

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the family's tensors of ours."""
        return dict(zip(self.tensors, _WAYS[self.way][0](tensor, self.config), strict=True))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return ours of the family's ``parts``."""
        return _WAYS[self.way][1](parts, self.config)


def layout(family: Family, config: ModelConfig, vocab_size: int) -> dict[str, Parameter]:
    """Return every parameter of a model by name, in the model's order; a tied head is the embedding."""
    with torch.device("meta"):  # shapes alone
        named = dict(Transformer(config, vocab_size).named_parameters())
    found = {}
    for name, tensor in named.items():
        source, number = _source(family, name)
        names = _names(family, source, number, config.moe.num_experts)
        shapes = [part.shape for part in _WAYS[source.way][0](tensor, config)]
        tensors = dict(zip(names, shapes, strict=True))
        found[name] = Parameter(name, tensor.shape, tensors, source.way, config)
    return found


def _source(family: Family, name: str) -> tuple[Source, str]:
    number = re.match(r"blocks\.(\d+)\.", name)
    if number is None:
        return family.tensors[name], ""
    return family.tensors["blocks.{i}." + name[number.end() :]], number[1]


def _names(family: Family, source: Source, number: str, num_experts: int) -> list[str]:
    names = [part if part == HEAD else family.prefix + part.replace("{i}", number) for part in source.tensors]
    if not source.way.startswith("stacked"):
        return names
    return [name.replace("{e}", str(expert)) for expert in range(num_experts) for name in names]


# --- the ways --------------------------------------------------------------------------------------


def _to_halves(rows: Tensor, config: ModelConfig) -> Tensor:
    """Rows of heads with rotary pairs (2i, 2i + 1) as rows with pairs (i, i + head_dim / 2)."""
    if config.position != "rope":
        return rows
    return rows.unflatten(0, (-1, config.head_size // 2, 2)).transpose(1, 2).flatten(0, 2)


def _to_pairs(rows: Tensor, config: ModelConfig) -> Tensor:
    if config.position != "rope":
        return rows
    return rows.unflatten(0, (-1, 2, config.head_size // 2)).transpose(1, 2).flatten(0, 2)


def _split_heads(rows: Tensor, config: ModelConfig) -> tuple[Tensor, ...]:
    """Queries, keys and values, of rows that hold for each key head its queries, its key and its value."""
    group = config.num_heads // config.kv_heads
    heads = rows.unflatten(0, (config.kv_heads, group + 2, config.head_size))
    q, k, v = heads[:, :group].flatten(0, 2), heads[:, group].flatten(0, 1), heads[:, group + 1].flatten(0, 1)
    return _to_halves(q, config), _to_halves(k, config), v


def _join_heads(parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    q, k, v = _to_pairs(parts[0], config), _to_pairs(parts[1], config), parts[2]
    heads = [part.unflatten(0, (config.kv_heads, -1, config.head_size)) for part in (q, k, v)]
    return torch.cat(heads, dim=1).flatten(0, 2)


def _split_fused(rows: Tensor, config: ModelConfig) -> tuple[Tensor, ...]:
    return (torch.cat(_split_heads(rows, config)),)


def _join_fused(parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    sizes = [heads * config.head_size for heads in (config.num_heads, config.kv_heads, config.kv_heads)]
    return _join_heads(parts[0].split(sizes), config)


def _split_gated(rows: Tensor, config: ModelConfig) -> tuple[Tensor, ...]:
    """Gate and up, of rows that hold blocks of them in turn."""
    gate, up = rows.unflatten(0, (-1, 2, swiglu_block(len(rows) // 2))).unbind(1)
    return gate.flatten(0, 1), up.flatten(0, 1)


def _join_gated(parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    blocks = [part.unflatten(0, (-1, swiglu_block(len(part)))) for part in parts]
    return torch.stack(blocks, dim=1).flatten(0, 2)


def _split_stacked_gated(experts: Tensor, config: ModelConfig) -> tuple[Tensor, ...]:
    return tuple(part for rows in experts for part in _split_gated(rows, config))


def _join_stacked_gated(parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return torch.stack([_join_gated(pair, config) for pair in pairs])


_Split = Callable[[Tensor, ModelConfig], tuple[Tensor, ...]]
_Join = Callable[[Sequence[Tensor], ModelConfig], Tensor]
_WAYS: dict[Way, tuple[_Split, _Join]] = {
    "whole": (lambda tensor, _: (tensor,), lambda parts, _: parts[0]),
    "transposed": (lambda tensor, _: (tensor.T,), lambda parts, _: parts[0].T),
    "heads": (_split_heads, _join_heads),
    "fused_heads": (_split_fused, _join_fused),
    "transposed_fused_heads": (
        lambda tensor, config: (_split_fused(tensor, config)[0].T,),
        lambda parts, config: _join_fused((parts[0].T,), config),
    ),
    "pairs": (
        lambda tensor, config: (_to_halves(tensor, config),),
        lambda parts, config: _to_pairs(parts[0], config),
    ),
    "gated": (_split_gated, _join_gated),
    "stacked": (lambda tensor, _: tensor.unbind(0), lambda parts, _: torch.stack(list(parts))),
    "stacked_gated": (_split_stacked_gated, _join_stacked_gated),
}
