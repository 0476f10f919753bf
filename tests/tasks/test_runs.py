"""Run records and events: nothing twice, nothing torn, nothing from a dead process called running."""

import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from tasks import runs


def step_row(step, kind="step"):
    return {
        "kind": kind,
        "step": step,
        "tokens": step * 8,
        "time": 1.0 + step,
        "values": {"train/loss": 1.0 / step},
    }


def write_rows(path, rows, mode="a"):
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_line_without_its_end_is_left_for_later(tmp_path):
    path = tmp_path / "events.jsonl"
    write_rows(path, [step_row(1)])
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    rows, offset = runs.read_events(path, 0)
    assert [row["step"] for row in rows] == [1]
    with path.open("a") as file:
        file.write('ep": 2, "time": 1, "values": {}}\n')
    rows, offset = runs.read_events(path, offset)
    assert [row["step"] for row in rows] == [2]
    assert runs.read_events(path, offset) == ([], offset)


def test_a_torn_line_costs_only_itself(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(step_row(1)) + '\n{"kind": "ste\n' + json.dumps(step_row(2)) + "\n")
    rows, _ = runs.read_events(path, 0)
    assert [row["step"] for row in rows] == [1, 2]


@given(st.lists(st.integers(1, 12), max_size=5), st.integers(1, 60))
def test_replayed_steps_are_dropped_however_the_rows_are_cut(restarts, block):
    """A run that goes back to earlier steps any number of times is told once, in order."""
    rows, last = [], 0
    for back in [*restarts, 0]:
        begin = max(0, last - back)
        last = begin + 10
        rows += [step_row(step) for step in range(begin + 1, last + 1)]
    marks, told = {}, []
    for start in range(0, len(rows), block):
        fresh, marks = runs.new_rows(rows[start : start + block], marks)
        told += [row["step"] for row in fresh]
    assert told == list(range(1, max(row["step"] for row in rows) + 1))


def test_kinds_have_marks_of_their_own():
    rows = [step_row(1), step_row(2), step_row(2, "validation"), {"kind": "resume", "step": 1}]
    fresh, marks = runs.new_rows(rows, {})
    assert len(fresh) == 3
    assert marks == {"step": 2, "validation": 2}


def open_demo(run_dir, **fields):
    return runs.open_run(run_dir, name="demo", kind="train", experiment="test", **fields)


def test_a_later_attempt_is_the_same_run(tmp_path):
    first = open_demo(tmp_path)
    runs.close_run(tmp_path, "failed")
    second = open_demo(tmp_path)
    assert second.id == first.id
    assert second.started == first.started
    assert (second.status, second.ended) == ("running", None)


def test_updates_add_to_what_is_there(tmp_path):
    open_demo(tmp_path, tags={"a": "1"})
    record = runs.update_run(tmp_path, tags={"b": "2"}, metrics={"m": 1.0})
    assert record.tags == {"a": "1", "b": "2"}
    assert runs.RunRecord.read(tmp_path) == record


def test_a_run_whose_process_died_is_abandoned(tmp_path):
    code = (
        "import sys, pathlib\nfrom tasks import runs\n"
        "runs.open_run(pathlib.Path(sys.argv[1]), name='d', kind='train', experiment='t')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert runs.RunRecord.read(tmp_path).abandoned
    assert not open_demo(tmp_path).abandoned
