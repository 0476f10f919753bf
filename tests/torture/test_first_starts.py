"""Two commands at once on a home that is not there yet: both do their work."""

import sqlite3

import yaml


def test_two_recipes_start_on_a_fresh_home_at_once(make_mill):
    mill = make_mill("fresh")
    other = mill.recipe.with_name("other.yaml")
    recipe = yaml.safe_load(mill.recipe.read_text())
    other.write_text(yaml.safe_dump({**recipe, "name": "other", "train": {**recipe["train"], "seed": 3}}))
    started = [mill.start("run", str(path)) for path in (mill.recipe, other)]
    outputs = [process.communicate(timeout=800) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    with sqlite3.connect(mill.home / "mlflow.db") as database:
        assert database.execute("select distinct status from runs").fetchall() == [("FINISHED",)]
        versions = database.execute("select name, version from model_versions order by name").fetchall()
        assert versions == [("other", 1), ("tiny", 1)]
        assert database.execute("select count(*) from experiments where experiment_id != 0").fetchone() == (
            1,
        )
        points = "select run_uuid, key, step from metrics group by run_uuid, key, step having count(*) > 1"
        twice = database.execute(points).fetchall()
        assert twice == []
