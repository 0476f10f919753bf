"""What a process sends in a step, axis by axis, by the formulas of the field.

Of n members, gathering or scattering V bytes sends (n - 1) / n V from each, and adding up for all of them
twice that (Thakur et al. 2005).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmcore.config import ParallelConfig, TrainConfig
from lmcore.parallel.apply import DTYPES
from lmcore.parallel.pipeline import layers_of_stages, own_stages
from lmcore.plan.shape import Shape

FP32 = 4


@dataclass(frozen=True)
class Traffic:
    """Messages of one kind on one axis, from the process that sends most.

    Attributes:
        axis: "fsdp", "replicas", "tp", "cp", "ep" or "pp".
        bytes: That a process sends in a step.
        messages: Collectives of a step.
        size: Processes of a group.
        inside: Ranks from one of them to the next.
        hidden: Whether other work goes on meanwhile.
    """

    axis: str
    bytes: float
    messages: float
    size: int
    inside: int
    hidden: bool


def traffic_of(shape: Shape, train: TrainConfig) -> list[Traffic]:
    """All messages of a step on GPUs, where weights are gathered for each pass and gradients given away."""
    found = [*_weights(shape, train), *_branches(shape, train), *_stages(shape, train)]
    return [one for one in found if one.size > 1 and one.bytes]


def inside_of(parallel: ParallelConfig, axis: str) -> int:
    """Ranks from one process of ``axis`` to the next: those of tp are neighbours (``Layout``)."""
    steps = {"tp": 1, "cp": parallel.tp, "ep": parallel.tp, "fsdp": parallel.tp}
    steps["replicas"] = parallel.tp * parallel.cp * parallel.dp_shard
    steps["pp"] = steps["replicas"] * parallel.dp_replicate
    return steps[axis]


def _weights(shape: Shape, train: TrainConfig) -> Iterator[Traffic]:
    """Weights that are gathered, gradients that are scattered, and those of replicas."""
    parallel, batches = train.parallel, train.grad_accum_steps
    blocks, ends = _own_numbers(shape, parallel)
    layers = len(shape.blocks) / parallel.pp
    element = DTYPES[train.precision].itemsize
    if parallel.is_sharded:
        n = parallel.dp_shard * parallel.cp
        # In a pipeline weights stay gathered and gradients wait: once a step, not once a micro-batch.
        rounds = batches if parallel.pp == 1 else 1
        gathers = 2 * rounds if parallel.pp == 1 else 1
        sent = element * (gathers * blocks + rounds * ends) + FP32 * rounds * (blocks + ends)
        messages = (gathers + rounds) * (layers + 1)
        yield Traffic("fsdp", sent * (n - 1) / n, messages, n, inside_of(parallel, "fsdp"), True)
        held = (blocks + ends) / n
    else:
        held = blocks + ends
    r = parallel.dp_replicate
    sent = 2 * (r - 1) / r * FP32 * held
    yield Traffic("replicas", sent, layers + 1, r, inside_of(parallel, "replicas"), True)


def _own_numbers(shape: Shape, parallel: ParallelConfig) -> tuple[float, float]:
    """Numbers of the fuller of the processes at both ends: of its blocks, and of what else it has."""
    layers = layers_of_stages(shape.config.num_layers, parallel.num_stages)
    found = []
    for place in {0, parallel.pp - 1}:
        stages = own_stages(parallel, place)
        kinds = shape.count([layer for stage in stages for layer in layers[stage]])
        blocks = sum(
            count * (block.divided / parallel.tp + block.whole + block.experts / parallel.ep)
            for block, count in kinds.items()
        )
        first, last = 0 in stages, parallel.num_stages - 1 in stages
        ends = first * (shape.embedding / parallel.tp + shape.positions)
        ends += last * (shape.head / parallel.tp + shape.norm)
        found.append((blocks, ends))
    return max(found, key=sum)


def _branches(shape: Shape, train: TrainConfig) -> Iterator[Traffic]:
    """What is sent inside of blocks: along tp, cp and ep."""
    config, parallel = shape.config, train.parallel
    element = DTYPES[train.precision].itemsize
    layers = config.num_layers / parallel.pp
    # Forward and backward, and forward again where blocks are computed again.
    passes = 2 if train.activation_checkpointing == "none" else 3
    held = train.sequences_per_process * train.seq_len / parallel.cp  # tokens of a step
    batches = train.grad_accum_steps
    stream = element * held * config.hidden_size
    tp, cp, ep = parallel.tp, parallel.cp, parallel.ep
    mixtures = shape.num_mixtures / parallel.pp
    one_way, messages = _along_tp(train, layers, layers - mixtures)
    sent = one_way * stream * (tp - 1) / tp
    yield Traffic("tp", sent, messages * batches, tp, inside_of(parallel, "tp"), False)
    keys = 2 * element * held * config.kv_heads * config.head_size / tp
    sent = passes * layers * keys * (cp - 1)  # each process's part, to all the others
    yield Traffic("cp", sent, passes * layers * batches, cp, inside_of(parallel, "cp"), False)
    own = stream / (tp if parallel.sequence_parallel else 1)
    visits = config.moe.num_experts_per_token * own
    sent = passes * mixtures * 2 * visits * (ep - 1) / ep
    yield Traffic("ep", sent, passes * mixtures * 3 * batches, ep, inside_of(parallel, "ep"), False)


def _along_tp(train: TrainConfig, attentions: float, mlps: float) -> tuple[float, float]:
    """How often tp sends the residual stream one way for a micro-batch, and in how many messages.

    A branch gathers what it reads and scatters what it makes, and the same for gradients; without sequence
    parallel it adds up once each way, which is both in one message (Korthikanti et al. 2022, figure 5).
    Experts are whole on every process. Blocks that are computed again stop at the last result that is needed:
    the sum of an MLP, which ends a block, is not made again.
    """
    parallel, mode = train.parallel, train.activation_checkpointing
    # The embedding and the head do each half of what a branch does.
    ends = 1.0 if parallel.pp == 1 or parallel.pipeline_schedule == "zbv" else 0.5
    branches = attentions + mlps
    if parallel.sequence_parallel:
        # Selective checkpoints keep what was scattered, not what was gathered.
        again = {"none": 0.0, "selective": branches, "full": branches + attentions}[mode]
        return 4 * (branches + ends) + again, 4 * (branches + ends) + again
    added = 2 * (branches + ends) + (attentions if mode == "full" else 0.0)
    return 2 * added, added


def _stages(shape: Shape, train: TrainConfig) -> Iterator[Traffic]:
    """The residual stream from stage to stage, and its gradient back."""
    parallel, batches = train.parallel, train.grad_accum_steps
    if parallel.pp == 1:
        return
    chunks = parallel.num_stages // parallel.pp
    held = train.sequences_per_process * train.seq_len / parallel.cp
    held /= parallel.tp if parallel.sequence_parallel else 1
    sent = 2 * chunks * DTYPES[train.precision].itemsize * held * shape.config.hidden_size
    yield Traffic("pp", sent, 2 * chunks * batches, parallel.pp, inside_of(parallel, "pp"), True)
