"""MLflow is made to agree with the run directories: real databases, a real server that goes away."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from lmcore.config import Recipe
from lmcore.errors import ConfigError, DataError, GristmillError, ServiceError
from lmcore.home import Home
from tasks import runs
from tasks.registry import _register
from tasks.tracking import Follower, Tracker, sync_all
from tasks.tracking_registry import Candidate, Registry


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def tracker(home):
    return Tracker("", home)


def start_run(home, name="train-a", **fields):
    run_dir = home.runs / name
    runs.open_run(run_dir, name=name, kind="train", experiment="test", **fields)
    return run_dir


def append_steps(run_dir, first, last, *, at=1000.0):
    with (run_dir / "events.jsonl").open("a") as file:
        for step in range(first, last + 1):
            values = {"train/loss": 5.0 / step, "train/tokens": float(step * 64)}
            row = {"kind": "step", "step": step, "tokens": step * 64, "time": at + step, "values": values}
            file.write(json.dumps(row) + "\n")


def history(tracker, run_id, key="train/loss"):
    return [(metric.step, metric.value) for metric in tracker.client.get_metric_history(run_id, key)]


def test_a_run_appears_with_all_that_its_record_says(home, tracker, tmp_path):
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"png")
    parent = start_run(home, "pipeline-a")
    run_dir = start_run(
        home,
        parent=str(parent),
        tags={"gristmill.git_commit": "abc"},
        params={"train.steps": "3"},
        files={"figures/loss.png": str(picture)},
        datasets=[
            runs.Dataset(
                name="d", digest="0" * 32, source="/data", context="training", profile={"num_tokens": 5}
            )
        ],
    )
    append_steps(run_dir, 1, 3)
    parent_id = tracker.sync(parent)
    run_id = tracker.sync(run_dir)
    run = tracker.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["mlflow.parentRunId"] == parent_id
    assert run.data.tags["gristmill.git_commit"] == "abc"
    assert run.data.params == {"train.steps": "3"}
    assert run.inputs.dataset_inputs[0].dataset.digest == "0" * 32
    assert [a.path for a in tracker.client.list_artifacts(run_id, "figures")] == ["figures/loss.png"]
    assert history(tracker, run_id) == [(1, 5.0), (2, 2.5), (3, 5 / 3)]
    runs.update_run(run_dir, metrics={"eval/bits_per_byte": 1.25}, metrics_step=3)
    runs.close_run(run_dir, "finished")
    assert tracker.sync(run_dir) == run_id
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/bits_per_byte"] == 1.25


def test_more_settings_than_a_batch_may_hold_all_arrive(home, tracker):
    params = {f"data.sources.{number}.path": f"data/{number}" for number in range(250)} | {"long": "x" * 9000}
    run_dir = start_run(home, params=params)
    found = tracker.client.get_run(tracker.sync(run_dir)).data.params
    assert found == params | {"long": "x" * 6000}


def test_events_arrive_once_whatever_is_repeated(home, tracker):
    run_dir = start_run(home)
    append_steps(run_dir, 1, 700)
    run_id = tracker.sync(run_dir)
    tracker.sync(run_dir)
    append_steps(run_dir, 601, 900, at=9000.0)  # a resumed run replays 100 steps, at other times
    assert Tracker("", home).sync(run_dir) == run_id  # and another process follows it
    assert [step for step, _ in history(tracker, run_id)] == list(range(1, 901))


def test_a_watermark_that_was_lost_duplicates_nothing(home, tracker):
    run_dir = start_run(home)
    append_steps(run_dir, 1, 50)
    run_id = tracker.sync(run_dir)
    for path in run_dir.glob("tracking-*.json"):
        path.unlink()  # as if the process had died before it could save it
    assert tracker.sync(run_dir) == run_id
    assert len(history(tracker, run_id)) == 50


def test_runs_of_dead_processes_are_closed(home, tracker):
    run_dir = start_run(home)
    tracker.sync(run_dir)
    runs.update_run(run_dir, pid_started=1.0)  # another process has this number now
    assert sync_all(tracker) == [run_dir]
    assert tracker.client.get_run(tracker.run_id(run_dir)).info.status == "KILLED"
    assert sync_all(tracker) == []


def test_a_second_attempt_with_other_settings_is_the_same_run(home, tracker):
    run_dir = start_run(home, params={"parallel.dp_replicate": "2"})
    append_steps(run_dir, 1, 3)
    runs.close_run(run_dir, "failed")
    run_id = tracker.sync(run_dir)
    start_run(home, params={"parallel.dp_replicate": "1", "parallel.dp_shard": "1"})  # MLflow's cannot change
    append_steps(run_dir, 4, 6)
    runs.close_run(run_dir, "finished")
    assert tracker.sync(run_dir) == run_id
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"parallel.dp_replicate": "2", "parallel.dp_shard": "1"}
    assert [step for step, _ in history(tracker, run_id)] == list(range(1, 7))


def test_what_one_run_lacks_does_not_keep_the_others_waiting(home, tracker, tmp_path):
    wrong = tmp_path / "b.txt"
    wrong.write_text("x")
    first = start_run(home, "train-a", files={"other-name.txt": str(wrong)})
    second = start_run(home, "train-b")
    for run_dir in (first, second):
        runs.close_run(run_dir, "finished")
    with pytest.raises(GristmillError, match=r"other-name\.txt"):
        sync_all(tracker)
    assert tracker.is_told(second)


def test_a_run_is_told_to_the_mlflow_it_belongs_to(home, tracker):
    elsewhere = Tracker("http://127.0.0.1:1", home)
    runs.close_run(start_run(home, "train-a", place=elsewhere.place), "finished")
    ours = start_run(home, "train-b", place=tracker.place)
    runs.close_run(ours, "finished")
    assert sync_all(tracker) == [ours]


def test_a_password_in_the_address_is_refused(home):
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        Tracker("https://me:secret@mlflow.example/", home)
    assert "secret" not in str(caught.value)


def test_what_is_no_address_is_refused(home):
    with pytest.raises(ConfigError, match="is no address of an MLflow"):
        Tracker("127.0.0.1:5000", home)


def test_a_follower_takes_on_runs_and_leaves_those_that_ended(home, tracker):
    flow, job = start_run(home, "pipeline-a"), start_run(home, "train-a", parent="")
    runs.update_run(job, parent=str(flow))
    with Follower(tracker, [flow], print, patience_seconds=0) as follower:
        append_steps(job, 1, 4)
        follower.add(job)
        runs.close_run(job, "finished")
        start_run(home, "train-a", parent=str(flow))  # a retry of the task opens it again
        follower.add(job)
        append_steps(job, 5, 8)
        runs.close_run(job, "finished")
        runs.close_run(flow, "finished")
    assert not follower.behind
    assert [step for step, _ in history(tracker, tracker.run_id(job))] == list(range(1, 9))
    assert tracker.client.get_run(tracker.run_id(job)).data.tags["mlflow.parentRunId"] == tracker.run_id(flow)
    assert tracker.is_told(flow)


def test_a_run_that_is_refused_does_not_keep_a_follower_from_the_others(home, tracker, tmp_path):
    wrong = tmp_path / "b.txt"
    wrong.write_text("x")
    first, second = start_run(home, "train-a", files={"other.txt": str(wrong)}), start_run(home, "train-b")
    warnings = []
    with Follower(tracker, [first, second], warnings.append, patience_seconds=3) as follower:
        runs.close_run(second, "finished")
    assert tracker.is_told(second)
    assert not tracker.is_told(first)
    assert "other.txt" in follower.behind
    assert len(warnings) == 1


def model_directory(folder):
    """Files of a model; those who register it read none of them."""
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(f"{name} of {folder.name}")
    return folder


def candidate(run_dir, digest, bits, data="data-1"):
    model = model_directory(run_dir.parent / digest)
    return Candidate(
        name="mill",
        model_path=str(model),
        model_digest=digest,
        bits_per_byte=bits,
        data_digest=data,
        seq_len=64,
        document_mask=False,
        split_seed=0,
        validation_fraction=0.1,
        metrics={"eval/bits_per_byte": bits},
        tags={"gristmill.stage.train": digest},
    )


def test_the_registry_keeps_one_version_a_model_and_moves_aliases(home, tracker):
    registry = Registry(tracker)
    run_dir = start_run(home)
    assert registry.champion("mill") is None
    first = registry.register(candidate(run_dir, "m1", 1.5), run_dir)
    assert registry.register(candidate(run_dir, "m1", 1.5), run_dir).version == first.version == "1"
    registry.challenge(first)
    assert registry.aliases(first) == ["challenger"]
    registry.crown(first)
    assert registry.aliases(first) == ["champion"]
    second = registry.register(candidate(run_dir, "m2", 1.4), run_dir)
    registry.challenge(second)
    champion = registry.champion("mill")
    assert (champion.version, champion.bits_per_byte, champion.model_path) == (
        "1",
        1.5,
        str(run_dir.parent / "m1"),
    )
    registry.crown(second)
    assert registry.champion("mill").version == "2"
    assert registry.aliases(first) == []
    models = tracker.client.search_logged_models([tracker.experiment_id("test")])
    assert {metric.value for model in models for metric in model.metrics} == {1.4, 1.5}


def delete_run(tracker, run_id):
    tracker.client.delete_run(run_id)


def purge_runs(tracker, run_id):
    for run in tracker.client.search_runs([tracker.experiment_id("test")]):
        tracker.client._tracking_client.store._hard_delete_run(run.info.run_id)  # as `mlflow gc` does


@pytest.mark.parametrize("lose", [delete_run, purge_runs])
def test_a_run_that_mlflow_lost_is_told_again_as_another(home, tracker, lose):
    parent = start_run(home, "pipeline-a")
    run_dir = start_run(home, parent=str(parent), params={"train.steps": "3"})
    append_steps(run_dir, 1, 3)
    lost, lost_parent = tracker.sync(run_dir), tracker.run_id(parent)
    lose(tracker, lost)
    append_steps(run_dir, 4, 6)
    run_id = tracker.sync(run_dir)
    assert run_id != lost
    assert [step for step, _ in history(tracker, run_id)] == list(range(1, 7))
    run = tracker.client.get_run(run_id)
    assert run.data.params == {"train.steps": "3"}
    assert run.data.tags["mlflow.parentRunId"] == tracker.run_id(parent)
    assert (tracker.run_id(parent) == lost_parent) == (lose is delete_run)
    assert tracker.sync(run_dir) == run_id


@pytest.mark.parametrize("lose", [delete_run, purge_runs])
def test_a_model_is_registered_though_mlflow_lost_its_evaluation(home, tracker, lose):
    run_dir = start_run(home)
    runs.close_run(run_dir, "finished")
    lose(tracker, tracker.sync(run_dir))
    version = Registry(tracker).register(candidate(run_dir, "m1", 1.5), run_dir)
    assert tracker.client.get_model_version("mill", version.version).run_id == tracker.run_id(run_dir)
    assert len(tracker.client.search_logged_models([tracker.experiment_id("test")])) == 1


def test_a_registration_that_was_cut_off_leaves_one_logged_model(home, tracker):
    registry, run_dir = Registry(tracker), start_run(home)
    registry.register(candidate(run_dir, "m1", 1.5), run_dir)
    tracker.client.delete_model_version("mill", "1")  # as if the process had died before it was made
    assert registry.register(candidate(run_dir, "m1", 1.5), run_dir).version == "2"
    assert len(tracker.client.search_logged_models([tracker.experiment_id("test")])) == 1
    outputs = tracker.client.get_run(tracker.run_id(run_dir)).outputs.model_outputs
    assert len(outputs) == 1


def test_figures_that_the_evaluation_has_are_no_second_row(home, tracker):
    run_dir = start_run(home, metrics={"eval/bits_per_byte": 1.5})
    tracker.sync(run_dir)
    Registry(tracker).register(candidate(run_dir, "m1", 1.5), run_dir)
    assert history(tracker, tracker.run_id(run_dir), "eval/bits_per_byte") == [(0, 1.5)]
    (model,) = tracker.client.search_logged_models([tracker.experiment_id("test")])
    assert [(metric.key, metric.value) for metric in model.metrics] == [("eval/bits_per_byte", 1.5)]


def test_a_model_that_moved_is_found_where_it_is(home, tracker):
    registry, run_dir = Registry(tracker), start_run(home)
    first = candidate(run_dir, "m1", 1.5)
    registry.crown(registry.register(first, run_dir))
    elsewhere = str(model_directory(home.root / "elsewhere"))
    moved = registry.register(first.model_copy(update={"model_path": elsewhere}), run_dir)
    assert (moved.version, moved.model_path) == ("1", elsewhere)
    assert registry.champion("mill").model_path == elsewhere


def test_a_champion_that_somebody_else_registered_is_not_passed_over(home, tracker):
    run_dir = start_run(home)
    tracker.client.create_registered_model("mill")
    tracker.client.create_model_version("mill", str(home.root))
    tracker.client.set_registered_model_alias("mill", "champion", "1")
    with pytest.raises(DataError, match="version 1 of mill"):
        Registry(tracker).champion("mill")
    registered = _register(Registry(tracker), Recipe(), candidate(run_dir, "m1", 1.5), run_dir, print)
    assert (registered.model_version, registered.aliases, registered.promoted) == ("2", ["challenger"], False)
    assert "the champion, version 1 of mill" in registered.reason
    assert tracker.client.get_model_version("mill", "1").aliases == ["champion"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(folder, port):
    folder.mkdir(exist_ok=True)
    command = [
        *(
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ),
        *(
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "a"),
        ),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except OSError:
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "MLflow did not start"
            time.sleep(0.1)


def stop_server(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.long
def test_a_server_that_is_away_is_caught_up_with(home, tmp_path):
    port = free_port()
    tracker = Tracker(f"http://127.0.0.1:{port}", home)
    run_dir = start_run(home, place=tracker.place)
    append_steps(run_dir, 1, 5)
    with pytest.raises(ServiceError, match="Nothing is lost"):
        tracker.sync(run_dir)

    warnings = []
    with Follower(tracker, [run_dir], warnings.append, patience_seconds=0) as follower:
        append_steps(run_dir, 6, 10)
        runs.close_run(run_dir, "finished")
    assert follower.behind
    assert len(warnings) == 1

    server = start_server(tmp_path / "server", port)
    try:
        assert sync_all(tracker) == [run_dir]
        run_id = tracker.run_id(run_dir)
        assert [step for step, _ in history(tracker, run_id)] == list(range(1, 11))
        assert tracker.client.get_run(run_id).info.status == "FINISHED"
        assert tracker.link(run_dir).endswith(run_id)
        stop_server(server)
        with pytest.raises(ServiceError):  # it went away between two runs of this process
            tracker.sync(start_run(home, "train-b"))
        server = start_server(tmp_path / "server", port)
        assert sync_all(tracker) == []
    finally:
        stop_server(server)


@pytest.mark.long
def test_a_database_on_a_full_disk_is_told_in_one_line(tmp_path, capfd):
    if os.geteuid() != 0:
        assert not os.environ.get("CI"), "CI must run this as root"
        pytest.skip("LOUDLY: mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    try:
        run_dir = start_run(Home(tmp_path))
        tracker = Tracker("", Home(disk))
        run_id = tracker.sync(run_dir)
        append_steps(run_dir, 1, 3_000)
        with (disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
            while other.write(bytes(4096)):
                pass
        capfd.readouterr()
        with pytest.raises(ServiceError, match=r"disk is full.*MB free\).*Nothing is lost"):
            tracker.sync(run_dir)
        assert "Traceback" not in "".join(capfd.readouterr())
        (disk / "other").unlink()
        assert tracker.sync(run_dir) == run_id
        assert len(history(tracker, run_id)) == 3_000
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
