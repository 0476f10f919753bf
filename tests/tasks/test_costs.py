"""What a training cost, as it is told: by words where it is not measured, and in pictures."""

import json
import time
from types import SimpleNamespace

import pytest

from lmcore.config import Recipe, parse
from lmcore.store import Artifact
from lmcore.train.bill import bill_of
from tasks.costs import cost_metrics, cost_table, cost_tags, costs_of
from tasks.figures import draw_costs, draw_energy
from tasks.prepare import Prepared
from tasks.report import _summarize
from tasks.runs import RunRecord, open_run, update_run

RESULT = {
    "step_seconds": 0.1,
    "tokens_per_second": 1000.0,
    "mfu": 0.5,
    "peak_tflops": 0.31,
    "peak_source": "a product, measured",
}


def rows(*, measured):
    found = [{"kind": "start", "step": 0}]
    start = {"perf/share/start": 1.0} | ({"energy/joules": 0.0, "perf/cost": 0.0} if measured else {})
    start_words = {"energy": "NVML"} if measured else {"energy": "not measured", "cost": "not measured"}
    found.append({"kind": "costs", "step": 0, "steps": 0, "seconds": 1.0, "values": start, **start_words})
    for step in range(1, 41):
        values = {"perf/mfu": 0.5, "train/loss": 2.0, "perf/step_seconds": 0.1}
        found.append({"kind": "step", "step": step, "tokens": step * 100, "values": values})
        if step % 10 == 0:
            values = {"perf/share/forward": 0.4, "perf/share/backward": 0.5, "perf/share/other": 0.1}
            values["perf/peak_memory_bytes"] = 2e9
            if measured:
                values |= {"energy/joules": 50.0, "energy/watts": 50.0, "energy/tokens_per_joule": 20.0}
                values |= {"energy/co2_grams": 0.01, "perf/cost": 0.25}
            words = {"energy": "NVML" if measured else "not measured"}
            if not measured:
                words["cost"] = "not measured"
            row = {"kind": "costs", "step": step, "steps": 10, "seconds": 1.0, "tokens": step * 100, **words}
            found.append(row | {"values": values})
    return found


def test_what_is_measured_is_told_with_its_units():
    costs = costs_of(RESULT | {"costs": bill_of(rows(measured=True), 100, "EUR")})
    assert costs_of(RESULT | {"costs": costs}) == costs  # as the artifact's summary has them
    assert cost_metrics(costs) == {
        "perf/median_step_seconds": 0.1,
        "perf/median_tokens_per_second": 1000.0,
        "perf/median_mfu": 0.5,
        "perf/peak_memory_bytes": 2e9,
        "perf/tokens_repeated": 0,
        "perf/cost": 1.0,
        "energy/joules": 200.0,
        "energy/tokens_per_joule": 20.0,
        "energy/co2_grams": 0.04,
    }
    assert cost_tags(costs) == {"energy": "NVML", "currency": "EUR"}
    assert cost_table(costs)[4:] == [
        "| speed | 1,000 tokens/s: 100 ms for the median step |",
        "| MFU | 50.0% of 0.31 TFLOP/s a device (a product, measured), in that step |",
        "| time | 5 s |",
        "| time in backward | 40.0% |",
        "| time in forward | 32.0% |",
        "| time in start | 20.0% |",
        "| time in other | 8.0% |",
        "| peak memory | 2.00 GB a process |",
        "| energy | 0.2 kJ (NVML), 20 tokens/J |",
        "| carbon dioxide | 0.04 g |",
        "| cost | 1 EUR |",
        "",
    ]


def test_sums_that_do_not_cover_all_steps_say_so():
    killed = [row for row in rows(measured=True) if not (row["kind"] == "costs" and row["step"] == 40)]
    costs = bill_of([*killed, {"kind": "resume", "step": 30}, *killed[-10:]], 100, "EUR")
    assert cost_tags(costs)["costs_cover"] == "30 of 50 steps, the start of 1 of 2 attempts"
    assert cost_metrics(costs)["perf/tokens_repeated"] == 10 * 100
    table = "\n".join(cost_table(costs))
    assert "| time | at least 4 s" in table
    assert "| energy | at least 0.15 kJ (NVML), at most 26.67 tokens/J |" in table
    assert "| cost | at least 0.75 EUR |" in table
    assert "| done again after a stop | 1,000 tokens |" in table
    assert "| these costs cover | 30 of 50 steps, the start of 1 of 2 attempts: the rest" in table


def test_what_is_not_measured_is_said_by_words_alone():
    costs = costs_of({"mfu": None, "costs": bill_of(rows(measured=False), 100, "EUR")})
    json.dumps(costs, allow_nan=False)
    metrics = cost_metrics(costs)
    assert [name for name, value in metrics.items() if value is not None] == [
        "perf/peak_memory_bytes",
        "perf/tokens_repeated",
    ]
    assert cost_tags(costs)["energy"] == "not measured"
    table = cost_table(costs)
    assert "| energy | not measured |" in table
    assert "| cost | not measured |" in table
    assert not [line for line in table if "dioxide" in line]
    assert cost_table({}) == []  # of a training that is older than this


def test_a_training_from_before_the_median_step_keeps_its_speed(tmp_path):
    old = {"tokens_per_second": 1000.0, "costs": {"mfu": 0.5, "peak_tflops": 0.31, "peak_source": "told"}}
    known = {"documents": 3, "books": {}, "train_tokens": 50}
    data = Artifact("data", "0" * 64, tmp_path, "reused", "", 0.0, known)
    trained = Artifact("train", "1" * 64, tmp_path, "reused", "", 0.0, {**old, "train_tokens": 100})
    run = SimpleNamespace(
        directory=tmp_path,
        started=time.monotonic(),
        mlflow_id=lambda: None,
        tracker=SimpleNamespace(link=lambda directory: None),
    )
    recipe = parse(Recipe, {}, where="test")
    costs = _summarize(recipe, run, Prepared(data, data, data, data), trained, None, None).costs
    told = {name: value for name, value in cost_metrics(costs).items() if value is not None}
    assert told == {"perf/median_tokens_per_second": 1000.0, "perf/median_mfu": 0.5}
    rows = ["| speed | 1,000 tokens/s |", "| MFU | 50.0% of 0.31 TFLOP/s a device (told) |", ""]
    assert cost_table(costs)[4:] == rows
    assert cost_table(costs_of({"costs": {"mfu": 0.5}}))[4:] == ["| MFU | 50.0% |", ""]
    assert cost_table(costs_of({"step_seconds": 0.1}))[4:] == ["| speed | 100 ms for the median step |", ""]


@pytest.mark.parametrize("measured", [True, False])
def test_pictures_show_what_there_is(tmp_path, measured):
    events = tmp_path / "events.jsonl"
    told = rows(measured=measured)
    told += [row for row in told if row["step"] == 40]  # replayed after a resume
    events.write_text("".join(json.dumps(row) + "\n" for row in told))
    assert draw_costs(events, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert draw_energy(events, tmp_path / "energy.png") is measured
    assert (tmp_path / "energy.png").exists() is measured
    events.write_text("".join(json.dumps(row) + "\n" for row in told[:2]))
    assert not draw_costs(events, tmp_path / "none.png")


def test_a_trace_that_came_later_is_an_artifact_too(tmp_path):
    open_run(tmp_path, name="train", kind="train", experiment="test", files={"log.txt": "/log.txt"})
    trace = tmp_path / "profile" / "rank0-steps1-3.json.gz"
    update_run(tmp_path, files={"profile/rank0-steps1-3.json.gz": str(trace)})
    assert set(RunRecord.read(tmp_path).files) == {"log.txt", "profile/rank0-steps1-3.json.gz"}
