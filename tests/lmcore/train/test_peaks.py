"""MFU: model FLOPs by hand, over a peak that somebody names."""

import pytest
import torch

from lmcore.config import CostsConfig, ModelConfig
from lmcore.model.transformer import Transformer
from lmcore.train import peaks
from lmcore.train.metrics import Speed
from lmcore.train.peaks import Peak, computing_type, find_peak, known_peak, measure_peak, vendor_peak

CPU = torch.device("cpu")


def test_flops_of_a_token_by_hand():
    config = ModelConfig(
        num_layers=2,
        hidden_size=8,
        num_heads=2,
        num_kv_heads=1,
        activation="swiglu",
        intermediate_size=24,
        max_seq_len=16,
    )
    with torch.device("meta"):
        model = Transformer(config, vocab_size=10)
    # Queries 8x8, keys and values 8x4 each, what comes out 8x8; three matrices of 8x24; the head 8x10.
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 24
    # 6 for each weight; 12 x layers x heads x size of a head x tokens that a token may see.
    assert model.flops_per_token(16) == 6 * (2 * layer + 8 * 10) + 12 * 2 * 2 * 4 * 16


def test_mfu_is_flops_of_the_model_over_the_peak_of_all_devices():
    speed = Speed(tokens_per_step=1000, flops_per_token=6_000_000, peak_flops=2 * 15e9)
    values = speed.values(0.5)
    assert values == {
        "perf/step_seconds": 0.5,
        "perf/tokens_per_second": 2000,
        "perf/mfu": pytest.approx(6e9 / 0.5 / 30e9),
    }
    unknown = Speed(tokens_per_step=1000, flops_per_token=1, peak_flops=None)
    assert "perf/mfu" not in unknown.values(1.0)
    assert unknown.of_run([]) == dict.fromkeys(("step_seconds", "tokens_per_second", "mfu"))


def test_the_figures_of_a_run_are_those_of_its_median_step_over_all_attempts():
    speed = Speed(tokens_per_step=1000, flops_per_token=6_000_000, peak_flops=30e9)
    seconds = [(1, 9.0), (2, 0.1), (3, 7.0), (2, 0.4), (3, 0.5)]  # 2 and 3 were done again
    rows = [{"kind": "step", "step": step, "values": speed.values(took)} for step, took in seconds]
    rows += [
        {"kind": "resume", "step": 3},
        {"kind": "end", "step": 3},
    ]  # an attempt that had no step left to do
    of_run = speed.of_run(rows)
    assert {f"perf/{name}": value for name, value in of_run.items()} == speed.values(0.5)


@pytest.mark.parametrize("few_did", [20, 100, 300])
def test_mfu_of_a_run_is_by_the_devices_that_did_its_median_step(few_did):
    many, few = (Speed(1000, 6_000_000, peak_flops=devices * 1e9) for devices in (8, 4))
    values = [many.values(1.0)] * 100 + [few.values(2.0)] * few_did
    assert {row["perf/mfu"] for row in values} == {0.75}
    rows = [{"kind": "step", "step": step, "values": row} for step, row in enumerate(values, start=1)]
    took = 2.0 if few_did > 100 else 1.0  # of two in the middle the faster one, not their mean
    assert Speed.of_run(rows) == {"step_seconds": took, "tokens_per_second": 1000 / took, "mfu": 0.75}


@pytest.mark.parametrize(
    ("name", "kind", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "16-bit", 312),
        ("NVIDIA A100-SXM4-80GB", "8-bit", None),
        ("NVIDIA H100 80GB HBM3", "16-bit", 989),
        ("NVIDIA H100 80GB HBM3", "8-bit", 1979),
        ("NVIDIA H100 PCIe", "16-bit", 756),
        ("NVIDIA H100 NVL", "16-bit", 835),
        ("NVIDIA H200", "FP32", 67),
        ("NVIDIA GH200 480GB", "16-bit", 989),
        ("NVIDIA L4", "16-bit", 121),
        ("NVIDIA L40S", "16-bit", 362),
        ("NVIDIA A10", "16-bit", 125),
        ("NVIDIA A10G", "16-bit", None),  # another chip: it is measured
        ("", "16-bit", None),
    ],
)
def test_a_name_is_found_as_a_word_of_its_own(name, kind, tflops):
    peak = vendor_peak(name, kind)
    assert (None if peak is None else peak.flops) == (None if tflops is None else tflops * 1e12)


def test_the_peak_is_that_of_the_type_of_computing():
    assert [computing_type(p) for p in ("fp32", "bf16", "fp16", "fp8")] == [
        "FP32",
        "16-bit",
        "16-bit",
        "8-bit",
    ]


def test_what_is_known_without_the_device_is_the_settings_peak_or_the_vendors():
    told = known_peak(CostsConfig(peak_tflops=0.25), "H100", "fp8")
    assert (told.flops, told.source) == (0.25e12, "train.costs.peak_tflops")
    assert known_peak(CostsConfig(), "H100", "fp8") == vendor_peak("H100", "8-bit")
    assert known_peak(CostsConfig(), "A100", "fp8") is None


def test_a_cpu_is_measured_unless_the_settings_say_otherwise():
    measured = find_peak(CostsConfig(), CPU, "fp32")
    assert measured.flops > 1e8
    assert "measured" in measured.source
    assert "float32" in measured.source
    assert find_peak(CostsConfig(measure_peak="never"), CPU, "fp32") is None
    told = find_peak(CostsConfig(peak_tflops=0.25, measure_peak="always"), CPU, "fp32")
    assert (told.flops, told.source) == (0.25e12, "train.costs.peak_tflops")


def test_a_step_that_is_faster_than_a_measured_peak_raises_it():
    seen = []

    def better(flops):
        seen.append(flops)
        return 80e9

    speed = Speed(tokens_per_step=1000, flops_per_token=6_000_000, peak_flops=30e9, on_faster=better)
    assert speed.values(0.5)["perf/mfu"] == 0.4
    assert speed.values(0.1)["perf/mfu"] == 60 / 80
    assert speed.values(0.5)["perf/mfu"] == 12 / 80
    assert seen == [60e9]
    figures = {"step_seconds": 0.5, "tokens_per_second": 2000.0, "mfu": 0.4}
    assert speed.by_the_last_peak(figures) == {**figures, "mfu": 12 / 80}


def test_a_step_that_is_faster_than_a_peak_that_stays_has_no_mfu():
    speed = Speed(tokens_per_step=1000, flops_per_token=6_000_000, peak_flops=30e9)
    assert "perf/mfu" not in speed.values(0.1)
    assert speed.values(0.5)["perf/mfu"] == 0.4


@pytest.mark.parametrize("anew", [True, False])
def test_no_peak_is_below_what_was_seen(anew):
    low = Peak(1e6, "measured", is_measured=True)
    best = measure_peak(CPU, torch.float32).flops
    for seen in (2e6, 1e3 * best):
        raised = low.raised(seen, CPU, torch.float32, anew=anew)
        assert raised.flops >= seen
        assert raised.is_measured
    assert low.raised(2e6, CPU, torch.float32, anew=True).flops > 100 * 2e6  # by a product, not by the step
    assert Peak(1e6, "train.costs.peak_tflops").raised(2e6, CPU, torch.float32, anew=anew) is None


def test_a_small_product_that_was_interrupted_does_not_end_the_search(monkeypatch):
    def slow_at_first(left, right):
        size = left.shape[0]
        return 0.006 if size == 256 else 2 * size**3 / 1e11

    monkeypatch.setattr(peaks, "_product_seconds", slow_at_first)
    monkeypatch.setattr(peaks, "_MAX_SECONDS", 1e9)
    assert measure_peak(CPU, torch.float32).flops == pytest.approx(1e11)


def test_mfu_of_a_run_is_never_above_one_though_the_peak_was_measured_too_low(
    make_run, train_here, monkeypatch
):
    monkeypatch.setattr(
        "lmcore.train.trainer.find_peak", lambda *_: Peak(1e3, "a busy machine", is_measured=True)
    )
    run = make_run(steps=6)
    result = train_here(run)
    assert 0 < result["mfu"] <= 1
    assert max(run.values("perf/mfu").values()) <= 1
    assert result["peak_tflops"] * 1e12 > 1e3


def test_a_peak_of_the_settings_that_is_too_low_is_told_and_gives_no_mfu(make_run, train_here, capsys):
    result = train_here(make_run(steps=3, costs={"peak_tflops": 1e-9}))
    assert result["mfu"] is None
    assert capsys.readouterr().out.count("more than the 1e-09 of train.costs.peak_tflops") == 1
