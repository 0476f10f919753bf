"""However many processes register at once: one version a model, and the best is champion."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmcore.config import GateConfig
from lmcore.errors import ServiceError, ServiceRefused
from lmcore.home import Home
from tasks import runs
from tasks.registration import Pending, enrol, register_pending
from tasks.tracking import Follower, Tracker, sync_all
from tasks.tracking_registry import Candidate, Registry

MODELS = Path()
PROCESS = """
import json, sys, time
from pathlib import Path
from lmcore.config import GateConfig
from lmcore.home import Home
from tasks import runs
from tasks.registration import enrol, in_turn
from tasks.tracking import Tracker
from tasks.tracking_registry import Candidate, Registry
from lmcore.eval.gate import Measured

home, uri, start = Home(Path(sys.argv[1])), sys.argv[2], float(sys.argv[4])
tracker, candidate = Tracker(uri, home), Candidate(**json.loads(sys.argv[3]))
run_dir = home.runs / f"evaluate-{sys.argv[5]}"
runs.open_run(run_dir, name="evaluate", kind="evaluate", experiment="test")
registry = Registry(tracker)
def measure(champion):
    return Measured(champion.bits_per_byte, champion.data_digest)
while time.time() < start:
    time.sleep(0.001)
with in_turn(home, candidate.name):
    print(enrol(registry, GateConfig(), candidate, run_dir, measure).model_dump_json())
"""


@pytest.fixture(autouse=True, scope="module")
def models(tmp_path_factory):
    """Where the files of candidates are."""
    global MODELS
    MODELS = tmp_path_factory.mktemp("models")


def candidate(digest, bits, data="data-1"):
    folder = MODELS / digest
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(f"{name} of {digest}")
    return Candidate(
        name="mill",
        model_path=str(folder),
        model_digest=digest,
        bits_per_byte=bits,
        data_digest=data,
        seq_len=64,
        document_mask=False,
        split_seed=0,
        validation_fraction=0.1,
        metrics={"eval/bits_per_byte": bits},
        tags={},
    )


def at_once(homes, uri, candidates):
    start = time.time() + 6  # all have imported by then
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(home), uri, one.model_dump_json(), str(start), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, (home, one) in enumerate(zip(homes, candidates, strict=True))
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.long
def test_twins_on_a_fresh_home_are_one_version(tmp_path):
    home = tmp_path / "home"
    found = at_once([home] * 3, "", [candidate("m1", 1.5)] * 3)
    assert {one["model_version"] for one in found} == {"1"}
    assert sorted(one["promoted"] for one in found) == [False, False, True]
    assert [one["reason"] for one in found if not one["promoted"]] == [
        "version 1 is the champion already"
    ] * 2
    assert all(one["aliases"] == ["champion"] for one in found)
    assert len(Registry(Tracker("", Home(home))).versions("mill")) == 1


@pytest.mark.long
@pytest.mark.parametrize("bits", [(1.4, 1.6), (1.6, 1.4)])
def test_of_two_models_at_once_the_better_is_champion(tmp_path, bits):
    home = tmp_path / "home"
    at_once([home] * 2, "", [candidate(f"m{score}", score) for score in bits])
    assert Registry(Tracker("", Home(home))).champion("mill").bits_per_byte == 1.4


class Interrupted(Registry):
    """At the moment that `register` or `crown` begins, another machine does what it is told."""

    def __init__(self, tracker, *, before_register=None, before_crown=None):
        super().__init__(tracker)
        self._before = {"register": before_register, "crown": before_crown}

    def _once(self, what):
        if then := self._before.pop(what, None):
            then()

    def create(self, *arguments):
        self._once("register")
        return super()._create(*arguments)

    _create = create

    def crown(self, version):
        self._once("crown")
        super().crown(version)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A new database of MLflow, whose tables take seconds to make."""
    home = Home(tmp_path_factory.mktemp("new") / "home")
    assert Tracker("", home).client.search_registered_models() == []
    return home.mlflow_database


@pytest.fixture
def tracker(tmp_path, database):
    home = Home(tmp_path / "home")
    home.root.mkdir()
    shutil.copy(database, home.mlflow_database)
    return Tracker("", home)


def run_of(tracker, name="evaluate-a", **fields):
    run_dir = tracker.home.runs / name
    runs.open_run(run_dir, name=name, kind="evaluate", experiment="test", **fields)
    return run_dir


def enter(registry, one, run_dir):
    from lmcore.eval.gate import Measured

    def measure(champion):
        return Measured(champion.bits_per_byte, champion.data_digest)

    return enrol(registry, GateConfig(), one, run_dir, measure)


def test_a_twin_from_another_machine_at_the_same_moment_stays_one_version(tracker):
    run_dir = run_of(tracker)
    other = Registry(tracker)
    mine = Interrupted(tracker, before_register=lambda: enter(other, candidate("m1", 1.5), run_dir))
    found = enter(mine, candidate("m1", 1.5), run_dir)
    assert (found.model_version, found.reason) == ("1", "version 1 is the champion already")
    assert [version.version for version in other.versions("mill")] == ["1"]


@pytest.mark.parametrize(("mine", "theirs"), [(1.5, 1.4), (1.4, 1.5), (1.5, 1.5)])
@pytest.mark.parametrize("had", [None, 1.9])
def test_another_machine_that_crowns_at_the_same_moment_cannot_crown_the_worse(tracker, mine, theirs, had):
    run_dir, other = run_of(tracker), Registry(tracker)
    if had:
        enter(other, candidate("m0", had), run_dir)
    interrupted = Interrupted(
        tracker, before_crown=lambda: enter(other, candidate("theirs", theirs), run_dir)
    )
    found = enter(interrupted, candidate("mine", mine), run_dir)
    assert other.champion("mill").bits_per_byte == min(mine, theirs)
    assert found.promoted == (mine <= theirs)
    if mine > theirs:
        assert "registered at the same time, is better: 1.4000" in found.reason


def test_a_champion_that_came_meanwhile_is_compared_with(tracker):
    run_dir, other = run_of(tracker), Registry(tracker)
    enter(other, candidate("m0", 1.9), run_dir)
    seen = []

    def measure(champion):
        from lmcore.eval.gate import Measured

        if not seen:  # a long evaluation, in which another process finishes
            enter(other, candidate("m2", 1.3), run_dir)
        seen.append(champion.version)
        return Measured(champion.bits_per_byte, champion.data_digest)

    found = enrol(other, GateConfig(), candidate("m1", 1.5), run_dir, measure)
    assert not found.promoted
    assert len(seen) == 2
    assert other.champion("mill").bits_per_byte == 1.3


def test_twins_of_an_earlier_release_are_left_and_the_champion_speaks_for_both(tracker):
    run_dir, registry = run_of(tracker), Registry(tracker)
    first = enter(registry, candidate("m1", 1.5), run_dir)
    client = tracker.client
    told = client.get_model_version("mill", first.model_version)
    client.create_model_version("mill", told.source, told.run_id, tags=told.tags)
    found = enter(registry, candidate("m1", 1.5), run_dir)
    assert (found.model_version, found.reason) == ("1", "version 1 is the champion already")
    assert len(registry.versions("mill")) == 2


# --- what was deleted ------------------------------------------------------------------------------


def delete_experiment(tracker, name="test"):
    experiment = tracker.client.get_experiment_by_name(name)
    tracker.client.delete_experiment(experiment.experiment_id)
    return experiment.experiment_id


def test_a_deleted_experiment_is_told_at_once_and_how_to_restore_it(tracker):
    run_dir = run_of(tracker, "train-a")
    tracker.sync(run_dir)
    number = delete_experiment(tracker)
    later = Tracker("", tracker.home)
    second, told = run_of(tracker, "train-b"), []
    with Follower(later, [second], told.append, patience_seconds=100_000):
        runs.close_run(second, "finished")
    assert len(told) == 1
    assert "the experiment 'test' is deleted" in told[0]
    assert f"mlflow experiments restore --experiment-id {number}" in told[0]
    with pytest.raises(ServiceRefused):
        later.sync(run_dir, sure=True)

    tracker.client.restore_experiment(number)
    assert sync_all(Tracker("", tracker.home)) == [second]


def test_sync_registers_what_was_not_registered(tracker):
    run_dir = run_of(tracker)
    runs.close_run(run_dir, "finished")
    tracker.sync(run_dir)
    number = delete_experiment(tracker)
    later = Tracker("", tracker.home)
    with pytest.raises(ServiceError):
        enter(Registry(later), candidate("m1", 1.5), run_dir)
    Pending(candidate=candidate("m1", 1.5), evaluation_run=str(run_dir), gate=GateConfig()).write(run_dir)
    with pytest.raises(ServiceError):
        register_pending(Tracker("", tracker.home))

    tracker.client.restore_experiment(number)
    (found,) = register_pending(Tracker("", tracker.home))
    assert (found.model_version, found.aliases) == ("1", ["champion"])
    assert register_pending(Tracker("", tracker.home)) == []


def test_sync_crowns_nothing_that_it_cannot_compare(tracker):
    run_dir = run_of(tracker)
    enter(Registry(tracker), candidate("m0", 1.9, data="other"), run_dir)
    Pending(candidate=candidate("m1", 1.5), evaluation_run=str(run_dir), gate=GateConfig()).write(run_dir)
    (found,) = register_pending(tracker)
    assert (found.aliases, found.promoted) == (["challenger"], False)
    assert "measured on other text" in found.reason


def test_a_registered_model_that_was_deleted_begins_anew(tracker):
    run_dir, registry = run_of(tracker), Registry(tracker)
    enter(registry, candidate("m1", 1.5), run_dir)
    tracker.client.delete_registered_model("mill")
    found = enter(registry, candidate("m1", 1.5), run_dir)
    assert (found.model_version, found.aliases, found.promoted) == ("1", ["champion"], True)


# --- points ----------------------------------------------------------------------------------------


def points(tracker, run_id, key):
    return [(m.step, m.value) for m in tracker.client.get_metric_history(run_id, key)]


def test_a_value_that_is_told_again_is_one_point(tracker):
    run_dir = run_of(tracker, "pipeline-a")
    runs.update_run(run_dir, metrics={"data/documents": 7.0})
    run_id = tracker.sync(run_dir)
    runs.update_run(run_dir, metrics={"data/documents": 7.0, "data/tokens": 9.0}, tags={"a": "b"})
    tracker.sync(run_dir)
    for path in run_dir.glob("tracking-*.json"):
        path.unlink()  # as if the process had died before it could save it
    runs.update_run(run_dir, tags={"a": "c"})
    runs.close_run(run_dir, "finished")
    assert tracker.sync(run_dir) == run_id
    assert points(tracker, run_id, "data/documents") == [(0, 7.0)]
    assert points(tracker, run_id, "data/tokens") == [(0, 9.0)]


def test_a_value_that_changed_is_told_and_the_last_one_shows(tracker):
    run_dir = run_of(tracker, "pipeline-a")
    runs.update_run(run_dir, metrics={"train/tokens": 9.0})
    run_id = tracker.sync(run_dir)
    runs.update_run(run_dir, metrics={"train/tokens": 5.0})
    tracker.sync(run_dir)
    assert tracker.client.get_run(run_id).data.metrics["train/tokens"] == 5.0
