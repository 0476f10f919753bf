"""A few of the layouts of the matrix (`make parity` has them all) train what one process does."""

import pytest
from parity.corpus import write_corpus
from parity.layouts import EXPERTS, LAYOUTS
from parity.matrix import TOLERANCE, compare, write_job

CASES = [
    ("fsdp", "moe", "packed"),
    ("tp+sp", "dense", "plain"),
    ("pp 1f1b", "tied", "plain"),
    ("pp zbv", "dense", "plain"),
    ("cp", "moe", "packed"),
    ("fsdp x tp", "dense", "plain"),
    ("ep", "moe", "packed"),
    ("tp x pp", "tied", "packed"),
    ("fsdp x tp", "dense", "saving"),
]
MISTAKES = {
    "tied_copies_apart": ("pp 1f1b", "tied", "plain"),
    "norms_seen_in_part": ("tp+sp", "dense", "plain"),
}


@pytest.mark.long
def test_layouts_train_what_one_process_does_and_mistakes_show(pool, corpus, tmp_path):
    kinds = {**LAYOUTS, **EXPERTS}
    cases = [(name, kinds[name], model, way) for name, model, way in [*CASES, *MISTAKES.values()]]
    rows = compare(pool, tmp_path, corpus, cases, dict(enumerate(MISTAKES, start=len(CASES))))
    assert [f"{row}\n{row.task.error}" for row in rows if row.task.error] == []
    right, wrong = rows[: len(CASES)], rows[len(CASES) :]
    assert [str(row) for row in right if row.worst > TOLERANCE] == []
    assert [
        f"{row} {plant}" for row, plant in zip(wrong, MISTAKES, strict=True) if row.worst < 10 * TOLERANCE
    ] == []


@pytest.mark.long
def test_a_vocabulary_that_tp_does_not_divide_is_shared_and_one_too_small_is_refused(pool, tmp_path):
    odd = write_corpus(tmp_path / "odd", vocab=301)
    (row,) = compare(pool, tmp_path, odd, [("tp+sp", LAYOUTS["tp+sp"], "tied", "plain")])
    assert row.task.error == ""
    assert row.worst <= TOLERANCE
    task = write_job(tmp_path, write_corpus(tmp_path / "few", vocab=9), "few", {"tp": 4}, "dense", "plain")
    pool.run([task])
    assert "tp 4 leaves processes without any of the 9 entries of the vocabulary; use at most 3" in task.error
