"""A run into a deleted experiment says how to restore it; `gristmill sync` then registers its model."""

import re
import sqlite3

from lmcore.home import Home
from tasks.tracking import Tracker


def test_a_run_into_a_deleted_experiment_is_caught_up_with_when_it_is_restored(make_mill):
    mill = make_mill("deleted")
    first = mill.run()
    client = Tracker("", Home(mill.home)).client
    number = client.get_experiment_by_name("gristmill").experiment_id
    client.delete_experiment(number)

    done = mill.call(
        "run", str(mill.recipe), "--set", "train.seed=5", "--set", "tracking.patience_seconds=3000"
    )
    assert done.returncode == 0, done.stderr  # it does not wait for what a person must do
    assert done.stdout.count("is deleted in MLflow") >= 1
    assert f"mlflow experiments restore --experiment-id {number}" in re.sub(r"\s+", " ", done.stdout)
    assert "still away" not in done.stdout
    refused = mill.call("sync")
    assert refused.returncode == 1
    assert f"--experiment-id {number}" in refused.stderr

    client.restore_experiment(number)
    told = mill.call("sync")
    assert told.returncode == 0, told.stderr
    assert "registered tiny version 2" in told.stdout
    with sqlite3.connect(mill.home / "mlflow.db") as database:
        assert database.execute("select distinct status from runs").fetchall() == [("FINISHED",)]
    assert first["model_version"] == "1"
    assert "registered" not in mill.call("sync").stdout
