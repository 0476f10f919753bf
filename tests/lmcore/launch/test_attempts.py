"""One attempt at a run at a time, and stopped processes are named: real ones, killed and stopped for real."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from lmcore.config import LaunchConfig
from lmcore.errors import ProcessDied
from lmcore.heartbeat import read_ranks
from lmcore.launch import attempts, local

ROOT = Path(__file__).parents[3]

# A rank: counts steps into the run's events while it is alone, and waits for the others in none of them.
JOB = """
    import json, os, pathlib, signal, sys, time
    from lmcore.run_directory import EventLog, write_result
    from lmcore.run_process import leave, run_process

    def work(run):
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        main = os.environ.get("RANK", "0") == "0"
        events, attempt = EventLog(run, enabled=main), os.getpid()
        events.write("start", 0, attempt=attempt)
        settings = json.loads((run / "config.json").read_text())
        deadline = time.monotonic() + settings["seconds"]
        step = 0
        while time.monotonic() < deadline and not stop:
            step += 1
            events.write("step", step, attempt=attempt)
            time.sleep(0.02)
        if stop:
            time.sleep(settings["saves_for"])
        events.write("end", step, attempt=attempt)
        if main:
            write_result(run, {"status": "preempted" if stop else "completed", "step": step})

    if __name__ == "__main__":
        leave(run_process("job", work))
"""


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    (tmp_path / "job.py").write_text(textwrap.dedent(JOB))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def prepare(run_dir, seconds, saves_for=0.0):
    (run_dir / "config.json").write_text(json.dumps({"seconds": seconds, "saves_for": saves_for}))


class Caller(threading.Thread):
    """Runs the job in a thread of this process."""

    def __init__(self, run_dir, num_processes=2, **launch):
        super().__init__(daemon=True)
        self.arguments = "job", run_dir, num_processes, LaunchConfig(**launch)
        self.result, self.error, self.lines = None, None, []
        self.start()

    def run(self):
        try:
            self.result = local.run(*self.arguments, on_line=self.lines.append)
        except Exception as error:
            self.error = error

    def told(self, text):
        return [line for line in self.lines if text in line]


def until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


def rows(run_dir):
    path = run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ranks_of(run_dir, count=2):
    """Process ids of the ranks of the attempt that is under way, once it steps."""
    ranks = until(lambda: len(found := read_ranks(run_dir)) == count and found, "all ranks live")
    until(lambda: any(row.get("attempt") == ranks[0].pid for row in rows(run_dir)), "it steps")
    return [rank.pid for rank in ranks]


def supervisor():
    return next(
        child
        for child in psutil.Process().children()
        if "lmcore.launch.supervisor" in " ".join(child.cmdline())
    )


def assert_not_mixed(run_dir, num_attempts):
    """Rows of one attempt lie together, and each began after the one before had ended or was dead."""
    order = [row["attempt"] for row in rows(run_dir)]
    changes = [order[0]] + [b for a, b in itertools.pairwise(order) if a != b]
    assert len(changes) == len(set(changes)) == num_attempts, changes


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.long), 1])
def test_after_a_killed_supervisor_with_a_stopped_rank_there_is_one_attempt(run_dir, stopped):
    prepare(run_dir, seconds=60)
    caller = Caller(run_dir, max_restarts=1, grace_seconds=0.5)
    first = ranks_of(run_dir)
    os.kill(first[stopped], signal.SIGSTOP)
    supervisor().kill()
    prepare(run_dir, seconds=1)
    until(lambda: (found := read_ranks(run_dir)) and found[0].pid not in first, "the second attempt")
    assert all(attempts.state(pid) in "ZX" for pid in first)
    caller.join(60)
    assert caller.result["status"] == "completed"
    assert_not_mixed(run_dir, 2)
    assert attempts.members(run_dir) == []


@pytest.mark.long
def test_the_next_attempt_waits_for_one_that_still_saves(run_dir):
    prepare(run_dir, seconds=60, saves_for=2.0)
    caller = Caller(run_dir, max_restarts=1, grace_seconds=20)
    first = ranks_of(run_dir)
    supervisor().kill()
    prepare(run_dir, seconds=0.5)
    caller.join(60)
    assert caller.result["status"] == "completed"
    assert_not_mixed(run_dir, 2)
    assert rows(run_dir)[-1]["attempt"] != first[0]
    assert sum(row["kind"] == "end" for row in rows(run_dir)) == 2  # the first one had its time
    assert not caller.told("were killed")


@pytest.mark.long
def test_ranks_whose_supervisor_and_agent_are_killed_are_ended_before_another_begins(run_dir):
    prepare(run_dir, seconds=60)
    caller = Caller(run_dir, max_restarts=0, grace_seconds=0.5)
    first = ranks_of(run_dir)
    for pid in first:
        os.kill(pid, signal.SIGSTOP)
    top = supervisor()
    agent = top.children()[0]
    top.suspend()  # so that it does not see to the orphans
    agent.kill()
    top.kill()
    caller.join(60)
    assert isinstance(caller.error, ProcessDied)
    prepare(run_dir, seconds=0.2)
    again = Caller(run_dir, grace_seconds=0.5)
    again.join(60)
    assert again.result["status"] == "completed"
    assert again.told("were killed")
    assert_not_mixed(run_dir, 2)


def test_a_run_that_is_started_by_hand_beside_another_is_refused_and_leaves_its_result_alone(run_dir):
    prepare(run_dir, seconds=60)
    caller = Caller(run_dir, num_processes=1)
    (pid,) = ranks_of(run_dir, 1)
    by_hand = subprocess.run(
        [sys.executable, "-m", "job", str(run_dir)], capture_output=True, text=True, timeout=60, check=False
    )
    assert by_hand.returncode == 1
    assert f"is in use: found another attempt, whose main process is {pid}" in by_hand.stderr
    assert not (run_dir / "result.json").exists()
    os.kill(pid, signal.SIGTERM)
    caller.join(60)
    assert caller.result["status"] == "preempted"
    assert_not_mixed(run_dir, 1)


def test_a_stopped_rank_is_named_with_the_stacks_of_the_others_and_restarted(run_dir):
    prepare(run_dir, seconds=60)
    caller = Caller(run_dir, max_restarts=1, stall_seconds=4.0)
    first = ranks_of(run_dir)
    os.kill(first[1], signal.SIGSTOP)
    prepare(run_dir, seconds=0.5)
    caller.join(60)
    named = f"rank 1 (process {first[1]} on {os.uname().nodename})"
    log = (run_dir / "log.txt").read_text()
    assert f"{named} is stopped (SIGSTOP): `kill -CONT {first[1]}`" in log
    assert f"{named} gives no stacks" in log
    stacks = log.partition(f"stacks of rank 0 (process {first[0]}")[2]
    assert "in work" in stacks  # where it was
    assert caller.result["status"] == "completed"
    assert caller.told("It is started again; restarts left: 0")
    assert_not_mixed(run_dir, 2)


@pytest.mark.parametrize(
    ("who", "size"), [pytest.param("agent", 2, marks=pytest.mark.long), ("supervisor", 1)]
)
def test_a_stopped_agent_or_supervisor_is_noticed_and_goes_on(run_dir, who, size):
    prepare(run_dir, seconds=6)
    caller = Caller(run_dir, size, stall_seconds=4.0)
    ranks_of(run_dir, size)
    top = supervisor()
    {"agent": top.children()[0], "supervisor": top}[who].suspend()
    until(lambda: caller.told(f"warning: the {who} (process"), "a word")
    caller.join(60)
    assert caller.result["status"] == "completed"
    assert caller.told("is told to go on")


def test_a_process_that_carries_another_run_is_none_of_ours(tmp_path):
    for name in ("run", "run-2", "run/sub"):
        (tmp_path / name).mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={**os.environ, **attempts.mark(tmp_path / "run-2")},
    ) as other:
        until(lambda: attempts.members(tmp_path / "run-2") == [other.pid], "it is found")
        assert attempts.members(tmp_path / "run") == attempts.members(tmp_path / "run/sub") == []
        assert attempts.end_earlier(tmp_path / "run-2", 0.1) == [other.pid]
        assert attempts.state(other.pid) == "Z"  # ours to reap
