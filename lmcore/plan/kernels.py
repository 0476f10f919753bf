"""What a run would choose on a GPU that is not here: whether it compiles, and what computes attention."""

from __future__ import annotations

from lmcore.config import ModelConfig, TrainConfig
from lmcore.parallel.compile import FEW_STEPS


def compiles(model: ModelConfig, train: TrainConfig) -> bool:
    """Whether blocks are compiled on GPUs (``choose_compile``)."""
    if train.compile != "auto":
        return train.compile == "blocks"
    return not model.moe.num_experts and train.parallel.tp == 1 and train.steps >= FEW_STEPS


def has_mask(model: ModelConfig, train: TrainConfig, device: str = "cuda") -> bool:
    """Whether attention is given a mask of all pairs (``choose_backend``).

    The parts of divided sequences always are. Documents on GPUs are kept apart by blocks, but where a
    selective checkpoint, which keeps what attention made, would not know what is not compiled.
    """
    if train.parallel.cp > 1 or not train.document_mask:
        return train.parallel.cp > 1
    by_blocks = device == "cuda" and train.attention in ("auto", "flex")
    return not by_blocks or not _can_have_blocks(model, train)


def is_refused(model: ModelConfig, train: TrainConfig) -> bool:
    """Whether a run would not start: flex_attention was asked for by name, where it cannot be."""
    return train.attention == "flex" and (train.parallel.cp > 1 or not _can_have_blocks(model, train))


def _can_have_blocks(model: ModelConfig, train: TrainConfig) -> bool:
    return train.activation_checkpointing != "selective" or compiles(model, train)
