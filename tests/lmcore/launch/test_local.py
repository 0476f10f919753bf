"""Processes are started, watched, and always stopped: real ones, killed for real."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from lmcore.config import LaunchConfig
from lmcore.errors import DataError, LaunchError
from lmcore.launch import local

ROOT = Path(__file__).parents[3]

# A job: each process leaves its id in the run directory, then does what the mode says.
JOB = """
    import json, os, pathlib, signal, sys, time
    run = pathlib.Path(sys.argv[1])
    mode = json.loads((run / "config.json").read_text())["mode"]
    rank = os.environ["RANK"]
    stop = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else lambda *_: stop.append(1))
    (run / f"pid-{rank}").write_text(str(os.getpid()))
    print(f"rank {rank} threads {os.environ['OMP_NUM_THREADS']}")
    def result(**values):
        if rank == "0":
            (run / "result.json").write_text(json.dumps(values))
    if mode == "done":
        result(status="completed", step=3)
    elif mode == "fails":
        result(status="failed", kind="DataError", error="no tokens")
        sys.exit(1)
    elif mode == "dies":
        sys.exit("the disk fell out")
    elif mode == "dies once":
        if rank == "0" and not (run / "died").exists():
            (run / "died").touch()
            os._exit(1)
        result(status="completed")
    elif mode == "noisy":
        print("x" * 200_000)
        result(status="completed")
    else:
        while not stop or mode == "deaf":
            time.sleep(0.02)
        print("saving", flush=True)  # as a trainer does; who asked may be gone
        time.sleep(0.3)
        (run / f"saved-{rank}").write_text("saved")
        result(status="preempted", step=2)
"""

CALLER = """
    import sys, pathlib
    from lmcore.config import LaunchConfig
    from lmcore.launch import local
    local.run("job", pathlib.Path(sys.argv[1]), 2, LaunchConfig(grace_seconds=float(sys.argv[2])))
"""


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    (tmp_path / "job.py").write_text(textwrap.dedent(JOB))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    return tmp_path / "run"


def prepare(run_dir, mode):
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps({"mode": mode}))


def until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


def worker_pids(run_dir, count=2):
    def read():
        with contextlib.suppress(ValueError):
            pids = [int(path.read_text()) for path in run_dir.glob("pid-*")]
            return pids if len(pids) == count else None

    return until(read, "all workers started")


def alive(pids):
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def start_caller(run_dir, grace=20):
    code = textwrap.dedent(CALLER)
    return subprocess.Popen([sys.executable, "-c", code, str(run_dir), str(grace)], start_new_session=True)


def supervisor_of(caller):
    return until(
        lambda: [p for p in caller.children() if "lmcore.launch.supervisor" in " ".join(p.cmdline())],
        "the supervisor started",
    )[0]


def test_a_job_that_ends_returns_its_result_and_its_log(run_dir):
    prepare(run_dir, "done")
    lines = []
    result = local.run("job", run_dir, 2, LaunchConfig(threads_per_process=3), lines.append)
    assert result == {"status": "completed", "step": 3}
    assert {"rank 0 threads 3", "rank 1 threads 3"} <= set(lines)
    assert (run_dir / "log.txt").read_text().splitlines() == lines
    assert alive(worker_pids(run_dir)) == []


def test_more_processes_than_the_machine_can_run_are_refused(run_dir):
    prepare(run_dir, "done")
    too_many = 4 * len(os.sched_getaffinity(0)) + 1
    with pytest.raises(LaunchError, match=f"found {too_many}"):
        local.run("job", run_dir, too_many, LaunchConfig())
    assert not list(run_dir.glob("pid-*"))


def test_long_lines_reach_the_log_whole(run_dir):
    prepare(run_dir, "noisy")
    local.run("job", run_dir, 2, LaunchConfig())
    assert (run_dir / "log.txt").read_text().count("x" * 200_000) == 2


def test_a_failure_is_raised_as_what_it_was(run_dir):
    prepare(run_dir, "fails")
    with pytest.raises(DataError, match="no tokens"):
        local.run("job", run_dir, 2, LaunchConfig())


def test_a_death_without_a_word_tells_the_last_lines_and_the_log(run_dir):
    prepare(run_dir, "dies")
    (run_dir / "result.json").write_text('{"status": "completed"}')  # of an earlier attempt
    with pytest.raises(LaunchError, match=r"log\.txt") as caught:
        local.run("job", run_dir, 2, LaunchConfig())
    assert "without a result" in str(caught.value)
    assert "the disk fell out" in (run_dir / "log.txt").read_text()


def attempts(run_dir):
    return (run_dir / "log.txt").read_text().count("rank 0 threads")


def test_a_death_is_started_again_and_a_failure_is_not(run_dir):
    prepare(run_dir, "dies once")
    lines = []
    result = local.run("job", run_dir, 2, LaunchConfig(max_restarts=2), lines.append)
    assert result["status"] == "completed"
    assert attempts(run_dir) == 2
    assert sum("restarts left: 1" in line for line in lines) == 1
    (run_dir / "config.json").write_text(json.dumps({"mode": "fails"}))
    with pytest.raises(DataError, match="no tokens"):
        local.run("job", run_dir, 2, LaunchConfig(max_restarts=2))
    assert attempts(run_dir) == 3


def test_a_killed_worker_ends_the_run(run_dir):
    prepare(run_dir, "waits")
    caller = start_caller(run_dir)
    pids = worker_pids(run_dir)
    os.kill(pids[0], signal.SIGKILL)
    assert caller.wait(timeout=60) != 0
    assert alive(pids) == []


@pytest.mark.parametrize("victim", ["caller", "supervisor", "agent"])
def test_whoever_is_killed_nothing_is_left(run_dir, victim):
    prepare(run_dir, "waits")
    caller = start_caller(run_dir)
    pids = worker_pids(run_dir)
    supervisor = supervisor_of(psutil.Process(caller.pid))
    family = [supervisor, *supervisor.children(recursive=True)]
    agent = supervisor.children()[0]
    {"caller": caller, "supervisor": supervisor, "agent": agent}[victim].kill()
    caller.wait(timeout=60)
    until(lambda: not alive(p.pid for p in family), f"all gone after {victim} was killed")
    saved = sorted(path.name for path in run_dir.glob("saved-*"))
    # Workers whose agent was killed cannot be asked; in the other cases they had time to save.
    assert saved == ([] if victim == "agent" else ["saved-0", "saved-1"])
    assert alive(pids) == []


def test_a_request_to_stop_lets_workers_save(run_dir):
    prepare(run_dir, "waits")
    caller = start_caller(run_dir)
    worker_pids(run_dir)
    supervisor_of(psutil.Process(caller.pid)).send_signal(signal.SIGTERM)
    assert caller.wait(timeout=60) == 0
    assert json.loads((run_dir / "result.json").read_text())["status"] == "preempted"


def test_a_worker_that_will_not_stop_is_killed_after_the_grace(run_dir):
    prepare(run_dir, "deaf")
    caller = start_caller(run_dir, grace=1)
    pids = worker_pids(run_dir)
    caller.kill()
    caller.wait()
    until(lambda: not alive(pids), "deaf workers gone")


def test_a_run_directory_has_one_user_until_its_last_process_is_gone(run_dir):
    prepare(run_dir, "waits")
    caller = start_caller(run_dir, grace=30)
    worker_pids(run_dir)
    with pytest.raises(LaunchError, match=f"process {caller.pid}"):
        local.run("job", run_dir, 2, LaunchConfig(grace_seconds=0))
    caller.kill()
    caller.wait()
    # The killed caller's workers are still saving: the next attempt waits for them.
    (run_dir / "config.json").write_text(json.dumps({"mode": "done"}))
    assert local.run("job", run_dir, 2, LaunchConfig())["status"] == "completed"
    assert sorted(path.name for path in run_dir.glob("saved-*")) == ["saved-0", "saved-1"]


def test_a_run_directory_stays_locked_while_the_workers_of_a_killed_supervisor_save(run_dir):
    prepare(run_dir, "waits")
    caller = start_caller(run_dir, grace=60)
    workers = [psutil.Process(pid) for pid in worker_pids(run_dir)]
    for worker in workers:
        worker.suspend()  # as one whose save takes long
    supervisor_of(psutil.Process(caller.pid)).kill()
    assert caller.wait(timeout=60) != 0
    (run_dir / "config.json").write_text(json.dumps({"mode": "done"}))
    with pytest.raises(LaunchError, match=f"process {caller.pid}"):
        local.run("job", run_dir, 2, LaunchConfig(grace_seconds=0))
    for worker in workers:
        worker.resume()
    assert local.run("job", run_dir, 2, LaunchConfig())["status"] == "completed"
    assert sorted(path.name for path in run_dir.glob("saved-*")) == ["saved-0", "saved-1"]
