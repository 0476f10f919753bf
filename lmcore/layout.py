"""Whether a layout fits a model and a batch, before anything starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmcore.config import ModelConfig, ParallelConfig, TrainConfig


def find_misfit(model: ModelConfig, train: TrainConfig) -> str:
    """Say why ``train.parallel`` cannot divide this model and batch, and what could; empty: it can."""
    return next(_misfits(model, train), "")


def find_vocabulary_misfit(vocab_size: int, tp: int) -> str:
    """Say why ``tp`` processes cannot share ``vocab_size`` entries, and how many could; empty: they can.

    Each has as many as the first but the last one, which has the rest.
    """
    if _shares(vocab_size, tp):
        return ""
    most = next(count for count in range(tp, 0, -1) if _shares(vocab_size, count))
    return (
        f"train.parallel.tp {tp} leaves processes without any of the {vocab_size} entries of the vocabulary; "
        f"use at most {most}"
    )


def sequence_multiple(parallel: ParallelConfig) -> int:
    """The least length that ``parallel`` divides, in tokens: of it all other lengths are multiples."""
    pieces = 2 if parallel.cp > 1 else 1
    return parallel.cp * math.lcm(pieces, parallel.tp if parallel.sequence_parallel else 1)


def micro_batch_sizes(train: TrainConfig) -> list[int]:
    """Sequences that a micro-batch may have, ascending: they divide a share, and fill its pipeline."""
    ours, pipeline = train.sequences_per_process, train.parallel.pp > 1
    return [
        size
        for size in range(1, ours + 1)
        if ours % size == 0 and (not pipeline or _fills(train, ours // size))
    ]


def _shares(vocab_size: int, tp: int) -> bool:
    return -(-vocab_size // tp) * (tp - 1) < vocab_size


def _misfits(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    yield from _context_misfits(train)  # first: the parts of sequences that tp divides are whole then
    yield from _tensor_misfits(model, train)
    yield from _pipeline_misfits(model, train)
    yield from _expert_misfits(model, train)


def _tensor_misfits(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    tp = train.parallel.tp
    if tp > 1 and train.precision == "fp8":
        yield f"train.precision fp8 needs whole matrices, but train.parallel.tp is {tp}; use tp 1, or bf16"
    divided = {"key heads (model.num_kv_heads)": model.kv_heads}
    if not all(map(model.moe.replaces_mlp, range(model.num_layers))):  # experts stay whole
        divided[f"blocks of {model.mlp_block} of the MLP's width"] = model.mlp_size // model.mlp_block
    length = train.seq_len // train.parallel.cp
    fits_all = math.gcd(*divided.values(), length if train.parallel.sequence_parallel else 0)
    for what, count in divided.items():
        if count % tp:
            yield f"train.parallel.tp {tp} does not divide the {count} {what}; use {_divisors(fits_all, tp)}"
    if train.parallel.sequence_parallel and length % tp:
        yield (
            f"train.parallel.tp {tp} does not divide the {length} tokens of a sequence that a process holds "
            f"(seq_len / cp); use {_divisors(fits_all, tp)}, or sequence_parallel: false"
        )


def _context_misfits(train: TrainConfig) -> Iterator[str]:
    cp = train.parallel.cp
    # Each process holds a piece of the first half and its mirror image in the second.
    if cp > 1 and train.seq_len % (2 * cp):
        yield (
            f"train.parallel.cp {cp} needs sequences of a multiple of {2 * cp} tokens; train.seq_len is "
            f"{train.seq_len}; use {_divisors(train.seq_len // 2, cp) if train.seq_len % 2 == 0 else 1}"
        )


def _pipeline_misfits(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    parallel = train.parallel
    if parallel.pp == 1:
        return
    schedule, each = parallel.pipeline_schedule, parallel.num_stages // parallel.pp
    if schedule in ("1f1b", "gpipe") and each != 1:
        yield _stages_misfit(schedule, "has one stage for each process", each, 1)
    if schedule == "zbv" and each != 2:
        yield _stages_misfit(schedule, "has two stages for each process", each, 2)
    if schedule.startswith("interleaved") and each < 2:
        yield _stages_misfit(schedule, "needs two stages or more for each process", each, 2)
    if parallel.num_stages > model.num_layers:
        yield (
            f"train.parallel.pp {parallel.pp} makes {parallel.num_stages} stages of the {model.num_layers} "
            f"layers (model.num_layers); use at most {max(1, model.num_layers // each)}"
        )
    batches = train.grad_accum_steps
    if not train.micro_batch_size:  # is found later
        if micro_batch_sizes(train):
            return
        batches = train.sequences_per_process
    if batches < parallel.pp:
        yield (
            f"train.parallel.pp {parallel.pp} needs at least as many micro-batches in a step; found "
            f"{batches}; use {_other_batches(train)}"
        )
    elif not _fills(train, batches):
        yield (
            f"train.parallel.pipeline_schedule {schedule} needs micro-batches in rounds of pp "
            f"{parallel.pp}; a step has {batches}; use {_other_batches(train)}"
        )


def _stages_misfit(schedule: str, wants: str, found: int, use: int) -> str:
    return (
        f"train.parallel.pipeline_schedule {schedule} {wants}; found stages_per_process {found}; "
        f"use stages_per_process {use}"
    )


def _fills(train: TrainConfig, batches: int) -> bool:
    """Whether so many micro-batches in a step keep the pipeline's schedule going."""
    pp = train.parallel.pp
    in_rounds = train.parallel.pipeline_schedule.startswith("interleaved")
    return batches >= pp and not (in_rounds and batches % pp)


def _other_batches(train: TrainConfig) -> str:
    """The nearest micro-batch size that fills the pipeline, or, where there is none, the nearest batch."""
    size = train.micro_batch_size or 1
    if sizes := micro_batch_sizes(train):
        return f"micro_batch_size {min(sizes, key=lambda d: abs(d - size))}"
    more = next(count for count in itertools.count(train.grad_accum_steps or 1) if _fills(train, count))
    return f"global_batch_tokens {more * size * train.parallel.dp * train.seq_len}"


def _expert_misfits(model: ModelConfig, train: TrainConfig) -> Iterator[str]:
    parallel, experts = train.parallel, model.moe.num_experts
    if parallel.ep > 1 and not experts:
        yield f"train.parallel.ep {parallel.ep} divides experts, and model.moe.num_experts is 0; use ep 1"
        return
    ranks = parallel.dp_shard * parallel.cp
    fits_both = math.gcd(experts, ranks)
    for what, count in (
        ("experts (model.moe.num_experts)", experts),
        ("processes of dp_shard x cp", ranks),
    ):
        if count % parallel.ep:
            yield (
                f"train.parallel.ep {parallel.ep} does not divide the {count} {what}; "
                f"use {_divisors(fits_both, parallel.ep)}"
            )


def _divisors(number: int, wish: int) -> str:
    """The divisors of ``number`` that are nearest to ``wish``, below and above."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below, above = [d for d in divisors if d < wish], [d for d in divisors if d > wish]
    return " or ".join(str(d) for d in (below[-1:] + above[:1]))
