"""The store: whole or not at all, reused when equal, and able to say why not."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from hashlib import sha256

import pytest

from lmcore.config import Identity
from lmcore.errors import StorageError
from lmcore.store import Stage, Store, hash_files, write_atomically


def make_stage(steps=10, *, version=1, default=10, inputs=None):
    chosen = {} if steps == default else {"train.steps": steps}
    return Stage("demo", version, Identity({"train.steps": steps}, chosen), inputs or {"data": "d1"})


def build(directory):
    (directory / "sub").mkdir()
    (directory / "sub" / "values.bin").write_bytes(b"\x00\x01" * 1000)
    (directory / "note.txt").write_text("made")
    return {"rows": 3}


def never(directory):
    raise AssertionError("should have been reused")


def test_a_stage_is_built_once_and_then_reused(tmp_path):
    store = Store(tmp_path)
    first = store.ensure(make_stage(), build)
    second = store.ensure(make_stage(), never)
    assert (first.status, second.status) == ("built", "reused")
    assert first.path == second.path
    assert first.digest == second.digest
    assert second.summary == {"rows": 3}
    assert store.explain(make_stage())[0].key == first.key
    assert store.find("demo", first.key[:10]).path == first.path


def sources_stage(*sources):
    settings = {"data.sources": list(sources), "table": {"file": "x" * 80, "sub": {"deep": [1, 2]}}}
    return Stage("demo", 1, Identity(settings, settings), {})


def test_what_is_another_within_a_setting_is_named(tmp_path):
    store = Store(tmp_path)
    source = {"name": "docs", "path": "data/a/long/path/that/alone/would/fill/a/line/*.jsonl", "max_bytes": 0}
    store.ensure(sources_stage(source), build)
    for sources, reason in (
        ([source | {"max_bytes": 7}], "data.sources.0.max_bytes went from 0 to 7"),
        ([source, source], "data.sources went from 1 to 2 entries"),
        ([source | {"path": "data/b" * 20}], "data.sources.0.path is another"),
        ([source | {"max_bytes": "data/b" * 20}], "data.sources.0.max_bytes is another"),
    ):
        assert store.explain(sources_stage(*sources))[1] == reason


def test_a_reason_stays_short_and_the_nearest_is_that_of_the_fewest_settings(tmp_path):
    store = Store(tmp_path)
    entries = [{"name": f"docs-{i}", "max_bytes": i} for i in range(40)]
    store.ensure(sources_stage(*entries), build)
    store.ensure(Stage("demo", 2, sources_stage(*entries[::-1], entries[0]).identity, {}), build)
    assert store.explain(sources_stage(*entries[::-1]))[1] == (
        "data.sources.0.max_bytes went from 0 to 39; data.sources.0.name went from docs-0 to docs-39; "
        "data.sources.1.max_bytes went from 1 to 38; and 77 more in data.sources"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": 20}, "train.steps went from 10 to 20"),
        ({"version": 2}, "stage version went from 1 to 2"),
        ({"inputs": {"data": "d2"}}, "input data changed"),
    ],
)
def test_a_rebuild_says_why(tmp_path, change, reason):
    store = Store(tmp_path)
    assert store.ensure(make_stage(), build).reason == "nothing built before"
    assert store.explain(make_stage(**change)) == (None, reason)
    assert store.ensure(make_stage(**change), build).reason == reason


def test_who_has_it_built_may_say_why_but_not_of_what_was_damaged_or_is_reused(tmp_path):
    store = Store(tmp_path)
    built = store.ensure(make_stage(), build, why="as a test")
    assert built.reason == "as a test"
    assert store.ensure(make_stage(), never, why="as a test").reason == ""
    (built.path / "manifest.json").write_text("{}")
    assert "was damaged" in store.ensure(make_stage(), build, why="as a test").reason


def test_the_nearest_earlier_artifact_is_compared(tmp_path):
    store = Store(tmp_path)
    store.ensure(make_stage(20, version=2, inputs={"data": "d9"}), build)
    store.ensure(make_stage(30), build)
    assert store.ensure(make_stage(40), build).reason == "train.steps went from 30 to 40"


def test_a_new_field_with_a_default_keeps_old_work(tmp_path):
    store = Store(tmp_path)
    old = store.ensure(make_stage(), build)
    grown = Stage("demo", 1, Identity({"train.steps": 10, "train.new": 1}, {}), {"data": "d1"})
    assert store.ensure(grown, never).key == old.key
    chosen = Stage("demo", 1, Identity({"train.steps": 10, "train.new": 2}, {"train.new": 2}), {"data": "d1"})
    assert store.explain(chosen) == (None, "train.new, not a setting then, is 2")
    store.ensure(chosen, build)
    assert store.explain(make_stage(20))[1] == "train.steps went from 10 to 20"


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add", "manifest", "summary", "inner"])
def test_damage_is_noticed_set_aside_and_mended(tmp_path, damage):
    store = Store(tmp_path)
    first = store.ensure(make_stage(), build)
    victim = first.path / "sub" / "values.bin"
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[777] ^= 4
        victim.write_bytes(content)
    elif damage == "truncate":
        os.truncate(victim, 5)
    elif damage == "delete":
        victim.unlink()
    elif damage == "add":
        (first.path / "extra").write_text("x")
    elif damage == "summary":  # a manifest that reads well and says something else
        manifest = first.path / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"rows": 3', '"rows": 4'))
    elif damage == "inner":  # a file that is only named like a manifest
        (first.path / "sub" / "manifest.json").write_text("{}")
    else:
        (first.path / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        store.find("demo", first.key)
    again = store.ensure(make_stage(), build)
    assert again.status == "built"
    assert "damaged" in again.reason or "manifest" in again.reason
    assert again.digest == first.digest
    assert store.ensure(make_stage(), never).status == "reused"


@pytest.mark.parametrize("sizes", [(), (7,), (0, 5_000_000, 3), (5_000_000, 4_000_000, 1)])
def test_files_of_all_sizes_are_hashed(tmp_path, sizes):
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number + 1]) * size)
    assert hash_files(tmp_path) == {
        f"{number}.bin": {"bytes": size, "sha256": sha256(bytes([number + 1]) * size).hexdigest()}
        for number, size in enumerate(sizes)
    }


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(directory):
        (directory / "half").write_text("half")
        raise ValueError("no")

    store = Store(tmp_path)
    with pytest.raises(ValueError, match="no"):
        store.ensure(make_stage(), fail)
    assert store.manifests("demo") == []
    assert not list((tmp_path / "demo").glob(".build-*"))


SLOW_BUILD = """
    import pathlib, sys, time
    from lmcore.config import Identity
    from lmcore.store import Stage, Store

    def build(directory):
        (directory / "one").write_text("1")
        pathlib.Path(sys.argv[2]).write_text("begun")
        time.sleep(float(sys.argv[3]))
        (directory / "two").write_text("2")
        return {}

    stage = Stage("demo", 1, Identity({}, {}), {})
    artifact = Store(pathlib.Path(sys.argv[1])).ensure(stage, build)
    print(artifact.status)
"""


def start_slow_build(root, mark, seconds):
    command = [sys.executable, "-c", textwrap.dedent(SLOW_BUILD), str(root), str(mark), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path, seconds=30):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path):
    mark = tmp_path / "mark"
    process = start_slow_build(tmp_path / "store", mark, 60)
    wait_for(mark)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store(tmp_path / "store")
    assert store.manifests("demo") == []
    assert list((tmp_path / "store" / "demo").glob(".build-*"))
    artifact = store.ensure(Stage("demo", 1, Identity({}, {}), {}), build)
    assert artifact.status == "built"
    assert not list((tmp_path / "store" / "demo").glob(".build-*"))


def test_two_processes_build_once(tmp_path):
    first = start_slow_build(tmp_path / "store", tmp_path / "mark1", 0.5)
    wait_for(tmp_path / "mark1")
    second = start_slow_build(tmp_path / "store", tmp_path / "mark2", 0.5)
    waits = []
    stage = Stage("demo", 1, Identity({}, {}), {})
    third = Store(tmp_path / "store", on_wait=lambda: waits.append("waited")).ensure(stage, never)
    assert (third.status, waits) == ("reused", ["waited"])
    outcomes = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
    assert outcomes == ["built", "reused"]


def test_losing_a_race_takes_the_winners_copy(tmp_path):
    store = Store(tmp_path)

    def raced(directory):
        # Another machine, whose locks we cannot see, commits the same key first.
        target = directory.parent / directory.name.removeprefix(".build-").rsplit("-", 1)[0]
        other = Store(tmp_path / "elsewhere").ensure(make_stage(), build)
        other.path.rename(target)
        return build(directory)

    artifact = store.ensure(make_stage(), raced)
    assert artifact.digest == store.find("demo", artifact.key).digest
    assert not list((tmp_path / "demo").glob(".build-*"))


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        Store(blocked).ensure(make_stage(), build)


def test_a_folder_that_a_build_cannot_read_is_not_the_stores_fault(tmp_path):
    def build_from_elsewhere(directory):
        raise PermissionError(13, "Permission denied", str(tmp_path / "elsewhere" / "raw.txt"))

    with pytest.raises(PermissionError, match=r"raw\.txt"):
        Store(tmp_path / "store").ensure(make_stage(), build_from_elsewhere)


def test_atomic_writes_replace_whole_files(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]
