"""A home that was moved or copied says where it is, and never writes into the one it is a copy of."""

import hashlib
import json
import shutil
import sqlite3

import pytest

from lmcore.errors import StorageError
from lmcore.home import Home
from tasks import runs
from tasks.relocation import BACKUP, RECORD, mend_text, settle, use_files, use_server
from tasks.tracking import Tracker


def contents(home):
    return {
        str(path.relative_to(home.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in home.root.rglob("*")
        if path.is_file()
    }


def make_run(home, name, **fields):
    run_dir = home.runs / name
    runs.open_run(
        run_dir,
        name=name,
        kind="train",
        experiment="test",
        tags={"gristmill.run_dir": str(run_dir)},
        **fields,
    )
    (run_dir / "log.txt").write_text(name)
    runs.update_run(run_dir, files={"log.txt": str(run_dir / "log.txt")})
    return run_dir


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A home in a folder with a name that an address must quote."""
    home = Home(tmp_path_factory.mktemp("a b é%") / "home")
    tracker = Tracker("", home)
    parent = make_run(home, "pipeline-a")
    child = make_run(home, "train-a", parent=str(parent))
    runs.close_run(child, "finished")
    runs.close_run(parent, "finished")
    for run_dir in (parent, child):
        tracker.sync(run_dir)
    tracker.client._tracking_client.store.engine.dispose()
    return home


def addresses(home):
    with sqlite3.connect(home.mlflow_database) as database:
        rows = database.execute("select artifact_location from experiments where name = 'test'").fetchall()
        return [row[0] for row in rows + database.execute("select artifact_uri from runs").fetchall()]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("moved", [True, False])
def test_what_a_copy_writes_is_its_own(template, tmp_path, recorded, moved):
    original, copy = Home(tmp_path / "first" / "home"), Home(tmp_path / "other" / "home")
    shutil.copytree(template.root, original.root)
    settle(original)
    if not recorded:  # a home of an earlier commit
        (original.root / RECORD).unlink()
    before = contents(original)
    copy.root.parent.mkdir()
    shutil.move(original.root, copy.root) if moved else shutil.copytree(original.root, copy.root)
    assert str(original.root) in settle(copy)
    assert settle(copy) == ""
    assert all(address.startswith(copy.root.as_uri()) for address in addresses(copy))
    assert (copy.root / BACKUP).is_file()
    tracker = Tracker("", copy)
    child = copy.runs / "train-a"
    run_id = tracker.run_id(child)
    assert run_id  # what was told is not told again
    (child / "log.txt").write_text("more")
    runs.update_run(child, tags={"new": "tag"})
    assert tracker.sync(child, sure=True) == run_id
    assert tracker.client.get_run(run_id).data.tags["new"] == "tag"
    later = make_run(copy, "train-b", parent=str(copy.runs / "pipeline-a"))
    runs.close_run(later, "finished")
    assert tracker.sync(later)
    if moved:
        assert not original.root.exists()
    else:
        assert contents(original) == before


def test_a_home_that_only_a_server_used_is_known_by_its_runs(template, tmp_path):
    copy = Home(tmp_path / "copy")
    shutil.copytree(template.root, copy.root)
    (copy.root / RECORD).unlink(missing_ok=True)
    use_server(template)
    try:
        shutil.copy2(template.mlflow_database, copy.mlflow_database)
    finally:
        use_files(template)
    assert str(template.root) in settle(copy)
    record = json.loads((copy.runs / "train-a" / "tracking.json").read_text())
    assert record["parent"] == str(copy.runs / "pipeline-a")


def test_addresses_are_relative_while_a_server_is_up_and_the_same_after_it(template):
    before = addresses(template)
    use_server(template)
    assert all(address.startswith("mlflow-artifacts:/test") for address in addresses(template))
    use_files(template)
    assert addresses(template) == before


def test_records_of_the_original_s_servers_are_dropped(template, tmp_path):
    copy = Home(tmp_path / "copy")
    shutil.copytree(template.root, copy.root)
    copy.services.mkdir()
    (copy.services / "mlflow.json").write_text("{}")
    settle(copy)
    assert not list(copy.services.glob("*.json"))


def test_a_database_in_use_changes_nothing(template, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.relocation._BUSY_SECONDS", 0.1)
    copy = Home(tmp_path / "copy")
    shutil.copytree(template.root, copy.root)
    before = addresses(copy)
    with sqlite3.connect(copy.mlflow_database, isolation_level=None) as other:
        other.execute("begin exclusive")
        with pytest.raises(StorageError, match="cannot be told"):
            settle(copy)
    assert addresses(copy) == before
    assert settle(copy)


def test_only_what_lies_in_the_home_is_changed():
    old, new = "/a/home", "/b/new home"
    assert mend_text("/a/home/runs/x", old, new) == "/b/new home/runs/x"
    assert mend_text("file:///a/home/mlflow/x", old, new) == "file:///b/new%20home/mlflow/x"
    assert json.loads(mend_text('{"uri": "/a/home/store"}', old, new)) == {"uri": "/b/new home/store"}
    for other in ("/a/homes/x", "/z/a/home/x", "said /a/home/x", "s3://a/home", "mlflow-artifacts:/1"):
        assert mend_text(other, old, new) == other
