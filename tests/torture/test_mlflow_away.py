"""MLflow is away for a whole run: the run carries on, and the same command catches up once it is back."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

import pytest


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start_server(tmp_path, port):
    started = []

    def start():
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"),
            *("--artifacts-destination", str(tmp_path / "artifacts")),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (tmp_path / "server.log").open("wb") as log:
            server = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        started.append(server)
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                return
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "MLflow did not start"
                time.sleep(0.1)

    yield start
    for server in started:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_run_without_mlflow_carries_on_and_is_caught_up_with(make_mill, start_server, port, tmp_path):
    mill = make_mill("away")
    away = ("--set", f"tracking.uri=http://127.0.0.1:{port}", "--set", "tracking.patience_seconds=1")
    first = mill.run(*away, name="first")
    assert first["val_bits_per_byte"] > 0
    assert (first["mlflow_run_id"], first["model_version"]) == (None, None)
    assert "did not take" in first["gate"]

    start_server()
    second = mill.run(*away, name="second")
    assert {stage["status"] for stage in second["stages"]} == {"reused"}
    assert (second["model_version"], second["aliases"]) == ("1", ["champion"])
    with sqlite3.connect(tmp_path / "server.db") as database:
        steps = database.execute("select step from metrics where key = 'train/loss' order by step").fetchall()
        assert [step for (step,) in steps] == list(range(1, 13))
        kinds = database.execute(
            "select value from tags where key = 'gristmill.kind' order by value"
        ).fetchall()
        assert [kind for (kind,) in kinds] == ["evaluate", "pipeline", "pipeline", "train"]
        statuses = database.execute("select distinct status from runs").fetchall()
        assert statuses == [("FINISHED",)]
        linked = database.execute(
            "select count(*) from tags join runs on value = runs.run_uuid where key = 'mlflow.parentRunId'"
        ).fetchone()
        assert linked == (2,)
