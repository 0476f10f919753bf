"""Every change of the disk in a save fails, or is the last: the old or the new is there, never a mix.

A sample of them here; all of them in the long runs.
"""

import shutil

import pytest
import torch
from faulty_disk import KINDS, in_a_child

from lmcore.config import Identity
from lmcore.parallel.mesh import World
from lmcore.store import Stage, Store
from lmcore.train.checkpoint import Checkpoints, TrainingState

ALONE = World(0, 1, torch.device("cpu"))
STAGE = Stage("demo", 1, Identity({}, {}), {}, deciding=())


def tensors(value):
    return {f"w{i}": torch.full((64, 8), float(value)) for i in range(3)}


def save(folder, step, value=None):
    value = step if value is None else value
    return Checkpoints(folder, ALONE, 2).save(tensors(value), TrainingState(step, {}, {}))


def load(folder):
    """Step and values of the checkpoint that a run would go on from, and what it passed over."""
    got, passed = tensors(-1), []
    state = Checkpoints(folder, ALONE, 2).load_newest(lambda: got, {}, lambda name, what: passed.append(name))
    return state and state.step, {float(x) for t in got.values() for x in t.flatten()}, passed


def faults(work, folder, every, begin):
    """Yield what came of ``work`` for every ``every``-th change and each fault, and of torn writes."""
    begin()
    changes, told = in_a_child(work, folder)
    assert told == "ok"
    assert changes > 10
    for number in range(1 + every // 2, changes + 1, every):
        for kind in KINDS:
            for lasting in (False, True) if kind != "kill" else (False,):
                begin()
                yield (number, kind, lasting), in_a_child(work, folder, number, kind, lasting=lasting)[1]
    for size in (0, 10, 700, 1500, 3000)[:: min(every, 2)]:
        begin()
        yield ("torn", size), in_a_child(work, folder, max_file_bytes=size)[1]


EVERY = [5, pytest.param(1, marks=pytest.mark.long)]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize(("step", "value"), [(30, 30.0), (20, 21.0)], ids=["new step", "the same step again"])
def test_a_save_that_fails_leaves_the_old_or_the_new(tmp_path, step, value, every):
    run = tmp_path / "run"
    whole = tmp_path / "whole"
    for before in (10, 20):
        save(whole, before)

    def begin():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)

    for fault, told in faults(lambda: save(run, step, value), run, every, begin):
        found, values, passed = load(run)
        assert (found, values) in [(20, {20.0}), (step, {value})], (fault, told)
        assert passed == [], (fault, told)
        if told == "ok":
            assert values == {value}, fault
        else:
            assert told == "died" or told.startswith("StorageError: the disk "), (fault, told)
            assert told == "died" or (str(run) in told and "MB free" in told), (fault, told)
        # The next save goes on as if nothing had been.
        save(run, 40)
        assert load(run)[:2] == (40, {40.0}), fault
        assert not [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")], fault


@pytest.mark.parametrize("every", EVERY)
def test_a_build_that_fails_leaves_an_artifact_or_none(tmp_path, every):
    root = tmp_path / "store"

    def build(out):
        (out / "sub").mkdir()
        (out / "a.txt").write_text("a" * 5000)
        (out / "sub" / "b.txt").write_text("b" * 5000)
        return {"rows": 2}

    def work():
        Store(root).ensure(STAGE, build)

    for fault, told in faults(work, root, every, lambda: shutil.rmtree(root, ignore_errors=True)):
        found, _ = Store(root).explain(STAGE)
        assert found or told != "ok", fault
        assert told in ("ok", "died") or (told.startswith("StorageError: ") and "MB free" in told), (
            fault,
            told,
        )
        again = Store(root).ensure(STAGE, build)
        assert (again.path / "a.txt").read_text() == "a" * 5000
        assert (again.path / "sub" / "b.txt").read_text() == "b" * 5000
        assert not list(root.glob("demo/.build-*")), fault
