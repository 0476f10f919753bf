"""Whether a layout fits a model and a batch, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmcore.config import ModelConfig, TrainConfig


def find_misfit(model: ModelConfig, train: TrainConfig) -> str:
    """Say why ``train.parallel`` cannot divide this model and batch, and what could; empty: it can."""
    return next(_misfits(model, train), "")


def _misfits(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    yield from _tensor_misfits(model, train)
    yield from _context_misfits(train)
    yield from _pipeline_misfits(model, train)
    yield from _expert_misfits(model, train)


def _tensor_misfits(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    tp = train.parallel.tp
    if tp > 1 and train.precision == "fp8":
        yield f"train.precision fp8 needs whole matrices, but train.parallel.tp is {tp}; use tp 1, or bf16"
    for what, count in (
        ("key heads (model.num_kv_heads)", model.kv_heads),
        (f"blocks of {model.mlp_block} of the MLP's width", model.mlp_size // model.mlp_block),
    ):
        if count % tp:
            yield f"train.parallel.tp {tp} does not divide the {count} {what}; use {_divisors(count, tp)}"
    length = train.seq_len // train.parallel.cp
    if tp > 1 and train.parallel.sequence_parallel and length % tp:
        yield (
            f"train.parallel.tp {tp} does not divide the {length} tokens of a sequence that a process holds "
            f"(seq_len / cp); use {_divisors(length, tp)}, or sequence_parallel: false"
        )


def _context_misfits(train: TrainConfig) -> Iterator[str]:
    cp = train.parallel.cp
    # Each process holds a piece of the first half and its mirror image in the second.
    if cp > 1 and train.seq_len % (2 * cp):
        yield (
            f"train.parallel.cp {cp} needs sequences of a multiple of {2 * cp} tokens; train.seq_len is "
            f"{train.seq_len}; use cp {_divisors(train.seq_len // 2, cp) if train.seq_len % 2 == 0 else 1}"
        )


def _pipeline_misfits(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    parallel, batches = train.parallel, train.grad_accum_steps
    if parallel.pp == 1:
        return
    schedule, each = parallel.pipeline_schedule, parallel.num_stages // parallel.pp
    if parallel.num_stages > model.num_layers:
        yield (
            f"train.parallel.pp {parallel.pp} makes {parallel.num_stages} stages of the {model.num_layers} "
            f"layers (model.num_layers); use at most {max(1, model.num_layers // each)}"
        )
    if schedule in ("1f1b", "gpipe") and each != 1:
        yield f"pipeline_schedule {schedule} has one stage for each process; found stages_per_process {each}"
    if schedule == "zbv" and each != 2:
        yield f"pipeline_schedule zbv has two stages for each process; found stages_per_process {each}"
    if schedule.startswith("interleaved") and each < 2:
        yield f"pipeline_schedule {schedule} needs stages_per_process of at least 2; found {each}"
    if schedule.startswith("interleaved") and batches > parallel.pp and batches % parallel.pp:
        yield (
            f"pipeline_schedule {schedule} needs micro-batches in rounds of {parallel.pp} (pp); a step has "
            f"{batches}; change micro_batch_size"
        )
    if batches < parallel.pp:
        yield (
            f"train.parallel.pp {parallel.pp} needs at least as many micro-batches in a step; found "
            f"{batches}; use a micro_batch_size of at most "
            f"{max(1, train.sequences_per_process // parallel.pp)}"
        )


def _expert_misfits(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    parallel, experts = train.parallel, model.moe.num_experts
    if parallel.ep > 1 and not experts:
        yield f"train.parallel.ep {parallel.ep} divides experts, and model.moe.num_experts is 0; use ep 1"
        return
    for what, count in (
        ("experts (model.moe.num_experts)", experts),
        ("processes of dp_shard x cp", parallel.dp_shard * parallel.cp),
    ):
        if count % parallel.ep:
            yield (
                f"train.parallel.ep {parallel.ep} does not divide the {count} {what}; "
                f"use {_divisors(count, parallel.ep)}"
            )


def _divisors(number: int, wish: int) -> str:
    """The divisors of ``number`` that are nearest to ``wish``, below and above."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below, above = [d for d in divisors if d < wish], [d for d in divisors if d > wish]
    return " or ".join(str(d) for d in (below[-1:] + above[:1]))
