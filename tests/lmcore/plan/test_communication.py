"""What is sent is what the field's formulas say."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmcore.config import ModelConfig, TrainConfig
from lmcore.plan.communication import traffic_of
from lmcore.plan.hardware import GPUS, Cluster
from lmcore.plan.layouts import modes
from lmcore.plan.shape import shape_of

sys.path.insert(0, str(Path(__file__).parent))
from count_messages import VOCAB, name_of, setting_of

WIDTH, LAYERS, LENGTH, BATCH = 256, 4, 128, 16
MODEL = ModelConfig(
    num_layers=LAYERS,
    hidden_size=WIDTH,
    num_heads=8,
    num_kv_heads=4,
    intermediate_size=512,
    max_seq_len=LENGTH,
    activation="swiglu",
)
MIXTURE = MODEL.model_copy(
    update={"moe": MODEL.moe.model_copy(update={"num_experts": 8, "num_experts_per_token": 2})}
)
SHAPE = shape_of(MODEL, 512)
TOKENS = BATCH * LENGTH


def sent(shape=SHAPE, micro_batch_size=1, mode="none", **parallel):
    train = TrainConfig(
        seq_len=LENGTH,
        global_batch_tokens=TOKENS,
        micro_batch_size=micro_batch_size,
        precision="bf16",
        activation_checkpointing=mode,
        parallel={"dp_replicate": 1, **parallel},
    )
    return {one.axis: one.bytes for one in traffic_of(shape, train)}


def test_one_process_sends_nothing():
    assert sent() == {}


@pytest.mark.parametrize("n", [2, 4, 8])
def test_replicas_add_up_all_gradients(n):
    """All-reduce: 2 (n - 1) / n of them, in fp32, once a step."""
    expected = 2 * (n - 1) / n * 4 * SHAPE.total
    assert sent(dp_replicate=n) == {"replicas": pytest.approx(expected)}
    assert sent(dp_replicate=n, micro_batch_size=16 // n) == sent(dp_replicate=n)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_shards_gather_twice_and_scatter_once(n):
    """ZeRO-3 (Rajbhandari et al. 2020): two gathers in 16 bits, what is at both ends once, sums in fp32."""
    batches = BATCH // n
    ends = SHAPE.total - SHAPE.in_blocks
    expected = (n - 1) / n * batches * (2 * (2 * SHAPE.in_blocks + ends) + 4 * SHAPE.total)
    assert sent(dp_shard=n)["fsdp"] == pytest.approx(expected)
    assert sent(dp_shard=n, micro_batch_size=batches)["fsdp"] == pytest.approx(expected / batches)


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_tensor_parallel_sends_the_stream_four_times_a_branch(tp, sequence_parallel):
    """A gather and a scatter for each of two branches, forward and backward (Korthikanti et al. 2022)."""
    # The embedding and the head together are as one branch more.
    expected = (2 * LAYERS + 1) * 4 * (tp - 1) / tp * 2 * TOKENS * WIDTH
    assert sent(tp=tp, sequence_parallel=sequence_parallel)["tp"] == pytest.approx(expected)


@functools.cache
def counted():
    """What two processes really send, in a process of its own: ``count_messages``."""
    script = Path(__file__).with_name("count_messages.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if not done.returncode else done.stderr


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dense", "mixture"])
@pytest.mark.parametrize("mode", modes())
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_tensor_parallel_sends_as_many_messages_as_torch_counts(kind, mode, sequence_parallel):
    config, train = setting_of(kind, mode, sequence_parallel)
    (predicted,) = (one for one in traffic_of(shape_of(config, VOCAB), train) if one.axis == "tp")
    counts = counted()
    assert isinstance(counts, dict), counts
    found = counts[name_of(kind, mode, sequence_parallel)]
    assert predicted.messages == sum(found.values())
    # Of two processes a gather or a scatter sends half of the stream, and adding up does both.
    one_way = found["gather"] + found["scatter"] + 2 * found["add up"]
    stream = 4 * train.micro_batch_size * train.seq_len * config.hidden_size
    assert predicted.bytes == one_way * stream / 2


@pytest.mark.parametrize("cp", [2, 4])
def test_context_parallel_sends_keys_and_values_to_all_others(cp):
    keys = 2 * (TOKENS / cp) * 4 * (WIDTH // 8) * 2
    assert sent(cp=cp)["cp"] == pytest.approx(2 * LAYERS * (cp - 1) * keys)


def test_stages_send_the_stream_on_and_its_gradient_back():
    assert sent(pp=2)["pp"] == 2 * 2 * TOKENS * WIDTH
    twice = {"pipeline_schedule": "interleaved_1f1b", "stages_per_process": 2}
    assert sent(pp=2, **twice)["pp"] == 2 * sent(pp=2)["pp"]


def test_experts_get_and_give_back_every_visit():
    shape = shape_of(MIXTURE, 512)
    expected = LAYERS * 2 * 2 * 2 * (TOKENS / 4 * WIDTH * 2) * 3 / 4
    assert sent(shape, dp_shard=4, ep=4)["ep"] == pytest.approx(expected)


def test_groups_within_a_node_use_its_links_and_others_all_its_cards():
    cluster = Cluster(GPUS["H100"], 64)
    assert cluster.bandwidth(8, 1) == 450e9
    assert cluster.bandwidth(64, 1) == 400e9  # eight cards of 50 GB/s
    assert cluster.bandwidth(8, 8) == 50e9  # one process in each node
    assert cluster.bandwidth(16, 4) == 100e9
    assert [cluster.num_nodes(*group) for group in ((8, 1), (64, 1), (8, 8), (2, 4))] == [1, 8, 8, 1]
