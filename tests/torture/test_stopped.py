"""Trainings of two ranks whose processes are stopped or killed: one attempt at a time, the same result."""

import itertools
import json
import os
import signal
import threading
import time

import psutil
import pytest
from parity.corpus import write_corpus

from lmcore.config import ModelConfig, TrainConfig
from lmcore.heartbeat import read_ranks
from lmcore.launch import attempts, local
from lmcore.train.job import TrainJob

STEPS = 600
KILLS = 10
MODEL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_seq_len": 32}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


class Training(threading.Thread):
    """A training under the launcher, in a thread of this process."""

    def __init__(self, corpus, run_dir, **launch):
        super().__init__(daemon=True)
        settings = {
            "steps": STEPS,
            "seq_len": 32,
            "global_batch_tokens": 256,
            "micro_batch_size": 4,
            "validate_every": 0,
            "checkpoint_every": 50,
            "schedule": {"warmup_steps": 1},
            "parallel": {"dp_replicate": 2},
            "launch": {"device": "cpu", "threads_per_process": 1, **launch},
        }
        job = TrainJob(
            model=ModelConfig(**MODEL),
            train=TrainConfig(**settings),
            tokens=str(corpus / "tokens"),
            tokenizer=str(corpus / "tokenizer"),
        )
        job.write(run_dir)
        self.run_dir, self.launch, self.lines, self.result, self.error = (
            run_dir,
            job.train.launch,
            [],
            None,
            None,
        )

    def run(self):
        try:
            self.result = local.run("lmcore.train", self.run_dir, 2, self.launch, self.lines.append)
        except Exception as error:
            self.error = error

    def rows(self, kind=None):
        path = self.run_dir / "events.jsonl"
        text = path.read_text() if path.exists() else ""
        rows = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        return [row for row in rows if kind in (None, row["kind"])]

    @property
    def losses(self):
        return {row["step"]: row["values"]["train/loss"] for row in self.rows("step")}


def until(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
    return found


def supervisor():
    return next(
        child
        for child in psutil.Process().children()
        if "lmcore.launch.supervisor" in " ".join(child.cmdline())
    )


def jumps(training):
    """Where a row's step is not the one after that of the row before: once for each attempt that resumed."""
    steps = [row["step"] for row in training.rows("step")]
    return [(a, b) for a, b in itertools.pairwise(steps) if b != a + 1]


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    training = Training(corpus, tmp_path_factory.mktemp("straight") / "run")
    training.run()
    assert training.result["status"] == "completed", training.error
    return training


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_killed_supervisor_and_a_stopped_rank_leave_one_attempt(corpus, undisturbed, tmp_path, stopped):
    training = Training(corpus, tmp_path / "run", max_restarts=1, grace_seconds=5)
    training.start()
    until(lambda: len(training.rows("step")) > 60, "steps")
    first = [rank.pid for rank in read_ranks(training.run_dir)]
    os.kill(first[stopped], signal.SIGSTOP)
    supervisor().kill()
    until(lambda: training.rows("resume"), "the second attempt")
    assert all(attempts.state(pid) in "ZX" for pid in first)
    training.join(240)
    assert training.result["status"] == "completed", training.error
    assert len(jumps(training)) <= 1
    assert [row["kind"] for row in training.rows() if row["kind"] in ("start", "resume")] == [
        "start",
        "resume",
    ]
    assert training.losses == undisturbed.losses


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_the_run_goes_on_from_its_checkpoint(
    corpus, undisturbed, tmp_path, stopped
):
    training = Training(corpus, tmp_path / "run", max_restarts=1, grace_seconds=5, stall_seconds=10)
    training.start()
    until(lambda: len(training.rows("step")) > 60, "steps")
    pid = read_ranks(training.run_dir)[stopped].pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    until(lambda: training.rows("resume"), "the second attempt")
    print(f"rank {stopped} stopped: resumed after {time.monotonic() - began:.1f} s")
    training.join(240)
    assert training.result["status"] == "completed", training.error
    log = (training.run_dir / "log.txt").read_text()
    assert f"error: rank {stopped} (process {pid} on {os.uname().nodename}) was stopped (SIGSTOP)" in log
    assert "in launch" in log.partition(f"stacks of rank {1 - stopped} ")[2]  # the step that it is in
    assert training.losses == undisturbed.losses


def test_kills_at_any_time_of_rank_agent_or_supervisor_change_nothing(corpus, undisturbed, tmp_path):
    training = Training(corpus, tmp_path / "run", max_restarts=KILLS, grace_seconds=5)
    training.start()
    for number in range(KILLS):
        seen = len(training.rows("step"))
        # In mid-training, but for every fourth: while it starts.
        if number % 4:
            until(lambda n=seen + 7 * number % 40: len(training.rows("step")) > n or training.result, "steps")
        if training.result:
            break
        members = attempts.members(training.run_dir)
        victims = [rank.pid for rank in read_ranks(training.run_dir) if rank.pid in members] or members
        if number % 5 == 2:
            victims = [supervisor().pid]
        elif number % 5 == 4:
            victims = [child.pid for child in supervisor().children()]
        if victims:
            os.kill(victims[number % len(victims)], signal.SIGKILL)
    training.join(400)
    assert training.result, training.error
    assert training.result["status"] == "completed"
    assert training.losses == undisturbed.losses
    every = {}
    for row in training.rows("step"):
        every.setdefault(row["step"], set()).add(row["values"]["train/loss"])
    assert all(len(losses) == 1 for losses in every.values())
    assert attempts.members(training.run_dir) == []
