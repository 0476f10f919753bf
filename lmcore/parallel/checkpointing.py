"""What a block keeps for its backward pass, and what it computes again."""

from __future__ import annotations

import functools
from typing import Any, Literal, Self

from torch import Tensor
from torch._guards import TracingContext
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lmcore.parallel.stage import Stage

Checkpointing = Literal["none", "selective", "full"]

# Where the second factor of a product is among its arguments, and which of its axes is summed over. Products
# into a given tensor are others.
_SECOND_FACTOR = {
    "aten.mm.default": (1, -2),
    "aten.addmm.default": (2, -2),
    "aten._scaled_mm.default": (1, -2),
    "aten._grouped_mm.default": (1, -2),
    "mkldnn._linear_pointwise.default": (1, -1),
}
# Fused attention, whatever the backend. What torch composes where none fits makes scores of all pairs, the
# largest tensors of a block: nothing of it is kept.
_ATTENTION = (
    "aten._scaled_dot_product_",
    "aten._flash_attention_forward",
    "aten._efficient_attention_forward",
    "aten._cudnn_attention_forward",
)
_FLEX = "flex_attention"  # where blocks are compiled; it has no rule for modes of our own
_COLLECTIVES = ("_c10d_functional.reduce_scatter_tensor.default", "_c10d_functional.all_reduce.default")


def checkpoint_blocks(stage: Stage, mode: Checkpointing) -> None:
    """Have the blocks of ``stage`` keep less, and compute the rest again in the backward pass.

    full: their inputs alone (Chen et al. 2016). selective: also the results that are dear to compute and not
    large (Korthikanti et al. 2022), as ``keeps`` says; norms, rotations and activations are computed again.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(_contexts, stage.model.config.hidden_size)
    stage.take_apart()
    for block in stage.blocks:
        block.forward = functools.partial(checkpoint, block.forward, **options)


def keeps(op: Any, args: tuple[Any, ...], width: int) -> bool:
    """Whether a selective checkpoint keeps what ``op`` makes of ``args``.

    It keeps attention, and products that read the residual stream's ``width``: of queries, keys and values,
    of the MLP's first matrix. Not those that lead back to it from another width: the last one of a block is
    never computed again, since all that it would be needed for is the sum behind it (by oneDNN it is). Where
    tensor parallel divides a product's sum, what is kept is what comes off the wire.
    """
    name = _name(op)
    place = _SECOND_FACTOR.get(name)
    if place is None:
        attends = name == _FLEX or (name.startswith(_ATTENTION) and "_math" not in name)
        return attends or name in _COLLECTIVES
    factor, axis = args[place[0]], place[1]
    divided = isinstance(factor, DTensor) and any(placement.is_shard(0) for placement in factor.placements)
    return factor.shape[axis] == width and not divided


_name = functools.cache(str)


def _contexts(width: int) -> tuple[Any, Any]:
    """What the forward pass of a block runs in, and its repetition.

    Torch's own contexts count every operation, and refuse a repetition that has others (FSDP2's around
    experts) or that comes twice (zero-bubble schedules); they are what ``torch.compile`` understands.
    """
    if TracingContext.try_get() is not None:
        return create_selective_checkpoint_contexts(functools.partial(policy, width))
    kept: list[Any] = []
    return _Keep(width, kept), _Repeat(width, kept)


def policy(width: int, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What ``keeps`` says, as ``torch.compile`` asks it."""
    del context, kwargs
    return CheckpointPolicy.MUST_SAVE if keeps(op, args, width) else CheckpointPolicy.PREFER_RECOMPUTE


class _Keep(TorchDispatchMode):
    def __init__(self, width: int, kept: list[Any]) -> None:
        super().__init__()
        self.width, self.kept = width, kept

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if keeps(func, args, self.width):
            self.kept.append(_apart(result))
        return result


class _Repeat(TorchDispatchMode):
    """Gives what was kept, in the same order, each time that it is gone through."""

    def __init__(self, width: int, kept: list[Any]) -> None:
        super().__init__()
        self.width, self.kept, self.place = width, kept, 0

    def __enter__(self) -> Self:
        self.place = 0
        return super().__enter__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not keeps(func, args, self.width):
            return func(*args, **(kwargs or {}))
        self.place += 1
        return _apart(self.kept[self.place - 1])


def _apart(result: Any) -> Any:
    """The same numbers as tensors that autograd has not seen."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach(), result)
