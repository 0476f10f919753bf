"""What a block keeps between its forward and its backward pass, operation by operation.

Counted on the code of ``lmcore.model``: each line of a sum is a tensor that an operation saves. Fused
attention never has the scores of all pairs (Dao et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

from lmcore.config import ModelConfig, TrainConfig
from lmcore.parallel.apply import DTYPES
from lmcore.plan.kernels import has_mask

FP32 = 4


@dataclass(frozen=True)
class Widths:
    """Bytes of the tensors of one token, on one process.

    Attributes:
        element: Bytes of a number that is computed with.
        stream: Of the residual stream where a process has only its part.
        stream_numbers: How many numbers that is.
        whole: Of the residual stream as the first matrices of a branch read it.
        qkv: Of queries, keys and values together.
        queries, keys: Of these alone.
        mlp: Of what the last matrix of an MLP reads.
        up: Of what its first matrix makes.
        heads: Numbers of softmax statistics.
    """

    element: int
    stream: float
    stream_numbers: float
    whole: float
    qkv: float
    queries: float
    keys: float
    mlp: float
    up: float
    heads: float


def widths_of(model: ModelConfig, train: TrainConfig) -> Widths:
    """The widths of a model under a layout."""
    parallel = train.parallel
    tp = parallel.tp
    element = DTYPES[train.precision].itemsize
    # Autocast leaves the residual stream in fp32; FSDP2 computes in one type throughout.
    stream = element if parallel.is_sharded else FP32
    along = tp if parallel.sequence_parallel else 1
    queries, keys = model.num_heads * model.head_size / tp, model.kv_heads * model.head_size / tp
    gated = 2 if model.activation == "swiglu" else 1
    return Widths(
        element=element,
        stream=stream * model.hidden_size / along,
        stream_numbers=model.hidden_size / along,
        whole=element * model.hidden_size,
        qkv=element * (queries + 2 * keys),
        queries=element * queries,
        keys=element * keys,
        mlp=element * model.mlp_size / tp,
        up=element * gated * model.mlp_size / tp,
        heads=FP32 * model.num_heads / tp,
    )


def kept_by_block(model: ModelConfig, train: TrainConfig, layer: int, mode: str, device: str) -> float:
    """Bytes that block ``layer`` keeps of a token that its process holds.

    Args:
        model: Its settings.
        train: Layout and precision.
        layer: Which block.
        mode: "none", "selective" or "full" activation checkpointing.
        device: "cuda" or "cpu".
    """
    w = widths_of(model, train)
    if mode == "full":
        return w.stream
    if mode == "selective":
        return _selective(model, train, w, layer)
    return w.stream + _attention(model, train, w, device) + w.stream + _mlp(model, w, layer, device)


def _selective(model: ModelConfig, train: TrainConfig, w: Widths, layer: int) -> float:
    """Its input, products that read the residual stream's width, attention, what comes off the wire."""
    parallel = train.parallel
    kept = w.stream + w.qkv + w.queries + w.heads
    if parallel.tp > 1:
        kept += w.stream
    elif model.num_heads * model.head_size == model.hidden_size:
        kept += w.whole
    if model.moe.replaces_mlp(layer):
        return kept + _experts_between(model, w)
    return kept + w.up + (w.stream if parallel.tp > 1 else 0)


def _attention(model: ModelConfig, train: TrainConfig, w: Widths, device: str) -> float:
    # The norm's result, which the first product reads, and that product's: values are a part of it, so that
    # all of it stays for their sake.
    kept = w.whole + w.qkv
    group = model.num_heads // model.kv_heads
    masked = has_mask(model, train, device)
    queries = w.queries if group > 1 else 0.0  # taken out of the product: a copy, unless heads are not shared
    if model.qk_norm:
        plain = device == "cpu" and w.element == FP32
        kept += w.queries + w.keys if plain else queries
        kept += _norm_on_cpu(w, w.queries + w.keys) if device == "cpu" else 0.0
    if model.position == "rope":
        queries, keys = w.queries, w.keys
    else:
        keys = w.keys if model.qk_norm else 0.0
    if train.parallel.cp > 1:  # keys and values of the whole sequence, gathered
        keys = 2 * w.keys * train.parallel.cp
    if group > 1 and masked and device == "cuda":  # repeated for the query heads that share them
        keys = 2 * w.queries * train.parallel.cp
    return kept + queries + keys + w.queries + w.heads + _statistics(model, w, device)


def _statistics(model: ModelConfig, w: Widths, device: str) -> float:
    """What the block's two norms keep beside their inputs, or instead of them."""
    if model.norm == "layernorm":
        return 4 * FP32
    return 2 * FP32 + (2 * _norm_on_cpu(w, w.stream) if device == "cpu" else 0.0)


def _norm_on_cpu(w: Widths, input_bytes: float) -> float:
    """What more RMS norm keeps there in 16 bits, being composed: its input and its result in fp32."""
    if w.element == FP32 or input_bytes == w.stream == FP32 * w.stream_numbers:
        return 0.0
    return 2 * FP32 / w.element * input_bytes - input_bytes


def _mlp(model: ModelConfig, w: Widths, layer: int, device: str) -> float:
    norm = w.whole
    plain = device == "cpu" and w.element == FP32
    if model.moe.replaces_mlp(layer):
        return norm + _mixture(model, w, plain=plain)
    return norm + _between(model.activation, w.up, w.mlp, plain=plain)


def _between(activation: str, up: float, mlp: float, *, plain: bool) -> float:
    """What lies between the two matrices of an MLP: the first one's result, and what the last one reads."""
    if activation == "swiglu" and not plain:
        return up + 2 * mlp  # the gate's SiLU too; in fp32 on a CPU it is computed again
    return up + mlp


def _experts_between(model: ModelConfig, w: Widths) -> float:
    size = w.element * model.expert_size * (2 if model.activation == "swiglu" else 1)
    return model.moe.num_experts_per_token * size


def _mixture(model: ModelConfig, w: Widths, *, plain: bool) -> float:
    """A router in fp32, and rows that are sorted by expert, computed, and sorted back."""
    moe, size = model.moe, w.element * model.expert_size
    up = _experts_between(model, w) / moe.num_experts_per_token
    rows = moe.num_experts_per_token * (w.whole + _between(model.activation, up, size, plain=plain) + w.whole)
    router = FP32 * (model.hidden_size + 3 * moe.num_experts)
    shared = moe.num_shared_experts * _between(model.activation, up, size, plain=plain)
    return router + rows + shared
