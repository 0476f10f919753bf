"""Checkpoints: what was just saved stays, damage is set aside, a full disk is told."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmcore.errors import CheckpointError, StorageError
from lmcore.parallel.mesh import World
from lmcore.store import hash_files
from lmcore.train.checkpoint import SPARE_BYTES, Checkpoints, TrainingState

ALONE = World(0, 1, torch.device("cpu"))


def save(checkpoints, step):
    state = TrainingState(step=step, loss_scale={}, belongs_to={"seed": 0})
    return checkpoints.save({"w": torch.full((64,), float(step))}, state)


def load(checkpoints, passed_over=None):
    passed_over = [] if passed_over is None else passed_over
    tensors = {"w": torch.zeros(64)}
    state = checkpoints.load_newest(lambda: tensors, {"seed": 0}, lambda name, what: passed_over.append(name))
    assert state is None or tensors["w"].eq(state.step).all()
    return state and state.step


def damage(path):
    (path / "state.json").write_text("{}")


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_saved_stays_whatever_was_damaged(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, ALONE, keep)
    for step in (50, 100):
        damage(save(checkpoints, step))
    passed_over = []
    assert load(checkpoints, passed_over) is None
    assert len(passed_over) == keep
    assert save(checkpoints, 30).is_dir()
    assert load(checkpoints) == 30
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000030"]


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, keep=2)
    for step in (10, 20, 30, 40):
        save(checkpoints, step)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000030", "step-00000040"]


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, keep=2)
    save(checkpoints, 10)
    bad = save(checkpoints, 20)

    def hash_files_of_a_bad_disk(path):
        if path == bad:
            raise OSError(errno.EIO, "Input/output error")
        return hash_files(path)

    monkeypatch.setattr("lmcore.train.checkpoint.hash_files", hash_files_of_a_bad_disk)
    passed_over = []
    assert load(checkpoints, passed_over) == 10
    assert passed_over == ["step-00000020"]


def test_settings_of_another_run_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, keep=2)
    save(checkpoints, 10)
    with pytest.raises(CheckpointError, match="seed 1"):
        checkpoints.load_newest(dict, {"seed": 1}, print)


@pytest.mark.long
def test_what_the_main_process_reads_alone_is_no_stall(tmp_path):
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = Path(__file__).with_name("slow_main.py")
    done = subprocess.run([*agent, program, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 24 MB; needs root, which CI has."""
    if os.geteuid() != 0:
        assert not os.environ.get("CI"), "CI must run this as root"
        pytest.skip("LOUDLY: mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_replicas_need_the_room_of_one(tiny_disk, make_run):
    model = {"num_layers": 1, "hidden_size": 128}  # 240,000 weights: 3 MB with AdamW's state
    settings = {"optimizer": {"name": "adamw"}, "micro_batch_size": 2}
    run = make_run(model=model, dp_replicate=2, **settings)
    on_disk = type(run)(tiny_disk / "run", run.job)
    with (tiny_disk / "other").open("wb") as other:
        other.write(b"x" * (shutil.disk_usage(tiny_disk).free - SPARE_BYTES - 4_500_000))
    on_disk.finish()
    assert "Warning" not in on_disk.log
    assert sum(path.stat().st_size for path in (on_disk.directory / "checkpoints").rglob("*")) < 4_000_000


def test_a_full_disk_keeps_what_was_saved(tiny_disk):
    checkpoints = Checkpoints(tiny_disk, ALONE, keep=2)
    save(checkpoints, 10)
    (checkpoints.folder / ".build-of-a-killed-save").mkdir()
    with (tiny_disk / "other").open("wb") as other:
        other.write(b"x" * 10_000_000)
    with pytest.raises(StorageError, match="no room for a checkpoint"):
        save(checkpoints, 20)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000010"]
    (tiny_disk / "other").unlink()
    assert load(checkpoints) == 10
    save(checkpoints, 20)
    assert load(checkpoints) == 20


def test_a_disk_that_fills_up_while_saving_keeps_what_was_saved(tiny_disk, monkeypatch):
    checkpoints = Checkpoints(tiny_disk, ALONE, keep=2)
    save(checkpoints, 10)
    # Somebody else takes the room after it was looked for.
    monkeypatch.setattr(Checkpoints, "require_room", lambda self, tensors: None)
    with (tiny_disk / "other").open("wb") as other:
        other.write(b"x" * (shutil.disk_usage(tiny_disk).free - 400_000))
    big = TrainingState(step=20, loss_scale={}, belongs_to={"seed": 0})
    with pytest.raises(StorageError, match="full before checkpoint step-00000020"):
        checkpoints.save({"w": torch.zeros(1_000_000)}, big)
    assert load(checkpoints) == 10
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000010"]


def test_a_setting_that_is_newer_than_a_checkpoint_had_its_default(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, keep=2)
    save(checkpoints, 10)

    def load_for(value, defaults):
        belongs_to = {"seed": 0, "packing": value}
        return checkpoints.load_newest(lambda: {"w": torch.zeros(64)}, belongs_to, print, defaults)

    assert load_for("chunk", {"seed", "packing"}).step == 10
    with pytest.raises(CheckpointError, match="expected packing best_fit, found packing null"):
        load_for("best_fit", {"seed"})
