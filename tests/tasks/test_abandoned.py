"""A run whose process was killed is told to MLflow and to Prefect, by whoever comes next."""

import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest

from lmcore.home import Home
from tasks import runs
from tasks.abandoned import SETTLED, Abandoned, main, settle
from tasks.tracking import Tracker

# A flow that opens its run and is killed, as the kernel does for want of memory.
KILLED = """
import os, signal, sys
from pathlib import Path
from prefect import flow
from tasks import runs

@flow(name="doomed", persist_result=False)
def doomed(directory: str):
    tags = runs.standard_tags()
    runs.open_run(Path(directory), name="pipeline", kind="pipeline", experiment="test", tags=tags)
    print(tags["prefect.flow_run_id"], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

doomed(sys.argv[1])
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return Home.here()


def dead_process():
    """Number and start of a process that is gone."""
    import psutil

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    created = psutil.Process(process.pid).create_time()
    process.kill()
    process.communicate()
    return {"pid": process.pid, "pid_started": created}


def open_run(home, name, **changes):
    directory = home.runs / name
    runs.open_run(directory, name=name, kind="pipeline", experiment="test")
    runs.update_run(directory, **changes)
    return directory


def test_only_what_is_left_running_by_a_process_that_is_gone_is_found(home):
    gone = dead_process()
    killed = open_run(home, "killed", **gone)
    open_run(home, "alive")
    open_run(home, "ended", **gone, status="finished", ended=time.time())
    open_run(home, "elsewhere", **gone, host="another-machine")
    torn = home.runs / "torn"
    torn.mkdir()
    (torn / runs.RECORD).write_text("{")
    abandoned = Abandoned(home)
    assert abandoned.find() == abandoned.find() == [killed]


def test_mlflow_is_told_once_and_a_later_attempt_is_looked_at_anew(home):
    killed = open_run(home, "killed", **dead_process())
    main()
    tracker = Tracker("", home)
    assert tracker.client.get_run(tracker.run_id(killed)).info.status == "KILLED"
    assert Abandoned(home).find() == []
    open_run(home, "killed")  # the same command goes on
    tracker.sync(killed)
    assert tracker.client.get_run(tracker.run_id(killed)).info.status == "RUNNING"
    runs.update_run(killed, **dead_process())
    assert Abandoned(home).find() == [killed]


def test_while_mlflow_is_away_it_is_tried_again(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    killed = open_run(home, "killed", **dead_process(), place="http://127.0.0.1:9")
    assert settle(home, [killed]) == []
    assert not (killed / SETTLED).exists()
    assert Abandoned(home).find() == [killed]


@pytest.mark.long
def test_prefect_is_told_of_a_flow_run_that_was_killed(home, monkeypatch):
    from flows import embedded
    from flows.environment import set_environment

    monkeypatch.setattr(os, "environ", os.environ.copy())
    set_environment(home, quiet=True)
    server = embedded.start(home)
    server.wait_until_ready()
    try:
        killed = home.runs / "pipeline-a"
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(killed)],
            capture_output=True,
            text=True,
            check=False,
            env=dict(os.environ),
        )
        assert done.returncode == -9, done.stderr
        run_id = done.stdout.split()[-1]

        def state():
            address = f"{os.environ['PREFECT_API_URL']}/flow_runs/{run_id}"
            with urllib.request.urlopen(address) as answer:
                return json.load(answer)["state_type"]

        assert state() == "RUNNING"
        told = subprocess.run([sys.executable, "-m", "tasks.abandoned"], check=False, env=dict(os.environ))
        assert told.returncode == 0
        assert state() == "CRASHED"
        assert json.loads((killed / SETTLED).read_text())
        tracker = Tracker("", home)
        assert tracker.client.get_run(tracker.run_id(killed)).info.status == "KILLED"
    finally:
        server.stop()
