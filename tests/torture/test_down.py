"""`gristmill down` in the middle of a run: it saves, nothing is left, no later run is kept waiting."""

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from conftest import Mill, free_port

PARAMETERS = {
    "name": "stopped",
    "data": {"sources": [{"name": "python-stdlib", "max_bytes": 600_000}], "tokenizer": {"vocab_size": 512}},
    "train": {"steps": 100_000, "checkpoint_every": 0, "launch": {"device": "cpu"}},
}


@pytest.fixture
def servers(make_servers):
    servers = make_servers("down")
    servers.gristmill("up", *servers.ports)
    yield servers
    servers.gristmill("down")


def until(condition, what, seconds=180):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.2)
    return found


def start(servers, parameters) -> str:
    deployment = servers.call(f"{servers.prefect}/api/deployments/name/pipeline/pipeline")
    address = f"{servers.prefect}/api/deployments/{deployment['id']}/create_flow_run"
    return servers.call(address, {"parameters": parameters, "state": {"type": "SCHEDULED"}})["id"]


def states(home: Path) -> set[str]:
    """Of all runs, as MLflow's database has them."""
    with sqlite3.connect(home / "mlflow.db") as database:
        return {status for (status,) in database.execute("select status from runs")}


def test_a_deployed_run_that_is_killed_is_told_to_both(servers):
    killed = start(servers, {**PARAMETERS, "name": "killed"})
    (record,) = until(lambda: list(servers.home.glob("runs/pipeline-*/tracking.json")), "a run")
    until(lambda: steps_done(servers.home) > 5 and "RUNNING" in states(servers.home), "a step")
    os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
    address = f"{servers.prefect}/api/flow_runs/{killed}"
    until(lambda: servers.call(address)["state"]["type"] == "CRASHED", "Prefect knows")
    until(lambda: states(servers.home) == {"KILLED"}, "MLflow knows")


def steps_done(home: Path) -> int:
    return sum(path.read_text().count('"kind": "step"') for path in home.glob("runs/train-*/events.jsonl"))


def test_down_in_the_middle_of_training(servers):
    deployment = servers.call(f"{servers.prefect}/api/deployments/name/pipeline/pipeline")
    schedule = deployment["schedules"][0]["id"]
    servers.call(
        f"{servers.prefect}/api/deployments/{deployment['id']}/schedules/{schedule}",
        {"active": False},
        "PATCH",
    )
    here, other = servers.ports[1], str(free_port())
    told = servers.gristmill("up", "--prefect-port", other, "--mlflow-port", servers.ports[3])
    assert f"prefect runs already, on port {here} and not {other}" in told

    stopped = start(servers, PARAMETERS)
    until(lambda: steps_done(servers.home) > 5, "a step")
    told = servers.gristmill("down")
    assert servers.processes() == []
    assert "stopped worker, mlflow, prefect" in told
    assert list(servers.home.glob("runs/train-*/checkpoints/*/COMMIT")), "it did not save"
    assert "RUNNING" not in states(servers.home)

    servers.gristmill("up", *servers.ports)
    state = servers.call(f"{servers.prefect}/api/flow_runs/{stopped}")["state"]
    assert state["type"] in ("CRASHED", "CANCELLED", "FAILED"), state
    deployment = servers.call(f"{servers.prefect}/api/deployments/name/pipeline/pipeline")
    assert [s["active"] for s in deployment["schedules"]] == [False], "what a person paused runs again"
    short = {**PARAMETERS, "train": {**PARAMETERS["train"], "steps": 20}}
    servers.wait_for_run(start(servers, short))
    parent, children = servers.mlflow_family(stopped)
    assert parent["info"]["status"] in ("KILLED", "FAILED")
    assert children == ["train"]


def test_a_command_that_is_killed_beside_the_servers_is_told_to_both(servers):
    mill = Mill(servers.home.parent)
    command = mill.start("run", str(mill.recipe), "--set", "train.steps=100000")
    until(lambda: steps_done(servers.home) > 5 and "RUNNING" in states(servers.home), "a step")
    command.kill()
    command.communicate()
    address = f"{servers.prefect}/api/flow_runs/filter"
    until(lambda: "CRASHED" in [run["state"]["type"] for run in servers.call(address, {})], "Prefect knows")
    until(lambda: states(servers.home) == {"KILLED"}, "MLflow knows")
