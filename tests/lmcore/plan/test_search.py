"""The layout to take is valid, fits, and is the fastest that does; what cannot be is refused."""

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import CostsConfig, ModelConfig, ParallelConfig, TrainConfig, parse
from lmcore.errors import ConfigError
from lmcore.layout import find_misfit
from lmcore.plan.estimate import Rates, estimate
from lmcore.plan.hardware import GB, GPUS, Cluster, find_gpu
from lmcore.plan.layouts import layouts_of
from lmcore.plan.memory import memory_of
from lmcore.plan.request import answer
from lmcore.plan.search import Wanted, make_plan
from lmcore.plan.shape import shape_of

MODEL = ModelConfig(
    num_layers=16,
    hidden_size=2048,
    num_heads=16,
    num_kv_heads=4,
    intermediate_size=8192,
    max_seq_len=2048,
    activation="swiglu",
)
SHAPE = shape_of(MODEL, 32_768)
TRAIN = TrainConfig(
    steps=1000,
    seq_len=2048,
    global_batch_tokens=2048 * 256,
    precision="bf16",
    optimizer={"name": "adamw"},
    parallel={"dp_replicate": 1},
)


def wanted(gpus=16, gb=80.0, **changes):
    return replace(Wanted(SHAPE, TRAIN, Cluster(GPUS["H100"], gpus, memory_bytes=gb * GB)), **changes)


@pytest.mark.parametrize(("gpus", "gb"), [(1, 80), (8, 80), (16, 12), (64, 8), (256, 80)])
def test_the_layout_to_take_is_valid_and_fits(gpus, gb):
    plan = make_plan(wanted(gpus, gb))
    best = plan.choices[0]
    train = best.estimate.train
    assert find_misfit(MODEL, train) == ""
    parse(TrainConfig, train.model_dump(), where="it")
    assert train.parallel.num_processes == gpus
    assert best.fits
    assert best.estimate.memory.total <= gb * GB * 0.9
    assert (train.global_batch_tokens, train.seq_len) == (TRAIN.global_batch_tokens, TRAIN.seq_len)


def test_none_that_fits_is_much_faster():
    one = wanted(16, 16)
    plan = make_plan(one)
    best = plan.choices[0].estimate
    rest = [train for train in layouts_of(MODEL, TRAIN, 16, 8) if memory_of(SHAPE, train).total <= one.room]
    fastest = min(estimate(SHAPE, train, one.cluster, one.rates).time.total for train in rest)
    assert best.time.total <= fastest * 1.03 + 1e-9
    assert plan.num_layouts >= len(rest) > 10


@given(st.sampled_from([1, 2, 4, 6, 8, 12, 16, 24, 64, 128]), st.sampled_from([4, 8]))
@settings(max_examples=15, deadline=None)
def test_every_layout_divides_the_model_and_the_batch(gpus, each):
    found = list(layouts_of(MODEL, TRAIN, gpus, each))
    for train in found[:: max(1, len(found) // 20)]:
        assert train.parallel.num_processes == gpus
        assert train.parallel.tp <= each
        assert find_misfit(MODEL, train) == ""
        parse(TrainConfig, train.model_dump(), where="it")


def test_more_gpus_are_never_slower_for_the_same_batch():
    seconds = [make_plan(wanted(gpus)).choices[0].estimate.time.total for gpus in (8, 16, 32, 64, 128)]
    assert seconds == sorted(seconds, reverse=True)


def test_more_memory_is_never_slower():
    seconds = [make_plan(wanted(16, gb)).choices[0].estimate.time.total for gb in (10, 16, 24, 80)]
    # Nearly: of layouts within 3% the simplest is taken.
    assert all(later <= 1.031 * earlier for earlier, later in itertools.pairwise(seconds))


def test_the_others_say_why_they_are_not_taken():
    own = TRAIN.model_copy(
        update={"parallel": ParallelConfig(dp_replicate=1, tp=4, pp=4), "micro_batch_size": 1}
    )
    plan = make_plan(wanted(16, 16, train=own))
    best, *others = plan.choices
    assert "fastest of" in best.why
    assert len(others) >= 3
    assert all(
        re.search(r"slower: .* m?s instead of|as fast|does not fit: \d+ GB", one.why) for one in others
    )
    assert others[-1].why.startswith("the recipe's own: ")
    for one in others:
        assert one.fits == (one.estimate.memory.total <= 16 * GB * 0.9)


def test_energy_days_and_money():
    cluster = Cluster(GPUS["H100"], 8)
    train = TRAIN.model_copy(update={"parallel": ParallelConfig(dp_replicate=1, dp_shard=8)})
    rates = Rates(per_gpu_hour=2.0, per_kwh=0.1, grams_co2_per_kwh=400, overhead=1.5)
    one = estimate(SHAPE, train, cluster, rates)
    hours = TRAIN.steps * one.time.total / 3600
    assert one.days == pytest.approx(hours / 24)
    assert one.kwh == pytest.approx(hours * 10.2 * 1.5)  # of a node of 10.2 kW
    assert one.cost == pytest.approx(hours * 8 * 2.0 + one.kwh * 0.1)
    assert one.kg_co2 == pytest.approx(one.kwh * 0.4)
    tokens = TRAIN.global_batch_tokens / one.time.total
    assert one.mfu == pytest.approx(SHAPE.flops_per_token(2048) * tokens / (8 * 989e12))
    for precision, tflops in (("fp32", 67), ("fp16", 989), ("fp8", 1979)):
        other = estimate(SHAPE, train.model_copy(update={"precision": precision}), cluster, rates)
        flops = SHAPE.flops_per_token(2048) * TRAIN.global_batch_tokens / other.time.total
        assert other.mfu == pytest.approx(flops / (8 * tflops * 1e12))
    fp8 = TRAIN.model_copy(update={"precision": "fp8"})
    peak = GPUS["A100"].peak(fp8)  # it has no products of eight bits
    assert (peak.flops, peak.source) == (312e12, "the vendor's figure for A100, 16-bit")
    said = train.model_copy(update={"costs": CostsConfig(peak_tflops=500)})
    of_said = estimate(SHAPE, said, cluster, rates)
    assert of_said.mfu == pytest.approx(one.mfu * 989 / 500)
    assert of_said.time == one.time, "a peak that MFU is a share of makes nothing faster"
    unsaid = estimate(SHAPE, train, cluster, Rates())
    assert (unsaid.cost, unsaid.kg_co2) == (None, None)


def test_a_mixture_may_divide_its_experts():
    model = MODEL.model_copy(
        update={"moe": MODEL.moe.model_copy(update={"num_experts": 16, "intermediate_size": 1024})}
    )
    plan = make_plan(wanted(16, 24, shape=shape_of(model, 32_768)))
    assert find_misfit(model, plan.choices[0].estimate.train) == ""
    assert any(train.parallel.ep > 1 for train in layouts_of(model, TRAIN, 16, 8))


def test_a_micro_batch_that_is_to_be_found_is_the_largest_that_fits():
    own = TRAIN.model_copy(
        update={"parallel": ParallelConfig(dp_replicate=1, tp=4, pp=4), "micro_batch_size": 0}
    )
    one = wanted(16, 8, train=own)
    mine = make_plan(one).choices[-1]
    assert mine.why.startswith("the recipe's own")
    size = mine.estimate.train.micro_batch_size
    more = own.model_copy(update={"micro_batch_size": 2 * size})
    assert mine.fits
    assert memory_of(SHAPE, more).total > one.room


def test_a_batch_to_be_found_is_planned_as_any():
    values = {"model": MODEL.model_dump(), "vocab_size": 32_768, "gpus": 8, "gpu_memory": 80}
    found = [
        answer({**values, "train": TRAIN.model_copy(update={"micro_batch_size": size}).model_dump()})
        for size in (0, 1)
    ]
    assert found[0]["layouts"][0] == found[1]["layouts"][0]


def test_flex_attention_by_name_is_planned_only_where_a_run_would_have_it():
    own = TRAIN.model_copy(update={"attention": "flex", "document_mask": True})
    for train in layouts_of(MODEL, own, 16, 8):
        assert train.parallel.cp == 1
        assert train.activation_checkpointing != "selective" or train.parallel.tp == 1  # compiled


# --- refusals --------------------------------------------------------------------------------------


def test_a_number_that_nothing_divides_is_refused_with_those_beside_it():
    with pytest.raises(ConfigError, match=r"no layout divides .* over 17 GPUs") as caught:
        make_plan(wanted(17))
    for number in map(int, re.findall(r"--gpus (\d+) or (\d+)", str(caught.value))[0]):
        assert next(layouts_of(MODEL, TRAIN, number, 8), None) is not None


def test_what_does_not_fit_says_how_much_is_missing_and_how_many_would_do():
    small = wanted(1, 6)
    with pytest.raises(ConfigError, match=r"nothing fits on 1 GPUs of 6\.0 GB: expected [\d.]+ GB") as caught:
        make_plan(small)
    enough = int(re.search(r"--gpus (\d+) or more", str(caught.value))[1])
    assert make_plan(wanted(enough, 6)).choices[0].fits
    for fewer in range(2, enough):
        with pytest.raises(ConfigError):
            make_plan(wanted(fewer, 6))


def test_attention_that_is_no_gpus_is_refused():
    asked = wanted(8)
    asked = replace(asked, train=asked.train.model_copy(update={"attention": "products"}))
    with pytest.raises(ConfigError, match=r"products is for CPUs.*train\.attention=auto"):
        make_plan(asked)


def test_what_fits_nowhere_says_so():
    with pytest.raises(ConfigError, match="No number of such GPUs would do with this batch, or GPUs of"):
        make_plan(wanted(8, 0.2))


@pytest.mark.parametrize("name", ["H100", "h100", "NVIDIA H100 80GB HBM3", "nvidia-h100-x1"])
def test_a_gpu_is_known_by_any_of_its_names(name):
    assert find_gpu(name) is GPUS["H100"]


@pytest.mark.parametrize(("name", "near"), [("H1000", "H100"), ("A10", "A100"), ("V9", "most like")])
def test_an_unknown_gpu_is_refused_with_the_nearest(name, near):
    with pytest.raises(ConfigError, match="one of A100, H100, H200, B200") as caught:
        find_gpu(name)
    assert near in str(caught.value)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=str)
def test_every_gpu_has_its_source_and_plausible_numbers(gpu):
    assert "data sheet" in gpu.source
    assert 0.3 < gpu.attention < 0.8
    assert gpu.memory_bytes_per_second > gpu.link_bytes_per_second > gpu.network_bytes_per_second
    assert gpu.watts < gpu.node_watts < 2.1 * gpu.watts
