"""How many messages two processes of tensor parallel send, by torch's count: JSON on standard output."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor.debug import CommDebugMode

from lmcore.config import ModelConfig, TrainConfig
from lmcore.data.loader import Batch
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.plan.layouts import modes
from lmcore.train.loss import loss_sums

sys.path.insert(0, str(Path(__file__).parent))
from pair import run_pair

VOCAB, LENGTH = 64, 16
NAMES = {"all_gather_into_tensor": "gather", "reduce_scatter_tensor": "scatter", "all_reduce": "add up"}
DENSE = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 128,
    "max_seq_len": LENGTH,
    "activation": "swiglu",
}
KINDS = {"dense": DENSE, "mixture": {**DENSE, "moe": {"num_experts": 2, "intermediate_size": 64}}}


def setting_of(kind: str, mode: str, sequence_parallel: bool) -> tuple[ModelConfig, TrainConfig]:
    """A small model and a step of two processes."""
    train = TrainConfig(
        seq_len=LENGTH,
        micro_batch_size=1,
        global_batch_tokens=LENGTH,
        activation_checkpointing=mode,
        parallel={"dp_replicate": 1, "tp": 2, "sequence_parallel": sequence_parallel},
    )
    return ModelConfig(**KINDS[kind]), train


def name_of(kind: str, mode: str, sequence_parallel: bool) -> str:
    """Of a setting."""
    return f"{kind} {mode} {sequence_parallel}"


def _count(world: World) -> dict[str, dict[str, int]]:
    found = {}
    for setting in itertools.product(KINDS, modes(), (False, True)):
        config, train = setting_of(*setting)
        model = DividedModel(
            config,
            VOCAB,
            make_layout(train.parallel, world),
            train.precision,
            lambda name, whole: torch.randn(whole) * 0.02,
            batch_shape=(1, LENGTH),
            checkpointing=train.activation_checkpointing,
            loss_chunk_tokens=0,
        )
        tokens = torch.zeros((1, LENGTH), dtype=torch.long)
        with CommDebugMode() as counted:
            model.forward_backward(
                [Batch(tokens, tokens)],
                lambda logits, targets, shard: loss_sums(logits, targets, shard, z_loss=False)[0],
            )
        # What DTensors send: the losses' own sums are of a number a token.
        counts = {str(op).rpartition(".")[2]: n for op, n in counted.get_comm_counts().items()}
        found[name_of(*setting)] = {name: counts.get(op, 0) for op, name in NAMES.items()}
    return found


if __name__ == "__main__":
    json.dump(run_pair(_count), sys.stdout)
