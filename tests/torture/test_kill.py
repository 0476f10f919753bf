"""The command is killed again and again; what comes out is what an undisturbed run makes."""

import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from lmcore.home import VARIABLE

KILLS = 8
STEPS = 60


def longer(mill):
    recipe = yaml.safe_load(mill.recipe.read_text())
    recipe["train"] |= {"steps": STEPS, "checkpoint_every": 10, "validate_every": 20}
    mill.recipe.write_text(yaml.safe_dump(recipe))
    return mill


def processes_of(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(VARIABLE) == str(home) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def until_gone(home: Path, seconds: float = 90) -> None:
    """Wait until nothing is left; processes that save have launch.grace_seconds, which are 60."""
    deadline = time.monotonic() + seconds
    while left := processes_of(home):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)


def weights(summary: dict) -> str:
    return hashlib.sha256((Path(summary["model_path"]) / "model.safetensors").read_bytes()).hexdigest()


def test_killed_at_any_moment_the_result_is_the_same(make_mill):
    straight = longer(make_mill("straight"))
    expected = straight.run()

    mill, draw = longer(make_mill("killed")), random.Random(11)
    whole = expected["wall_seconds"]
    for _ in range(KILLS):
        process = mill.start("run", str(mill.recipe))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0.2, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        until_gone(mill.home)
    found = mill.run()

    assert weights(found) == weights(expected)
    for name in ("documents", "val_bits_per_byte", "train_tokens"):
        assert found[name] == expected[name]
    assert {s["stage"]: s["key"] for s in found["stages"][:4]} == {
        s["stage"]: s["key"] for s in expected["stages"][:4]
    }
    assert not list((mill.home / "store").glob("*/.build-*"))
    with sqlite3.connect(mill.home / "mlflow.db") as database:
        steps = database.execute("select step from metrics where key = 'train/loss' order by step").fetchall()
        assert [step for (step,) in steps] == list(range(1, STEPS + 1))
        states = dict(database.execute("select status, count(*) from runs group by status").fetchall())
        assert "RUNNING" not in states, states


def test_a_stop_request_saves_and_the_same_command_goes_on(make_mill):
    mill = longer(make_mill("stopped"))
    process = mill.start("run", str(mill.recipe), "--set", "train.steps=4000")
    deadline = time.monotonic() + 120
    while not list(mill.home.glob("runs/train-*/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Traceback" not in error
    until_gone(mill.home)
    (result,) = mill.home.glob("runs/train-*/result.json")
    told = json.loads(result.read_text())
    assert told["status"] == "preempted"
    found = mill.run("--set", "train.steps=4000")
    assert found["train_tokens"] == 4000 * 512
    events = (result.parent / "events.jsonl").read_text().splitlines()
    resumed = [row["step"] for row in map(json.loads, events) if row["kind"] == "resume"]
    assert resumed == [told["step"]]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 20 MB; needs root, which CI has."""
    if os.geteuid() != 0:
        assert not os.environ.get("CI"), "CI must run this as root"
        pytest.skip("LOUDLY: mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_before_work_begins(make_mill, small_disk):
    mill = make_mill("full")
    done = mill.call("run", str(mill.recipe), GRISTMILL_HOME=str(small_disk / "home"))
    assert done.returncode == 1
    assert "not enough room" in done.stderr
    assert "GRISTMILL_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_up_leaves_nothing_half_made(small_disk):
    from lmcore.config import Identity
    from lmcore.errors import StorageError
    from lmcore.store import Stage, Store

    def too_much(directory):
        with (directory / "big").open("wb") as file:
            for _ in range(40):
                file.write(b"x" * 1_000_000)
        return {}

    store, stage = Store(small_disk / "store"), Stage("demo", 1, Identity({}, {}), {})
    with pytest.raises(StorageError, match="No space left"):
        store.ensure(stage, too_much)
    assert store.manifests("demo") == []
    assert store.ensure(stage, lambda directory: {}).status == "built"
