"""Checkpoints that somebody else made: whole by their hashes, and nothing in them is executed."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from lmcore.errors import CheckpointError
from lmcore.parallel.mesh import World
from lmcore.store import hash_files, sha256_file
from lmcore.train.checkpoint import COMMIT, MANIFEST, STATE, Checkpoints, TrainingState
from lmcore.train.shards import INDEX, ShardReader

ALONE = World(0, 1, torch.device("cpu"))


class Evil:
    """Calls ``call`` when it is unpickled."""

    def __init__(self, call, *arguments):
        self.made = call, arguments

    def __reduce__(self):
        return self.made


def save(folder, step, value=None):
    tensors = {"w": torch.full((64,), float(step if value is None else value)), "b": torch.zeros(2)}
    return Checkpoints(folder, ALONE, 5).save(tensors, TrainingState(step, {}, {}))


def load(folder):
    passed, tensors = [], {"w": torch.zeros(64), "b": torch.ones(2)}
    state = Checkpoints(folder, ALONE, 5).load_newest(
        lambda: tensors, {}, lambda *what: passed.append(": ".join(what))
    )
    return state, passed, float(tensors["w"][0])


def make_whole(path):
    """Let manifest and COMMIT vouch for what is there."""
    (path / COMMIT).unlink()
    (path / MANIFEST).write_text(json.dumps({"files": hash_files(path)}))
    (path / COMMIT).write_text(sha256_file(path / MANIFEST))


def unpickle(path):
    return pickle.loads((path / INDEX).read_bytes())  # noqa: S301 - one that was just written


def edit_index(path, change):
    index = unpickle(path)
    (path / INDEX).write_bytes(pickle.dumps(change(index)))


CALLS = {
    "a command": lambda canary: Evil(os.system, f"touch {canary}"),
    "a file": lambda canary: Evil(open, str(canary), "w"),
    "eval": lambda canary: Evil(eval, f"open({str(canary)!r}, 'w')"),
    "torch's own loader": lambda canary: Evil(torch.load, str(canary)),
    "a path that writes": lambda canary: Evil(Path.touch, canary),
}


@pytest.mark.parametrize("what", CALLS)
def test_an_index_that_calls_something_is_never_executed(tmp_path, what):
    canary = tmp_path / "canary"
    save(tmp_path, 10)
    crafted = save(tmp_path, 20)
    (crafted / INDEX).write_bytes(pickle.dumps(CALLS[what](canary)))
    make_whole(crafted)
    state, passed, value = load(tmp_path)
    assert not canary.exists()
    assert (state.step, value) == (10, 10.0)
    assert "names" in passed[0]
    assert "a pickle may run anything" in passed[0]


def test_a_call_inside_an_index_that_is_one_else_is_not_executed(tmp_path):
    canary, crafted = tmp_path / "canary", save(tmp_path, 20)
    index = unpickle(crafted)
    index.planner_data = Evil(os.system, f"touch {canary}")
    (crafted / INDEX).write_bytes(pickle.dumps(index))
    make_whole(crafted)
    state, passed, _ = load(tmp_path)
    assert state is None
    assert len(passed) == 1
    assert not canary.exists()


def test_an_entry_that_is_called_no_tensor_is_not_unpickled(tmp_path):
    canary, crafted = tmp_path / "canary", save(tmp_path, 20)

    def change(index):
        index.state_dict_metadata["w"] = BytesStorageMetadata()
        return index

    edit_index(crafted, change)
    shard = next(crafted.glob("*.distcp"))
    shard.write_bytes(pickle.dumps(Evil(os.system, f"touch {canary}")).ljust(shard.stat().st_size, b"\0"))
    make_whole(crafted)
    state, passed, _ = load(tmp_path)
    assert state is None
    assert "BytesStorageMetadata" in passed[0]
    assert not canary.exists()


def test_a_shard_that_is_a_pickle_is_refused(tmp_path):
    canary, crafted = tmp_path / "canary", save(tmp_path, 20)
    shard = next(crafted.glob("*.distcp"))
    size = shard.stat().st_size
    torch.save({"w": Evil(os.system, f"touch {canary}")}, shard)
    shard.write_bytes(shard.read_bytes().ljust(size, b"\0")[:size])
    make_whole(crafted)
    with pytest.raises(CheckpointError):
        load(tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize("place", ["../other/secret", "/etc/hostname", "manifest.json/..", "absent.distcp"])
def test_an_index_does_not_point_outside_of_its_checkpoint(tmp_path, place):
    crafted = save(tmp_path, 20)

    def change(index):
        for entry in index.storage_data.values():
            entry.relative_path = place
        return index

    edit_index(crafted, change)
    make_whole(crafted)
    state, passed, _ = load(tmp_path)
    assert state is None
    assert repr(place) in passed[0]


def test_an_index_of_today_is_read_whole(tmp_path):
    path = save(tmp_path, 20)
    ours, theirs = ShardReader(path).read_metadata(), unpickle(path)
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


@pytest.mark.parametrize("other", ["step-00000099", "step-00000020", "step-00000001"])
def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path, other):
    first, second = save(tmp_path, 10), save(tmp_path, 20)
    shutil.rmtree(second.with_name(other), ignore_errors=True)
    shutil.copytree(first, second.with_name(other))
    state, passed, value = load(tmp_path)
    expected = 20 if second.exists() and other != "step-00000020" else 10
    assert (state.step, value) == (expected, float(expected))
    assert any("copy of step-00000010" in text for text in passed) == (other > "step-00000010")


def test_a_checkpoint_says_which_run_wrote_it(tmp_path):
    ours, theirs = tmp_path / "a", tmp_path / "b"
    path = save(ours, 10)
    save(theirs, 5)
    shutil.copytree(path, theirs / "checkpoints" / path.name)
    state, _, _ = load(theirs)
    assert state.step == 10
    assert state.run == Checkpoints(ours, ALONE, 1).run_id() != Checkpoints(theirs, ALONE, 1).run_id()
    # A run directory that is copied or moved whole stays the same run.
    shutil.copytree(ours, tmp_path / "c")
    assert load(tmp_path / "c")[0].run == Checkpoints(tmp_path / "c", ALONE, 1).run_id()


def test_a_checkpoint_of_a_version_that_named_no_run_is_read(tmp_path):
    path = save(tmp_path, 10)
    state = json.loads((path / STATE).read_text())
    del state["run"]
    (path / STATE).write_text(json.dumps(state))
    make_whole(path)
    assert load(tmp_path)[0].run == ""
