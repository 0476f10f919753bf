"""Evaluation sets from the recipe to MLflow: scored, and kept out of what is learned by every command."""

import json
import sqlite3

import pytest
import yaml

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def mill(make_mill):
    """A mill whose corpus holds a copy of the one text that it is evaluated on, as document d7."""
    mill = make_mill("sets")
    lines = mill.corpus.read_text().splitlines()
    planted = json.loads(next(line for line in lines if '"d7"' in line))["text"]
    folder = mill.corpus.parent
    (folder / "exam.jsonl").write_text(json.dumps({"text": planted}))
    pairs = [
        {"sentence_good": f"the {a} turns the {b}", "sentence_bad": f"{b} the turns {a} the", "kind": b}
        for a in ("mill", "wheel", "stone")
        for b in ("grain", "flour")
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    recipe = yaml.safe_load(mill.recipe.read_text())
    recipe["evaluation"]["sets"] = [
        {"name": "exam", "path": f"{folder}/exam.jsonl"},
        {
            "name": "order",
            "kind": "minimal_pairs",
            "path": f"{folder}/pairs.jsonl",
            "group_field": "kind",
        },
    ]
    mill.recipe.write_text(yaml.safe_dump(recipe))
    return mill


@pytest.fixture(scope="module")
def first(mill):
    return mill.run(name="first")


def statuses(rows):
    return {row["stage"]: row["status"] for row in rows}


def test_the_copy_is_dropped_and_listed_and_the_books_balance(mill, first):
    books = first["books"]
    assert books["contaminated"] == 1
    assert books["documents_in"] == books["kept"] + books["contaminated"] + books["duplicates"] == 246
    done = mill.call("inspect", str(mill.recipe), "--decision", "contaminated", "--limit", "9")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("contaminated") == 1
    assert "demo:d7  contaminated" in done.stdout


def test_figures_are_in_the_summary_and_in_mlflow(mill, first):
    found = {(row["name"], row["group"]): row for row in first["sets"]}
    assert found.keys() == {("exam", ""), ("order", ""), ("order", "flour"), ("order", "grain")}
    assert (found["exam", ""]["measure"], found["exam", ""]["items"]) == ("bits_per_byte", 1)
    assert (found["order", ""]["measure"], found["order", ""]["items"]) == ("accuracy", 6)
    groups = [found["order", group]["value"] for group in ("flour", "grain")]
    assert found["order", ""]["value"] == pytest.approx(sum(groups) / 2)
    with sqlite3.connect(mill.home / "mlflow.db") as database:
        query = "select key, value from latest_metrics where key like 'eval/%/%'"
        rows = set(database.execute(query))
        children = "select count(distinct run_uuid) from latest_metrics where key = 'eval/order/accuracy'"
        assert database.execute(children).fetchone() == (2,), "the run's and its evaluation's"
    expected = {"eval/exam/bits_per_byte": ("exam", ""), "eval/order/accuracy": ("order", "")}
    assert rows == {(name, found[of]["value"]) for name, of in expected.items()}
    (samples,) = (mill.home / "store" / "evaluate").glob("*/set-samples.json")
    assert len(json.loads(samples.read_text())["order"]) == 6


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_other_commands_use_the_same_data(mill, first, command, tmp_path):
    done = mill.call(command, str(mill.recipe), "--json", str(tmp_path / "summary.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert set(statuses(stages).values()) == {"reused"}
    assert {s["stage"]: s["key"] for s in stages}.items() <= {
        s["stage"]: s["key"] for s in first["stages"]
    }.items()


def test_explain_sees_sets_that_changed(mill, first, tmp_path):
    def explained(*arguments):
        path = tmp_path / "explained.json"
        done = mill.call("explain", str(mill.recipe), "--json", str(path), *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(path.read_text())

    assert set(statuses(explained()).values()) == {"reused"}
    fewer = explained("--set", "evaluation.sets.1.max_pairs=4")
    assert [row["stage"] for row in fewer if row["status"] == "built"] == ["evaluate"]
    pairs = mill.corpus.parent / "pairs.jsonl"
    before = pairs.read_text()
    pairs.write_text(before.replace("stone", "river"))
    try:
        changed = explained()
        apart = explained("--set", "data.decontamination.evaluation_sets=false")
    finally:
        pairs.write_text(before)
    assert (changed[0]["stage"], changed[0]["status"]) == ("documents", "built")
    assert apart[0]["reason"] != changed[0]["reason"]


def test_a_set_that_cannot_be_scored_stops_a_run_before_its_data(mill, first):
    done = mill.call("run", str(mill.recipe), "--set", "evaluation.sets.1.bad_field=sentence_worse")
    assert done.returncode == 1
    told = " ".join(done.stderr.split())
    assert "'order' has a record that cannot be read" in told
    assert "no field 'sentence_worse'" in told
    assert "documents" not in done.stdout
