"""Every layout trains the same model as one process (`make parity`)."""

import time

import pytest
from parity.layouts import LAYOUTS, OPTIMIZERS, SAVERS, all_cases
from parity.matrix import HEAD, TOLERANCE, compare

# Which layout and model each mistake shows itself on.
PLANTS = {
    "mean_of_means": ("fsdp", "dense"),
    "gradients_not_divided": ("ddp", "dense"),
    "norm_over_one_mesh": ("fsdp x tp", "dense"),
    "tied_copies_apart": ("pp 1f1b", "tied"),
    "wrong_positions": ("cp", "dense"),
    "norms_seen_in_part": ("tp+sp", "dense"),
    "wrong_draws": ("fsdp", "tied"),
}


def test_every_layout_is_one_process(pool, corpus, tmp_path, capsys):
    start = time.monotonic()
    rows = compare(pool, tmp_path, corpus, all_cases())
    with capsys.disabled():
        computed = sum(row.task.cpu_seconds for row in rows)
        spent = f"{time.monotonic() - start:.0f} s, {computed:.0f} s of processors"
        print(f"\n{HEAD}", *rows, f"{len(rows)} cases in {spent}", sep="\n")
    errors = [f"{row}\n{row.task.error}" for row in rows if row.task.error]
    assert not errors, "\n".join(errors)
    assert [str(row) for row in rows if row.worst > TOLERANCE] == []


def test_optimizers_and_ways_to_save_memory_change_nothing(pool, corpus, tmp_path, capsys):
    given_away = [(layout, LAYOUTS[layout], "dense", "packed") for layout in ("hsdp", "fsdp x tp")]
    plants = dict.fromkeys(range(len(given_away)), "gradients_given_away")
    rows = compare(pool, tmp_path, corpus, [*given_away, *OPTIMIZERS, *SAVERS], plants)
    with capsys.disabled():
        print(f"\n{HEAD}", *rows, sep="\n")
    assert [f"{row}\n{row.task.error}" for row in rows if row.task.error] == []
    assert [str(row) for row in rows if row.worst > TOLERANCE] == []


def test_every_classic_mistake_is_caught(pool, corpus, tmp_path, capsys):
    cases = [(layout, LAYOUTS[layout], model, "packed") for layout, model in PLANTS.values()]
    rows = compare(pool, tmp_path, corpus, cases, dict(enumerate(PLANTS)))
    with capsys.disabled():
        print(f"\n{HEAD}", *(f"{row} {plant}" for row, plant in zip(rows, PLANTS, strict=True)), sep="\n")
    assert not any(row.task.error for row in rows)
    for row, plant in zip(rows, PLANTS, strict=True):
        assert row.worst > 10 * TOLERANCE, plant
    assert compare(pool, tmp_path / "right", corpus, cases[:1])[0].worst == pytest.approx(0, abs=TOLERANCE)
