"""What real runs say that their steps cost."""

import json
import os
import time

import pytest
import torch

from lmcore.clock import PARTS
from lmcore.parallel.mesh import World
from lmcore.train import energy
from lmcore.train.trace import read_trace
from lmcore.train.trainer import Trainer

SHARE = "perf/share/"
ALONE = World(0, 1, torch.device("cpu"))
RANGE = 262_143_328_850  # microjoules, of a server's package


@pytest.fixture(autouse=True)
def no_counters(tmp_path, monkeypatch):
    """A machine whose counters cannot be read, whatever this one is."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    return tmp_path / "powercap"


def shares(row):
    return {
        name.removeprefix(SHARE): value for name, value in row["values"].items() if name.startswith(SHARE)
    }


def test_rows_tell_of_all_steps_and_their_shares_are_of_all_time(make_run, train_here):
    run = make_run(steps=9, checkpoint_every=4, validate_every=6, costs={"every_steps": 4})
    result = train_here(run)
    start, *rows = run.rows("costs")
    assert (start["step"], start["steps"], start["values"][SHARE + "start"]) == (0, 0, 1)
    assert [(row["step"], row["steps"], row["tokens"]) for row in rows] == [
        (4, 4, 4 * 256),
        (8, 4, 8 * 256),
        (9, 1, 9 * 256),
    ]
    for row in rows:
        found = shares(row)
        assert sum(found.values()) == pytest.approx(1)
        assert min(found.values()) >= 0
        assert set(found) == {"start", *PARTS, "communication"}
        assert found["start"] == 0  # what MLflow shows last is not what came before the first step
        assert found["communication"] == 0  # there is nobody to send to
        assert found["checkpoint"] > 0  # after steps 4, 8 and 9
        assert (found["validation"] > 0) == (row["step"] != 4)  # after steps 6 and 9
        assert found["forward"] > 0 < found["backward"]
        assert row["values"]["perf/peak_memory_bytes"] > 50e6
        assert row["energy"] == "not measured"
        assert not [name for name in row["values"] if name.startswith("energy/")]
    costs = result["costs"]
    assert costs["energy"] == "not measured"
    assert sum(costs["shares"].values()) == pytest.approx(1)
    assert costs["seconds"] == pytest.approx(sum(row["seconds"] for row in [start, *rows]))
    assert costs["shares"]["start"] == pytest.approx(start["seconds"] / costs["seconds"])
    assert "covers" not in costs
    median = sorted(run.values("perf/step_seconds").values())[4]
    flops = 256 * Trainer(run.job, run.directory, ALONE, lambda: False).whole.flops_per_token(32)
    assert result["step_seconds"] == median
    assert result["tokens_per_second"] == 256 / median
    assert result["mfu"] == pytest.approx(flops / median / (result["peak_tflops"] * 1e12))
    for step in run.rows():
        values = step["values"]
        assert values["perf/tokens_per_second"] == 256 / values["perf/step_seconds"]
        assert values["perf/mfu"] == pytest.approx(result["mfu"] * median / values["perf/step_seconds"])
    assert "measured" in result["peak_source"]
    json.dumps(result, allow_nan=False)


def busy():
    product = torch.ones(400, 400)
    for _ in range(40):
        product = product @ product / 400


@pytest.mark.usefixtures("train_here")  # one thread: two that wait for each other would be the slow part
@pytest.mark.parametrize("slow", ["data", "forward", "backward", "optimizer", "checkpoint"])
def test_a_part_that_is_slow_has_the_time(make_run, slow):
    # Where another part is to be slow, the disk must not be.
    saved = 1 if slow == "checkpoint" else 0
    run = make_run(steps=4, checkpoint_every=saved, costs={"measure_peak": "never"})
    trainer = Trainer(run.job, run.directory, ALONE, lambda: False)

    def slowed(function):
        def call(*arguments, **named):
            busy()
            return function(*arguments, **named)

        return call

    if slow == "data":
        trainer.batches.take = slowed(trainer.batches.take)
    elif slow == "forward":
        trainer.model.stages[0].register_forward_pre_hook(lambda *_: busy())
    elif slow == "backward":
        next(iter(trainer.model.stages[0].parameters())).register_hook(lambda gradient: busy())
    elif slow == "optimizer":
        trainer.optimizers.step = slowed(trainer.optimizers.step)
    else:
        trainer.checkpoints.save = slowed(trainer.checkpoints.save)
    found = trainer.run()["costs"]["shares"]
    del found["start"]
    assert max(found, key=found.__getitem__) == slow


def write_counter(root, microjoules):
    zone = root / "intel-rapl:0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")


def test_joules_of_a_recorded_counter_are_those_of_the_run(make_run, train_here, no_counters):
    # Three joules a step, and it wraps around.
    readings = [(RANGE - 4_000_000 + 3_000_000 * step) % (RANGE + 1) for step in range(7)]
    asked = []

    def each_step():
        asked.append(True)
        write_counter(no_counters, readings[len(asked)])
        return False

    write_counter(no_counters, readings[0])
    prices = {"price_per_kwh": 3.6, "price_per_device_hour": 0.0, "grams_co2_per_kwh": 360, "currency": "EUR"}
    run = make_run(steps=6, costs={"every_steps": 2, **prices})
    costs = train_here(run, each_step)["costs"]
    start, *rows = run.rows("costs")
    assert start["values"]["energy/joules"] == 0
    assert not {"energy/watts", "energy/tokens_per_joule"} & set(start["values"])
    for row in rows:
        assert row["energy"] == "RAPL"
        assert row["values"]["energy/joules"] == row["values"]["energy/cpu_joules"] == pytest.approx(6)
        assert row["values"]["energy/tokens_per_joule"] == pytest.approx(2 * 256 / 6)
        assert row["values"]["energy/watts"] == pytest.approx(6 / row["seconds"])
    assert costs["joules"] == pytest.approx(18)
    assert costs["co2_grams"] == pytest.approx(18 / 3.6e6 * 360)
    assert (costs["cost"], costs["currency"]) == (pytest.approx(18e-6), "EUR")


def test_a_run_that_was_stopped_goes_on_with_its_rows(make_run, train_here):
    run = make_run(steps=10, costs={"every_steps": 4})
    asked = []
    stopped = train_here(run, lambda: bool(asked.append(True)) or len(asked) == 6)
    assert stopped["status"] == "preempted"
    train_here(run)
    assert [(row["step"], row["steps"]) for row in run.rows("costs")] == [
        *[(0, 0), (4, 4), (6, 2)],
        *[(6, 0), (8, 2), (10, 2)],
    ]


def test_what_a_killed_attempt_could_not_tell_of_is_said_to_be_missing(make_run, train_here, no_counters):
    write_counter(no_counters, 0)
    asked = []

    def each_step():  # four joules a step, and dead in the eighth
        asked.append(True)
        if len(asked) == 8:
            raise KeyboardInterrupt
        write_counter(no_counters, 4_000_000 * len(asked))
        return False

    run = make_run(steps=10, checkpoint_every=3, costs={"every_steps": 4})
    with pytest.raises(KeyboardInterrupt):
        train_here(run, each_step)
    costs = train_here(run, each_step)["costs"]  # from step 6 on
    assert [(row["step"], row["steps"]) for row in run.rows("costs")] == [
        (0, 0),
        (4, 4),
        (6, 0),
        (8, 2),
        (10, 2),
    ]
    assert (costs["steps_done"], costs["steps_covered"]) == (7 + 4, 4 + 4)
    assert (costs["attempts"], costs["attempts_covered"]) == (2, 2)
    assert costs["covers"] == "8 of 11 steps, the start of 2 of 2 attempts"
    assert costs["tokens_repeated"] == 256  # step 7
    assert costs["tokens_per_joule"] == pytest.approx(10 * 256 / costs["joules"])
    again = train_here(run)["costs"]  # nothing is left to do but to validate and to write the model
    assert again["attempts_covered"] == again["attempts"] == 3
    assert again["steps_done"] == 11
    assert again["seconds"] > costs["seconds"]


def test_a_start_that_takes_long_is_part_of_the_costs(make_run):
    run = make_run(steps=2)
    result = Trainer(run.job, run.directory, ALONE, lambda: False, began=time.monotonic() - 3600).run()
    assert 3600 < run.rows("costs")[0]["seconds"] < result["costs"]["seconds"]
    assert result["costs"]["shares"]["start"] > 0.9


def test_a_process_of_its_own_counts_from_its_begin(make_run):
    run = make_run(steps=2).finish()
    (start, _) = run.rows("costs")
    assert start["seconds"] > 0.3  # to import torch alone takes more
    assert "covers" not in run.result["costs"]


def test_nothing_is_measured_where_nothing_was_asked_for(make_run, train_here):
    run = make_run(costs={"every_steps": 0, "measure_peak": "never"})
    result = train_here(run)
    assert (run.rows("costs"), result["costs"], result["mfu"]) == ([], {}, None)
    assert "perf/mfu" not in run.rows()[0]["values"]


@pytest.mark.long
def test_processes_say_together_what_they_cost(make_run, run_together):
    layouts = {"ddp": {"dp_replicate": 2}, "fsdp": {"dp_shard": 2}}
    made = [make_run(name, steps=6, costs={"every_steps": 3}, **sizes) for name, sizes in layouts.items()]
    made.append(make_run("unsampled", dp_replicate=2, costs={"sample_communication": False}))
    run_together(made)
    for run in made[:2]:
        rows = run.rows("costs")
        assert [(row["step"], row["steps"]) for row in rows] == [(0, 0), (3, 3), (6, 3)]
        rows = rows[1:]
        for row in rows:
            found = shares(row)
            assert sum(found.values()) == pytest.approx(1)
            assert set(found) == {"start", *PARTS, "communication_sampled"}
            assert 0 < found["communication_sampled"] < 1
        assert rows[0]["values"][SHARE + "measuring"] > 0
    _, row = made[2].rows("costs")
    assert set(shares(row)) == {"start", *PARTS}
    assert sum(shares(row).values()) == pytest.approx(1)


def test_steps_that_are_asked_for_are_traced(make_run, train_here):
    run = make_run(steps=6, global_batch_tokens=512, profile={"start_step": 3, "steps": 2})
    train_here(run)
    assert sorted(os.listdir(run.directory / "profile")) == [  # noqa: PTH208 - hidden ones too
        "rank0-steps3-4.json.gz",
        "rank0-steps3-4.txt",
    ]
    events = read_trace(run.directory / "profile" / "rank0-steps3-4.json.gz")
    names = [event["name"] for event in events]
    assert names.count("gristmill.step") == 2
    assert names.count("gristmill.forward") == names.count("gristmill.backward") == 2 * 2
    assert names.count("gristmill.data") == 2
    assert "aten::mm" in names
    summary = (run.directory / "profile" / "rank0-steps3-4.txt").read_text()
    assert "steps 3 to 4" in summary
    assert "aten::mm" in summary
    assert "backward" in summary


def test_a_trace_that_the_run_ends_within_is_kept(make_run, train_here):
    run = make_run(steps=4, profile={"start_step": 1, "steps": 9, "ranks": [0, 1]})
    train_here(run)
    assert (run.directory / "profile" / "rank0-steps1-4.txt").exists()
    other = make_run("other", steps=2, profile={"start_step": 1, "ranks": [1]})
    train_here(other)
    assert not (other.directory / "profile").exists()
    late = make_run("late", steps=2, profile={"start_step": 3})
    train_here(late)
    assert not (late.directory / "profile").exists()
