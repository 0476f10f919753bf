"""Predicted memory is what torch's tracker measures of the real code, and behaves as memory does."""

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import ModelConfig, OptimizerConfig, TrainConfig
from lmcore.model.backends import document_blocks
from lmcore.plan.kernels import has_mask
from lmcore.plan.layouts import modes
from lmcore.plan.memory import memory_of
from lmcore.plan.shape import shape_of

sys.path.insert(0, str(Path(__file__).parent))
from measure import measured_peak

TOLERANCE = 0.10
LLAMA = {
    "num_layers": 3,
    "hidden_size": 64,
    "num_heads": 2,
    "num_kv_heads": 2,
    "intermediate_size": 256,
    "activation": "swiglu",
    "qk_norm": False,
    "tie_embeddings": False,
    "max_seq_len": 64,
}
GPT2 = {
    **LLAMA,
    "activation": "gelu",
    "norm": "layernorm",
    "position": "learned",
    "bias": True,
    "tie_embeddings": True,
}
SHARED_HEADS = {**LLAMA, "num_kv_heads": 1, "qk_norm": True, "activation": "relu2", "tie_embeddings": True}
MIXTURE = {**LLAMA, "moe": {"num_experts": 4, "num_experts_per_token": 2}}
CASES = {
    "activations": (LLAMA, 64, 8, {}),
    "activations, computed again": (LLAMA, 64, 8, {"activation_checkpointing": "full"}),
    "activations in bf16": (LLAMA, 64, 8, {"precision": "bf16"}),
    "gpt2, tied": (GPT2, 64, 8, {}),
    "gpt2, tied, in bf16, again": (GPT2, 64, 8, {"precision": "bf16", "activation_checkpointing": "full"}),
    "heads that are shared, tied": (SHARED_HEADS, 64, 8, {}),
    "logits": (LLAMA, 2048, 4, {}),
    "logits, tied, in bf16": ({**LLAMA, "tie_embeddings": True}, 2048, 4, {"precision": "bf16"}),
    "logits by chunks": (LLAMA, 2048, 8, {"loss_chunk_tokens": 128}),
    "logits by chunks, shards in bf16": (
        LLAMA,
        2048,
        8,
        {"loss_chunk_tokens": 128, "precision": "bf16", "parallel": {"dp_shard": 4}},
    ),
    "selective": (LLAMA, 64, 8, {"activation_checkpointing": "selective"}),
    "selective, shards in bf16": (
        LLAMA,
        64,
        8,
        {"activation_checkpointing": "selective", "precision": "bf16", "parallel": {"dp_shard": 4}},
    ),
    "shards": (LLAMA, 64, 8, {"precision": "bf16", "parallel": {"dp_shard": 4}}),
    "shards that add up": (LLAMA, 64, 1, {"precision": "bf16", "parallel": {"dp_shard": 4}, "batches": 2}),
    "replicas of shards": (LLAMA, 64, 8, {"parallel": {"dp_replicate": 2, "dp_shard": 2}}),
    "matrices divided": (LLAMA, 1024, 8, {"precision": "bf16", "parallel": {"tp": 2, "dp_shard": 2}}),
    "sequences divided": (LLAMA, 64, 4, {"precision": "bf16", "parallel": {"cp": 2, "dp_shard": 2}}),
    "experts": (MIXTURE, 64, 8, {"precision": "bf16", "parallel": {"dp_shard": 2}}),
    "muon": (LLAMA, 64, 1, {"optimizer": {"name": "muon"}}),
    "muon of shards": (LLAMA, 64, 1, {"optimizer": {"name": "muon"}, "parallel": {"dp_shard": 4}}),
    "sgd": (LLAMA, 64, 1, {"optimizer": {"name": "sgd"}}),
}
REPLICAS = {
    "replicas": (LLAMA, 64, 8, {"parallel": {"dp_replicate": 2}}),
    "replicas that add up": (LLAMA, 64, 1, {"parallel": {"dp_replicate": 2}, "batches": 2}),
    "replicas in bf16, again": (
        LLAMA,
        64,
        8,
        {"parallel": {"dp_replicate": 2}, "precision": "bf16", "activation_checkpointing": "full"},
    ),
    "replicas, logits, tied": ({**LLAMA, "tie_embeddings": True}, 2048, 4, {"parallel": {"dp_replicate": 2}}),
}


def train_config(micro_batch_size=1, seq_len=64, batches=1, parallel=None, **values):
    parallel = {"dp_replicate": 1, **(parallel or {})}
    dp = parallel["dp_replicate"] * parallel.get("dp_shard", 1)
    values = {"optimizer": {"name": "adamw"}, "loss_chunk_tokens": 0, **values}
    return TrainConfig(
        seq_len=seq_len,
        micro_batch_size=micro_batch_size,
        global_batch_tokens=seq_len * micro_batch_size * batches * dp,
        parallel=parallel,
        **values,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Set timeout is now only supported")
def test_it_is_what_torch_measures(case):
    model, vocab_size, micro_batch_size, values = CASES[case]
    config, train = ModelConfig(**model), train_config(micro_batch_size, **values)
    predicted = memory_of(shape_of(config, vocab_size), train, "cpu")
    measured = measured_peak(config, vocab_size, train)
    assert predicted.total == pytest.approx(measured, rel=TOLERANCE), predicted


@functools.cache
def measured_replicas():
    """In processes of their own: ``measure_replicas``."""
    script = Path(__file__).with_name("measure_replicas.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if not done.returncode else done.stderr


@pytest.mark.long
@pytest.mark.parametrize("case", REPLICAS)
def test_replicas_need_what_torch_measures_of_two(case):
    model, vocab_size, micro_batch_size, values = REPLICAS[case]
    config, train = ModelConfig(**model), train_config(micro_batch_size, **values)
    predicted = memory_of(shape_of(config, vocab_size), train, "cpu")
    measured = measured_replicas()
    assert isinstance(measured, dict), measured
    assert predicted.total == pytest.approx(measured[case], rel=TOLERANCE), predicted


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize(("micro_batch_size", "mode"), [(1, "none"), (8, "none"), (1, "full"), (8, "full")])
@pytest.mark.filterwarnings("ignore:Set timeout is now only supported")
def test_what_is_freed_early_on_gpus_is_what_torch_measures(micro_batch_size, mode, batches):
    config = ModelConfig(**LLAMA)
    train = train_config(
        micro_batch_size,
        batches=batches,
        precision="bf16",
        activation_checkpointing=mode,
        parallel={"dp_shard": 4},
    )
    predicted = memory_of(shape_of(config, 64), train, "cpu", frees_early=True)
    measured = measured_peak(config, 64, train, frees_early=True)
    assert predicted.total == pytest.approx(measured, rel=TOLERANCE), predicted


MODEL = ModelConfig(num_layers=8, hidden_size=512, num_heads=8, num_kv_heads=4, max_seq_len=512)
SHAPE = shape_of(MODEL, 4096)


def memory(**values):
    values = {"micro_batch_size": 2, "seq_len": 512, "precision": "bf16", **values}
    return memory_of(SHAPE, train_config(**values)).total


@pytest.mark.parametrize("mode", modes())
def test_more_shards_need_less(mode):
    sizes = [memory(parallel={"dp_shard": n}, activation_checkpointing=mode) for n in (2, 4, 8, 16)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from([2, 4, 8]))
@settings(max_examples=20, deadline=None)
def test_cutting_matrices_and_blocks_needs_less_of_states(tp, pp, shards):
    def states(**parallel):
        found = memory_of(
            SHAPE,
            train_config(1, 512, 8, precision="bf16", parallel={"dp_shard": shards, **parallel}),
        )
        return found.parameters + found.optimizer

    assert states(tp=2 * tp) < states(tp=tp)
    assert states(pp=2 * pp) < states(pp=pp)


@pytest.mark.parametrize("length", [256, 500])
def test_documents_by_blocks_need_their_blocks_alone(length):
    """Of the keys that heads share nothing is repeated, and there is no mask of pairs."""
    model = MODEL.model_copy(update={"max_seq_len": length})
    train = train_config(2, length, precision="bf16")
    plain, documents = (
        memory_of(shape_of(model, 4096), train.model_copy(update={"document_mask": masked}))
        for masked in (False, True)
    )
    blocks = document_blocks(torch.zeros(2, length, dtype=torch.long))
    made = sum(part.nbytes for part in blocks.as_tuple() if isinstance(part, torch.Tensor))
    assert documents.total - plain.total == made
    assert documents.activations == plain.activations


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False),
        ({"document_mask": True}, False),
        ({"document_mask": True, "attention": "flex"}, False),
        ({"document_mask": True, "attention": "cudnn"}, True),
        ({"document_mask": True, "activation_checkpointing": "full", "compile": "off"}, False),
        ({"document_mask": True, "activation_checkpointing": "selective", "steps": 1000}, False),
        ({"document_mask": True, "activation_checkpointing": "selective", "compile": "off"}, True),
        ({"parallel": {"cp": 2}}, True),
        ({"document_mask": True, "parallel": {"cp": 2}}, True),
    ],
)
def test_there_is_a_mask_of_all_pairs_where_a_run_would_choose_one(values, expected):
    train = train_config(**values)
    assert has_mask(MODEL, train) is expected
    assert has_mask(MODEL, train, "cpu") is (train.document_mask or train.parallel.cp > 1)


def test_computing_again_needs_less_and_nothing_else_changes():
    full, none = (
        memory_of(SHAPE, train_config(8, 512, activation_checkpointing=mode, precision="bf16"))
        for mode in ("full", "none")
    )
    assert full.total < none.total
    assert (full.parameters, full.optimizer, full.buffers) == (none.parameters, none.optimizer, none.buffers)


def test_a_longer_pipeline_holds_more_batches_but_not_more_than_there_are():
    def held(batches, schedule):
        parallel = {"pp": 4, "pipeline_schedule": schedule}
        return memory(batches=batches, parallel=parallel)

    assert held(8, "gpipe") > held(4, "gpipe")
    assert held(8, "1f1b") == pytest.approx(held(16, "1f1b"))


@pytest.mark.parametrize(
    ("name", "each"), [("adamw", 8), ("adam", 8), ("sgd", 4), ("adafactor", 0), ("muon", 4)]
)
def test_the_state_of_each_optimizer(name, each):
    optimizer = OptimizerConfig(name=name)
    state = memory_of(SHAPE, train_config(optimizer=optimizer.model_dump())).optimizer
    tables = 8 * (SHAPE.total - SHAPE.in_blocks) if name == "muon" else 0
    numbers = SHAPE.in_blocks if name == "muon" else SHAPE.total
    assert math.isclose(state, each * numbers + tables, rel_tol=0.02)
    averaged = train_config(optimizer=optimizer.model_dump(), ema_decay=0.9)
    assert memory_of(SHAPE, averaged).optimizer - state == 4 * SHAPE.total
