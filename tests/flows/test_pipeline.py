"""The whole mill, by its command line: built, reused, explained, registered, tracked."""

import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows.display import show_summary
from lmcore.units import TIMES
from lmcore.units import told as told_in
from tasks.report import Summary
from tests.lmcore.data.languages import ARTICLE_1

STAGES = ["documents", "splits", "tokenizer", "tokens", "report", "train", "evaluate"]


@pytest.fixture(scope="module")
def mill(make_mill):
    return make_mill("pipeline")


@pytest.fixture(scope="module")
def first(mill):
    return mill.run(name="first")


@pytest.fixture(scope="module")
def again(mill, first):
    return mill.run(name="again")


@pytest.fixture(scope="module")
def changed(mill, again):
    return mill.run("--set", "train.optimizer.learning_rate=0.001", name="changed")


def statuses(summary):
    return {stage["stage"]: stage["status"] for stage in summary["stages"]}


def tracked(mill, query, *values):
    with sqlite3.connect(mill.home / "mlflow.db") as database:
        return database.execute(query, values).fetchall()


def test_everything_is_built_and_told(first):
    assert [stage["stage"] for stage in first["stages"]] == STAGES
    assert set(statuses(first).values()) == {"built"}
    assert first["documents"] == 240
    assert 0 < first["val_bits_per_byte"] < 8
    assert first["zstd_bits_per_byte"] > 0
    assert first["tokens_per_second"] > 0
    assert first["wall_seconds"] > 0
    assert (first["model_name"], first["model_version"], first["aliases"]) == ("tiny", "1", ["champion"])


def test_again_reuses_everything(first, again):
    assert set(statuses(again).values()) == {"reused"}
    for name in ("val_bits_per_byte", "model_version", "aliases", "train_tokens", "documents"):
        assert again[name] == first[name]
    assert again["mlflow_run_id"]
    assert again["mlflow_run_id"] != first["mlflow_run_id"]


def test_a_changed_rate_reuses_data_and_is_named(changed):
    found = statuses(changed)
    assert all(found[name] == "reused" for name in STAGES[:5])
    assert found["train"] == found["evaluate"] == "built"
    reason = next(s["reason"] for s in changed["stages"] if s["stage"] == "train")
    assert reason == "train.optimizer.learning_rate went from 0.008 to 0.001"
    assert changed["model_version"] == "2"
    assert changed["gate"]


def test_the_books_of_the_first_run_are_in_mlflow(mill, first):
    rows = tracked(mill, "select key, value from latest_metrics where run_uuid = ?", first["mlflow_run_id"])
    metrics = dict(rows)
    assert metrics["eval/bits_per_byte"] == pytest.approx(first["val_bits_per_byte"])
    assert metrics["data/documents"] == first["documents"]


def test_one_speed_is_told_everywhere(mill, first):
    (key,) = [stage["key"] for stage in first["stages"] if stage["stage"] == "train"]
    (result_file,) = mill.home.glob(f"runs/train-{key[:16]}*/result.json")
    result = json.loads(result_file.read_text())
    speed = {f"perf/median_{name}": result[name] for name in ("step_seconds", "tokens_per_second", "mfu")}
    child = "select run_uuid from tags where key = 'mlflow.parentRunId' and value = ?"
    runs = [first["mlflow_run_id"], *(run for (run,) in tracked(mill, child, first["mlflow_run_id"]))]
    query = "select key, value from latest_metrics where key like 'perf/median%' and run_uuid = ?"
    told = [dict(tracked(mill, query, run)) for run in runs]
    assert sorted(map(len, told)) == [0, 3, 3], "of the pipeline and its training, not of the evaluation"
    assert all(figures == pytest.approx(speed) for figures in told if figures)
    console = Console(record=True, width=300, file=io.StringIO())
    show_summary(console, Summary(**first))
    words = f"trained at {result['tokens_per_second']:,.0f} tokens/s, MFU {result['mfu']:.1%} (median step: "
    assert words + told_in(result["step_seconds"], TIMES) in console.export_text()


def test_runs_are_compared_by_their_settings(mill, first, changed):
    query = "select key, value from params where run_uuid = ?"
    one, other = (dict(tracked(mill, query, summary["mlflow_run_id"])) for summary in (first, changed))
    differing = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert differing == {"train.optimizer.learning_rate"}
    assert one["data.sources.0.path"] == str(mill.corpus)
    (training,) = tracked(
        mill,
        "select p.run_uuid from tags p join tags k on k.run_uuid = p.run_uuid where p.key = "
        "'mlflow.parentRunId' and p.value = ? and k.key = 'gristmill.kind' and k.value = 'train'",
        first["mlflow_run_id"],
    )
    of_training = dict(tracked(mill, query, *training))
    same = {name for name, value in of_training.items() if one.get(name) == value}
    assert of_training.keys() - same == {
        "model.num_kv_heads",
        "model.intermediate_size",
    }, "all but what the recipe leaves open, under the same names"


def test_two_measures_have_two_names(mill, first):
    rows = tracked(
        mill,
        "select distinct key from metrics where run_uuid in (select run_uuid from tags where "
        "key = 'gristmill.kind' and value = 'train')",
    )
    names = {name for (name,) in rows}
    assert {"train/validation_loss", "train/validation_bits_per_byte", "train/loss"} <= names
    assert not [name for name in names if name.startswith("eval/")]


def test_parents_and_children_are_linked_in_mlflow(mill, first, changed):
    query = """
        select k.value from tags p join tags k on k.run_uuid = p.run_uuid and k.key = 'gristmill.kind'
        where p.key = 'mlflow.parentRunId' and p.value = ?
    """
    for summary in (first, changed):
        assert sorted(tracked(mill, query, summary["mlflow_run_id"])) == [("evaluate",), ("train",)]


def test_a_run_that_reused_names_the_runs_that_made(mill, first, again):
    children = "select run_uuid from tags where key = 'mlflow.parentRunId' and value = ?"
    named = "select value from tags where key like 'gristmill.run.%' and run_uuid = ?"
    made = sorted(tracked(mill, children, first["mlflow_run_id"]))
    assert sorted(tracked(mill, named, again["mlflow_run_id"])) == made
    assert len(made) == 2
    assert tracked(mill, named, first["mlflow_run_id"]) == []


def test_every_step_is_in_mlflow_once(mill, first, changed):
    query = """
        select count(*), count(distinct m.step) from metrics m join tags p on p.run_uuid = m.run_uuid
        where m.key = 'train/loss' and p.key = 'mlflow.parentRunId' and p.value = ? group by m.run_uuid
    """
    for summary in (first, changed):
        assert tracked(mill, query, summary["mlflow_run_id"]) == [(12, 12)]


def test_all_runs_are_finished_in_mlflow(mill, changed):
    assert {status for (status,) in tracked(mill, "select status from runs")} == {"FINISHED"}


@pytest.mark.long
def test_the_champion_is_measured_as_the_challenger_was(mill, changed):
    def evaluations():
        return {path.name for path in (mill.home / "store" / "evaluate").iterdir() if path.name[0] != "."}

    before = evaluations()
    settings = ("evaluation.stride_tokens=8", "train.optimizer.learning_rate=0.002")
    words = [word for setting in settings for word in ("--set", setting)]
    target = mill.home / "other.json"
    done = mill.call("run", str(mill.recipe), *words, "--json", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    other, shown = json.loads(target.read_text()), " ".join(done.stdout.split())
    again = r"the champion, version (\d), is to be measured as the challenger was: "
    why = "evaluation.stride_tokens went from 16 to 8"
    found = re.search(rf"{again}{why}; it needed ([\d.]+) bits per byte before", shown)
    assert found
    version, was = found.groups()
    told = re.search(rf"the champion, version {version}: {was} bits per byte before, ([\d.]+) now", shown)
    assert told
    now = told[1]
    assert was != now
    assert f"the champion's {now}" in other["gate"]
    assert f"(the champion was measured again, since {why}: {was} bits per byte before)" in other["gate"]
    assert re.search(rf"evaluate \w+ [\d.]+ s of the champion, version {version}: {why}", shown)
    assert "input tokenizer changed" not in shown
    assert int(other["model_version"]) > int(changed["model_version"])
    assert "than the champion's" in other["gate"]
    assert len(evaluations() - before) == 2, "its own, and the champion's on the new windows"
    names = [name for (name,) in tracked(mill, "select name from runs where name like 'evaluate%champion'")]
    assert len(names) == 1
    assert re.fullmatch(r"evaluate tiny version \d, the champion", names[0])


@pytest.mark.long
def test_a_champion_that_may_have_seen_the_text_is_not_compared(mill, changed):
    settings = ("data.split_seed=1", "train.steps=2", "train.schedule.warmup_steps=1")
    other = mill.run(*(word for setting in settings for word in ("--set", setting)), name="seen")
    assert "may have been trained on text that is held out now" in other["gate"]
    assert other["aliases"] == ["challenger"]


def test_explain_names_what_would_be_built(mill, changed):
    done = mill.call("explain", str(mill.recipe), "--set", "train.steps=13", "--set", "data.workers=2")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[1:] if line.strip()}
    assert list(lines)[: len(STAGES)] == STAGES
    assert all("reused" in lines[name] for name in STAGES[:5])
    assert "too little text" not in done.stdout
    assert "train.steps went from 12 to 13" in " ".join(done.stdout.split())
    assert "depends on train" in " ".join(done.stdout.split())


def test_inspect_shows_what_became_of_a_document(mill, changed):
    done = mill.call("inspect", str(mill.recipe), "--decision", "duplicate", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "demo:d0  duplicate" in done.stdout
    assert "like demo:d0" in done.stdout
    done = mill.call("inspect", str(mill.recipe), "--decision", "train", "--tokens", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert " tokens: " in done.stdout
    done = mill.call("inspect", str(mill.recipe), "--source", "nowhere")
    assert done.returncode == 1
    assert "no document is like that: there is no source 'nowhere': expected one of demo" in done.stderr
    done = mill.call("inspect", str(mill.recipe), "--decision", "contaminated")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert re.fullmatch(
        r"no document is contaminated; there are \d+ train, \d+ validation, 6 duplicate", said
    )
    done = mill.call("inspect", str(mill.recipe), "--rule", "code.min_chars")
    assert done.returncode == 0, done.stderr
    assert "no document was dropped by code.min_chars; no rule dropped any" in done.stdout
    done = mill.call("inspect", str(mill.recipe), "--rule", "nonsense")
    assert done.returncode == 1
    assert "there is no rule 'nonsense': expected one of code." in done.stderr
    done = mill.call("inspect", str(mill.recipe), "--quarantined", "--source", "demo")
    assert done.returncode == 0, done.stderr
    assert "0 of 0 records that could not be read" in done.stderr
    done = mill.call("inspect", str(mill.recipe), "--quarantined", "--source", "nowhere")
    assert done.returncode == 1
    assert "there is no source 'nowhere': expected one of demo" in done.stderr


def kept_in_mlflow(mill, summary, name):
    (path,) = (mill.home / "mlflow").rglob(f"{summary['mlflow_run_id']}/artifacts/{name}")
    return path.read_bytes()


def test_the_data_report_is_in_mlflow_and_where_inspect_says(mill, first):
    done = mill.call("inspect", str(mill.recipe), "--report")
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip())
    assert str(page) == first["data_report"]
    assert b"6 documents are like one of 6 that stayed" in page.read_bytes()
    assert kept_in_mlflow(mill, first, "data-report.html") == page.read_bytes()
    assert kept_in_mlflow(mill, first, "documents.png").startswith(b"\x89PNG")


@pytest.mark.long
def test_preparing_data_alone_is_a_run_too(mill, first, tmp_path):
    target = tmp_path / "prepared.json"
    done = mill.call("prepare", str(mill.recipe), "--json", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(target.read_text())
    assert statuses(summary) == dict.fromkeys(STAGES[:5], "reused")
    assert summary["data_report"] == first["data_report"]
    assert f"data report {first['data_report']}" in done.stdout
    assert kept_in_mlflow(mill, summary, "data-report.html") == Path(summary["data_report"]).read_bytes()
    metrics = dict(
        tracked(mill, "select key, value from latest_metrics where run_uuid = ?", summary["mlflow_run_id"])
    )
    assert (metrics["data/documents_in"], metrics["data/documents"]) == (246, 240)
    rows = tracked(mill, "select status, name from runs where run_uuid = ?", summary["mlflow_run_id"])
    assert rows == [("FINISHED", "tiny")]


def test_generate_continues_a_prompt(mill, changed):
    arguments = ("generate", str(mill.recipe), "--prompt", "the mill ", "--max-new-tokens", "5")
    one, two = mill.call(*arguments), mill.call(*arguments)
    assert one.returncode == 0, one.stderr
    assert one.stdout.startswith("the mill ")
    assert one.stdout == two.stdout


@pytest.mark.long
def test_a_profile_that_drops_most_of_a_script_is_told_whenever_its_data_is_looked_at(mill, tmp_path):
    russian = ARTICLE_1["ru"] * 3
    mixed = tmp_path / "mixed.jsonl"
    lines = [json.dumps({"id": f"ru-{i}", "text": f"{russian}\n{i}"}) for i in range(20)]
    mixed.write_text(mill.corpus.read_text().rstrip() + "\n" + "\n".join(lines))
    settings = (f"data.sources.0.path={mixed}", "data.quality.profile=c4", "data.quality.c4.min_sentences=9")
    words = [word for setting in settings for word in ("--set", setting)]
    said = "warning: profile c4 drops most of a script: 20 of 20 documents in Cyrillic"
    for _ in range(2):  # built, then reused
        done = mill.call("prepare", str(mill.recipe), *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in " ".join((done.stdout + done.stderr).split())
    done = mill.call("explain", str(mill.recipe), *words)
    assert said in " ".join(done.stdout.split())


@pytest.mark.long
def test_too_little_text_is_told_before_the_training(mill, tmp_path):
    small = tmp_path / "small.jsonl"
    small.write_text("".join(mill.corpus.read_text().splitlines(keepends=True)[:20]))
    settings = (f"data.sources.0.path={small}", "train.steps=120")
    words = [word for setting in settings for word in ("--set", setting)]

    def explained():
        target = tmp_path / "explained.json"
        done = mill.call("explain", str(mill.recipe), *words, "--json", str(target))
        assert done.returncode == 0, done.stderr
        rows = json.loads(target.read_text())
        assert [row["stage"] for row in rows if row["warning"]] in ([], ["train"])
        shown = " ".join(done.stdout.split())
        warning = "".join(row["warning"] for row in rows)
        assert warning in shown
        return warning

    assert "there are about" in explained()
    done = mill.call("train", str(mill.recipe), *words)
    assert done.returncode == 0, done.stderr
    exact = r"61,440 tokens are needed .*, and there are [\d,]+: they would be read [\d.]+ times"
    shown = " ".join(done.stdout.split())
    found = re.search(rf"warning: too little text: {exact}", shown)
    assert found
    assert found.start() < shown.index("built train")
    logs = [path.read_text() for path in mill.home.glob("runs/train-*/log.txt")]
    assert sum(bool(re.search(exact, log)) for log in logs) == 1
    assert explained() == "", "what is reused needs no text"


ELSEWHERE = """
import sys
# A machine without gristmill: neither installed nor in the current folder.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [place for place in sys.path if "site-packages" in place or "/lib/python" in place]
try:
    import lmcore
except ImportError:
    pass
else:
    sys.exit("gristmill is here")
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
drawn = {"max_new_tokens": 6, "seed": 3}
one = model.predict(pandas.DataFrame({"prompt": ["the mill "]}), params=drawn)["text"].tolist()
assert model.predict(["the mill "], params=drawn)["text"].tolist() == one
assert model.predict("the mill ", params=drawn)["text"].tolist() == one
assert model.predict({"prompt": ["the mill "]}, params=drawn)["text"].tolist() == one
import lmcore
assert "artifacts/code/lmcore" in lmcore.__file__
"""


def test_the_registered_model_is_loaded_where_gristmill_is_not(mill, first, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    uri = f"sqlite:///{mill.home / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, uri, "models:/tiny@champion"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_registered_version_holds_files_figures_three_tags_and_a_description(mill, first):
    tags = tracked(mill, "select key from model_version_tags where name = 'tiny' and version = 1")
    assert {key for (key,) in tags} == {"gristmill.model_digest", "gristmill.model_path", "gristmill.gate"}
    ((described, source),) = tracked(
        mill, "select description, source from model_versions where name = 'tiny' and version = 1"
    )
    assert f"{first['val_bits_per_byte']:.4f}" in described
    assert "**Gate:**" in described
    model_id = source.removeprefix("models:/")
    figures = dict(
        tracked(
            mill, "select metric_name, metric_value from logged_model_metrics where model_id = ?", model_id
        )
    )
    assert figures["eval/bits_per_byte"] == first["val_bits_per_byte"]
    folder = mill.home / "mlflow" / "gristmill" / "models" / model_id / "artifacts"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "input_example.json", "requirements.txt", "code/lmcore/config.py"} <= names
    weights = {f"artifacts/model/{name}" for name in ("model.safetensors", "tokenizer.json", "config.json")}
    assert weights <= names
    assert str(mill.home) not in (folder / "MLmodel").read_text()


def test_runs_are_named_by_what_was_changed(mill, first, changed):
    names = {name for (name,) in tracked(mill, "select name from runs")}
    assert {"tiny", "train tiny", "tiny lr=0.001", "train tiny lr=0.001"} <= names
    notes = tracked(mill, "select value from tags where key = 'mlflow.note.content'")
    assert any(f"{first['val_bits_per_byte']:.4f} bits per byte" in note for (note,) in notes)
    datasets = tracked(mill, "select name from datasets")
    assert {"tiny-train", "tiny-validation"} <= {name for (name,) in datasets}


def test_a_model_is_written_for_mlflow_without_torch(mill, first, tmp_path):
    script = (
        "import sys, pathlib; from tasks.tracking_files import write_mlflow_model; "
        "write_mlflow_model(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[1]), 'm-1', None, 'a'); "
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, first["model_path"], str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == 0
