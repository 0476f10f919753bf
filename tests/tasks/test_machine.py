"""Figures of the machine: MLflow's names, and none that takes others along."""

import json
import time
from types import SimpleNamespace

from lmcore.home import Home
from tasks import runs
from tasks.machine import FILE, Machine, _readers_of, sampled
from tasks.tracking import Tracker


def test_figures_have_the_names_of_mlflow_s_tab(tmp_path):
    found = Machine(tmp_path).read()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= found.keys()
    assert found["system/disk_available_megabytes"] > 0


def test_a_figure_that_a_gpu_has_not_takes_no_other_along(tmp_path):
    def refuse(gpu):
        raise RuntimeError("not supported")

    nvml = SimpleNamespace(
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=2_000_000, total=8_000_000),
        nvmlDeviceGetPowerUsage=refuse,
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=50),
        nvmlDeviceGetEnforcedPowerLimit=refuse,
    )
    machine = Machine(tmp_path)
    machine._readers |= _readers_of(nvml, None, "gpu_0")
    found = machine.read()
    assert found["system/gpu_0_utilization_percentage"] == 50
    assert found["system/gpu_0_memory_usage_percentage"] == 25
    assert "system/gpu_0_power_usage_watts" not in found
    assert "system/cpu_utilization_percentage" in found


def test_a_run_of_any_length_has_them_in_mlflow(tmp_path):
    home = Home(tmp_path / "home")
    run_dir = home.runs / "train-a"
    record = runs.open_run(run_dir, name="a", kind="train", experiment="test")
    for _ in range(2):  # an attempt, and another one
        with sampled(run_dir, record.started - 5):
            pass
        time.sleep(1.1)
    steps = [json.loads(line)["step"] for line in (run_dir / FILE).read_text().splitlines()]
    assert steps == sorted(steps)
    tracker = Tracker("", home)
    run_id = tracker.sync(run_dir)
    told = tracker.client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert {one.step for one in told} == set(steps)
    assert tracker.sync(run_dir) == run_id
    assert len(tracker.client.get_metric_history(run_id, "system/cpu_utilization_percentage")) == len(told)
    tags = tracker.client.get_experiment_by_name("test").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
