"""Pipeline parallel: the blocks divided into stages, and the order of their passes."""

from __future__ import annotations

import functools
import importlib
import itertools
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmcore.config import ParallelConfig
from lmcore.data.loader import Batch
from lmcore.parallel.mesh import Layout
from lmcore.parallel.stage import Stage

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage

# Of torch.distributed.pipelining, which takes most of a second to import: only who has a pipeline waits.
_SCHEDULES = {
    "gpipe": "ScheduleGPipe",  # Huang et al. 2019
    "1f1b": "Schedule1F1B",  # Narayanan et al. 2019
    "interleaved_1f1b": "ScheduleInterleaved1F1B",  # Narayanan et al. 2021
    "interleaved_zero_bubble": "ScheduleInterleavedZeroBubble",  # Qi et al. 2023
    "zbv": "ScheduleZBVZeroBubble",  # Qi et al. 2024
}


# Gradients by inputs and by weights are apart in these: the others wait for the former alone.
SPLIT_BACKWARD = ("interleaved_zero_bubble", "zbv")


def layers_of_stages(num_layers: int, num_stages: int) -> list[range]:
    """Divide the blocks as evenly as can be, so that the last stage, which has the head, has no more."""
    ends = [-(-num_layers * stage // num_stages) for stage in range(num_stages + 1)]
    return [range(first, stop) for first, stop in itertools.pairwise(ends)]


def own_stages(parallel: ParallelConfig, rank: int) -> list[int]:
    """Stages of the process at ``rank`` of the pipeline: every pp-th, or (zbv) one and its mirror image."""
    if parallel.pipeline_schedule == "zbv" and parallel.pp > 1:
        return [rank, parallel.num_stages - 1 - rank]
    return list(range(rank, parallel.num_stages, parallel.pp))


def stage_owners(parallel: ParallelConfig) -> list[int]:
    """The process, by its place in the pipeline, of each stage."""
    owner = {place: rank for rank in range(parallel.pp) for place in own_stages(parallel, rank)}
    return [owner[place] for place in range(parallel.num_stages)]


class Pipeline:
    """The stages of this process among those of the others.

    Args:
        wrapped: Our stages.
        places: Which of all stages they are.
        layout: Of the processes.
        dtype: Type of what goes from stage to stage.
        batch_shape: Sequences of a micro-batch, and their tokens that a process has.
        num_micro_batches: Of a step.
    """

    def __init__(
        self,
        wrapped: list[nn.Module],
        places: list[int],
        layout: Layout,
        dtype: torch.dtype,
        batch_shape: tuple[int, int],
        num_micro_batches: int,
    ) -> None:
        self.wrapped, self.layout, self.places, self.dtype = wrapped, layout, places, dtype
        self.batch_shape, self.num_micro_batches = batch_shape, num_micro_batches
        self.num_stages = layout.parallel.num_stages
        self.width = _stage(wrapped[0]).model.config.hidden_size

    def use_micro_batches(self, size: int, count: int) -> None:
        """Have each of the next steps take ``count`` micro-batches of ``size`` sequences."""
        self.batch_shape, self.num_micro_batches = (size, self.batch_shape[1]), count
        self.__dict__.pop("_schedule", None)  # it has buffers of the shape before

    @functools.cached_property
    def _schedule(self) -> Any:
        """Torch's schedule of a step; who only evaluates has none."""
        parallel = self.layout.parallel
        stages = [self._pipeline_stage(*pair) for pair in zip(self.wrapped, self.places, strict=True)]
        one = parallel.pipeline_schedule in ("1f1b", "gpipe")
        pipelining: Any = importlib.import_module("torch.distributed.pipelining")
        return getattr(pipelining, _SCHEDULES[parallel.pipeline_schedule])(
            stages[0] if one else stages,
            self.num_micro_batches,
            loss_fn=lambda loss, targets: loss,  # the last stage makes it: logits would be kept to the end
            scale_grads=False,  # the loss is divided once, by the global number of targets
        )

    def _pipeline_stage(self, module: nn.Module, place: int) -> PipelineStage:
        from torch.distributed.pipelining import PipelineStage

        shape = self.batch_shape
        held = shape[1] // (self.layout.parallel.tp if self.layout.divides_sequence else 1)
        like = functools.partial(torch.empty, dtype=self.dtype, device="meta", requires_grad=True)
        stream = like(shape[0], held, self.width)
        loss = torch.empty((), device="meta", requires_grad=True)
        return PipelineStage(
            module,
            place,
            self.num_stages,
            self.layout.world.device,
            # Known beforehand: torch would find them out by a forward and a backward pass.
            input_args=stream if place else torch.empty(shape, dtype=torch.long, device="meta"),
            output_args=loss if place == self.num_stages - 1 else stream,
            group=self.layout.group("pp"),
        )

    @property
    def has_first(self) -> bool:
        """Whether this process reads the tokens."""
        return 0 in self.places

    @property
    def has_last(self) -> bool:
        """Whether this process makes the losses."""
        return self.num_stages - 1 in self.places

    def step(self, batch: Batch) -> None:
        """Do the forward and backward passes of the micro-batches of a step, joined in ``batch``."""
        arguments = {
            "positions": batch.positions,
            "document_ids": batch.document_ids,
            "sequences": batch.sequences,
            "targets": batch.targets if self.has_last else None,
        }
        self._schedule.step(
            *([batch.tokens] if self.has_first else []),
            **({"target": batch.targets} if self.has_last else {}),
            **{name: value for name, value in arguments.items() if value is not None},
            return_outputs=False,
        )

    def forward(self, batch: Batch, shape: torch.Size) -> Tensor:
        """Return what the last stage makes of ``batch``, of any size, on all of the pipeline.

        Stage by stage: torch's schedules go forward alone in some orders only.

        Args:
            batch: Our part.
            shape: Of what it makes, in fp32.
        """
        owners = stage_owners(self.layout.parallel)
        group, device = self.layout.group("pp"), batch.tokens.device
        own = dict(zip(self.places, self.wrapped, strict=True))
        found = torch.empty(shape, device=device)
        held = batch.tokens.shape[1] // (self.layout.parallel.tp if self.layout.divides_sequence else 1)
        x = batch.tokens
        for place, owner in enumerate(owners):
            if place not in own:
                continue
            if place and owners[place - 1] != owner:
                x = torch.empty(len(batch.tokens), held, self.width, dtype=self.dtype, device=device)
                dist.recv(x, group=group, group_src=owners[place - 1])
            x = own[place](x, batch.positions, batch.document_ids, None, batch.targets)
            if place == self.num_stages - 1:
                found.copy_(x)
            elif owners[place + 1] != owner:
                dist.send(x.to(self.dtype).contiguous(), group=group, group_dst=owners[place + 1])
        dist.broadcast(found, group=group, group_src=owners[-1])
        return found


def _stage(module: nn.Module) -> Stage:
    if not isinstance(module, Stage):
        raise TypeError(f"expected a stage, found {type(module).__name__}")
    return module
