"""Weights of a model on the meta device: each is made whole, and a process keeps its part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lmcore.parallel.parts import part_like
from lmcore.parallel.stage import Stage

Draw = Callable[[str, torch.Size], Tensor]  # name and shape -> the whole of it, fp32 on the CPU


@torch.no_grad()
def materialize(stage: Stage, device: torch.device, draw: Draw, below: nn.Module | None = None) -> None:
    """Give the parameters and buffers of ``stage`` that are on the meta device, or those ``below``, values.

    Args:
        stage: A piece of a model; a tied head is the embedding, or drawn like it where that is elsewhere.
        device: Where they are to be.
        draw: Makes the whole of one of them.
        below: A module of it; None: all that is left.
    """
    model, tied = stage.model, stage.model.config.tie_embeddings
    inside = set((below or stage).modules())
    for prefix, module in model.named_modules():
        if module not in inside:
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            path = f"{prefix}.{name}" if prefix else name
            if tied and path == "head.weight":
                if isinstance(model.embedding, nn.Module):
                    continue
                path = "embedding.weight"
            if parameter.device.type == "meta":
                value = part_like(parameter, draw(path, parameter.shape), device)
                setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta" and name not in module._non_persistent_buffers_set:
                path = f"{prefix}.{name}" if prefix else name
                setattr(module, name, draw(path, buffer.shape).to(device))
    if below is None:
        if tied and isinstance(model.embedding, nn.Module) and isinstance(model.head, nn.Module):
            model.head.weight = model.embedding.weight
        model.restore_tables(device)
