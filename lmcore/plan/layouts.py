"""Every layout of so many GPUs that divides a model and its batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, get_args

from lmcore.config import ModelConfig, ParallelConfig, TrainConfig
from lmcore.layout import find_misfit
from lmcore.plan.kernels import is_refused

MAX_MICRO_BATCH = 32
MAX_CP = 16
SCHEDULES: tuple[tuple[Literal["1f1b", "interleaved_1f1b", "zbv"], int], ...] = (
    ("1f1b", 1),
    ("interleaved_1f1b", 2),
    ("interleaved_1f1b", 4),
    ("zbv", 2),
)


def layouts_of(
    model: ModelConfig, train: TrainConfig, num_gpus: int, gpus_per_node: int
) -> Iterator[TrainConfig]:
    """The settings of ``train`` with each layout that divides them over ``num_gpus``.

    What decides the result stays: the batch, the length of sequences, the precision. Tensor parallel stays
    within a node, since nothing hides its messages. The rest is what ``lmcore.layout`` lets through.
    """
    for parallel in _parallels(model, train, num_gpus, gpus_per_node):
        if train.global_batch_size % parallel.dp:
            continue
        ours = train.global_batch_size // parallel.dp
        for micro_batch_size in _divisors(ours, MAX_MICRO_BATCH):
            if ours // micro_batch_size < parallel.pp:
                continue
            laid_out = train.model_copy(update={"parallel": parallel, "micro_batch_size": micro_batch_size})
            if find_misfit(model, laid_out):
                continue
            for mode in modes():
                moded = laid_out.model_copy(update={"activation_checkpointing": mode})
                if not is_refused(model, moded):
                    yield moded


def modes() -> tuple[str, ...]:
    """What there is of activation checkpointing, least of it first."""
    return get_args(TrainConfig.model_fields["activation_checkpointing"].annotation)


def _parallels(
    model: ModelConfig, train: TrainConfig, num_gpus: int, gpus_per_node: int
) -> Iterator[ParallelConfig]:
    for tp, pp, cp in itertools.product(
        _divisors(num_gpus, gpus_per_node),
        _divisors(num_gpus, min(model.num_layers, train.global_batch_size)),
        _powers(MAX_CP),
    ):
        dp, left = divmod(num_gpus, tp * pp * cp)
        if left or dp > train.global_batch_size:
            continue
        for shard, ep, (schedule, each) in itertools.product(
            _divisors(dp, dp),
            _divisors(max(1, model.moe.num_experts), 64),
            SCHEDULES if pp > 1 else SCHEDULES[:1],
        ):
            # Groups of replicas and shards in between would be other ways to say the same.
            if shard not in (1, dp) and (shard * tp * cp) % gpus_per_node:
                continue
            if ep > 1 and (shard * cp) % ep:
                continue
            yield ParallelConfig(
                dp_replicate=dp // shard,
                dp_shard=shard,
                tp=tp,
                pp=pp,
                cp=cp,
                ep=ep,
                sequence_parallel=train.parallel.sequence_parallel,
                pipeline_schedule=schedule,
                stages_per_process=each if pp > 1 else 0,
            )


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]


def _powers(most: int) -> list[int]:
    return [1 << bit for bit in range(most.bit_length())]
