"""Predicted speed stands near what was published, and moves as speed does."""

import dataclasses
import statistics
import sys
from pathlib import Path

import pytest

from lmcore.config import ModelConfig, TrainConfig
from lmcore.plan.hardware import GPUS, Cluster
from lmcore.plan.shape import shape_of
from lmcore.plan.time import Efficiency, step_time

sys.path.insert(0, str(Path(__file__).parent))
from published import RUNS

WORST, MEAN = 0.25, 0.10  # stated in decision 0019
MODEL = ModelConfig(
    num_layers=16,
    hidden_size=2048,
    num_heads=16,
    num_kv_heads=8,
    intermediate_size=8192,
    max_seq_len=4096,
    activation="swiglu",
)
SHAPE = shape_of(MODEL, 32_768)


def seconds(gpus=8, gpu="H100", batch=64, efficiency=None, **values):
    parallel = {"dp_replicate": 1, **values.pop("parallel", {})}
    train = TrainConfig(
        **{
            "seq_len": 4096,
            "global_batch_tokens": 4096 * batch,
            "micro_batch_size": 1,
            "precision": "bf16",
            "optimizer": {"name": "adamw"},
            **values,
            "parallel": parallel,
        }
    )
    return step_time(SHAPE, train, Cluster(GPUS[gpu], gpus), efficiency=efficiency)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_published_run_is_predicted(run):
    assert run.predicted == pytest.approx(run.published, rel=WORST)


def test_predictions_are_near_on_average_where_nothing_was_fitted():
    errors = [abs(run.predicted / run.published - 1) for run in RUNS if not run.fitted]
    assert len(errors) > 20
    assert statistics.mean(errors) < MEAN


def test_what_is_computed_is_what_the_model_counts():
    """At full efficiency products and attention take the operations of MFU, less attention's hidden half."""
    ideal = Efficiency(product=1, product_depth=0, memory=1e9, eager=0)
    gpu = dataclasses.replace(GPUS["H100"], attention=1.0)
    train = TrainConfig(
        seq_len=4096,
        global_batch_tokens=4096 * 8,
        micro_batch_size=8,
        precision="bf16",
        parallel={"dp_replicate": 1},
    )
    time = step_time(SHAPE, train, Cluster(gpu, 1), efficiency=ideal)
    tokens = train.global_batch_tokens
    assert time.products * gpu.flops_16 / tokens == pytest.approx(SHAPE.flops_per_token(0))
    attention = SHAPE.flops_per_token(4096) - SHAPE.flops_per_token(0)
    # Half is hidden by the causal mask; going back takes five products for the four that are counted.
    assert time.attention * gpu.flops_16 / tokens == pytest.approx(attention / 2 * 3.5 / 3)


@pytest.mark.parametrize("axis", ["dp_replicate", "dp_shard"])
def test_more_gpus_are_never_slower_for_the_same_batch(axis):
    found = [seconds(gpus, parallel={axis: gpus}).total for gpus in (8, 16, 32, 64)]
    assert found == sorted(found, reverse=True)


def test_better_gpus_are_faster():
    speeds = [seconds(gpu=name, parallel={"dp_shard": 8}).total for name in ("A100", "H100", "H200", "B200")]
    assert speeds == sorted(speeds, reverse=True)


def test_less_power_and_slower_links_are_slower():
    train = TrainConfig(
        seq_len=4096,
        global_batch_tokens=4096 * 64,
        micro_batch_size=1,
        precision="bf16",
        parallel={"dp_replicate": 1, "tp": 8, "dp_shard": 2},
    )
    usual = Cluster(GPUS["H100"], 16)
    for change in ({"power_watts": 400}, {"link_bytes_per_second": 50e9}, {"network_bytes_per_second": 1e9}):
        slower = step_time(SHAPE, train, dataclasses.replace(usual, **change))
        assert slower.total > step_time(SHAPE, train, usual).total


def test_computing_again_and_idle_stages_cost_time():
    none = seconds(parallel={"dp_shard": 8})
    full = seconds(parallel={"dp_shard": 8}, activation_checkpointing="full")
    assert 1.25 < full.products / none.products < 1.34
    piped = {"pp": 4, "dp_shard": 2}
    plain = seconds(parallel=piped)
    assert plain.bubble / (plain.total - plain.bubble) == pytest.approx(3 / 32, rel=0.1)
    interleaved = seconds(
        parallel={**piped, "pipeline_schedule": "interleaved_1f1b", "stages_per_process": 2}
    )
    assert interleaved.bubble == pytest.approx(plain.bubble / 2, rel=0.1)


def test_documents_cost_nothing_where_they_are_kept_apart_by_blocks():
    """And a mask of all pairs has all of them computed."""
    plain = seconds(parallel={"dp_shard": 8})
    assert seconds(parallel={"dp_shard": 8}, document_mask=True) == plain
    dense = seconds(parallel={"dp_shard": 8}, document_mask=True, attention="sdpa")
    assert dense.attention == pytest.approx(2 * plain.attention)


def test_every_part_of_a_step_is_counted_once():
    time = seconds(parallel={"dp_shard": 2, "tp": 4})
    parts = time.products + time.attention + time.memory + time.optimizer + time.bubble
    assert time.total == pytest.approx(parts + sum(time.exposed.values()))
    assert set(time.exposed) == {"fsdp", "tp"}
    assert min(time.exposed.values()) > 0
