"""`gristmill plan`: a table, a file, and errors that help."""

import json
import re

import pytest
from typer.testing import CliRunner

from flows.cli import app
from lmcore.config import load_recipe
from lmcore.layout import find_misfit


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "240"})


def test_a_plan_is_a_table_with_reasons_and_the_same_as_json(tmp_path):
    file = tmp_path / "plan.json"
    arguments = ("--gpus", "64", "--gpu-memory", "80", "--price-per-gpu-hour", "2", "--json", str(file))
    shown = run("llama-8b", *arguments)
    assert shown.exit_code == 0, shown.output
    plan = json.loads(file.read_text())
    best = plan["layouts"][0]
    assert plan["parameters"] == 8_030_261_248
    assert best["fits"]
    assert best["memory_bytes"]["total"] < 72e9
    assert sum(best["layout"].values()) > 64
    assert f"-> fsdp {best['layout']['dp_shard']}" in shown.output
    assert "the recipe's own" in shown.output
    assert re.search(r"Planned in [\d.]+ s", shown.output)
    assert best["cost"] == pytest.approx(best["days"] * 24 * 64 * 2)
    # What is to be taken can be taken.
    sets = [f"train.parallel.{axis}={size}" for axis, size in best["layout"].items()]
    sets += [f"train.{name}={best[name]}" for name in ("micro_batch_size", "activation_checkpointing")]
    from flows.recipe_files import find_recipe

    recipe = load_recipe(find_recipe("llama-8b"), ["data.sources.0.path=x", *sets])
    assert find_misfit(recipe.model, recipe.train) == ""


def test_a_recipe_that_needs_no_path_and_settings_that_change_it():
    shown = run("quickstart", "--gpus", "2", "--gpu", "A100", "--set", "train.steps=70")
    assert shown.exit_code == 0, shown.output
    assert "in 70 steps" in shown.output
    assert "2 A100 of 80 GB" in shown.output


def test_a_small_case_is_told_in_units_that_fit_it(tmp_path):
    file = tmp_path / "plan.json"
    shown = run("quickstart", "--gpus", "2", "--set", "train.steps=70", "--json", str(file))
    assert shown.exit_code == 0, shown.output
    plan = json.loads(file.read_text())
    best = plan["layouts"][0]
    title, heading, row = shown.output.splitlines()[3:6]
    assert title.startswith("MB of the fullest process")
    columns = dict(zip(*(re.split(r"\s{2,}", line.strip()) for line in (heading, row)), strict=True))
    step, run_time = best["step_seconds"]["total"], best["days"] * 86_400
    assert float(columns["total"]) == pytest.approx(best["memory_bytes"]["total"] / 1e6, abs=0.1)
    assert float(columns["step ms"]) == pytest.approx(step * 1e3, rel=0.01)
    assert columns["MFU"] == f"{best['mfu']:.1%}"
    assert float(columns["ms"]) == pytest.approx(run_time * 1e3, rel=0.01)
    assert float(columns["Wh"]) == pytest.approx(best["kwh"] * 1e3, abs=0.06)
    assert "MFU is of 67 TFLOP/s a GPU, the vendor's figure for FP32" in shown.output
    why = " ".join(layout["why"] for layout in plan["layouts"])
    assert not re.search(r"\b0(\.0+)? (s|GB)\b|of 0\b|instead of 0\.00\b", why), why


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("llama-8b", "--gpus", "64", "--gpu", "H1000"), r"H1000.*one of A100, H100, H200, B200"),
        (("llama-8b", "--gpus", "63"), r"no layout divides .* over 63 GPUs.*--gpus \d+ or \d+"),
        (("llama-8b", "--gpus", "1", "--gpu-memory", "8"), r"nothing fits.*--gpus \d+ or more"),
        (("llama-9b", "--gpus", "8"), r"no recipe 'llama-9b'"),
        (("llama-8b", "--gpus", "8", "--set", "train.precison=bf16"), r"did you mean precision\?"),
        (
            ("llama-8b", "--gpus", "64", "--gpu", "A100", "--set", "train.precision=fp8"),
            r"no products of eight",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(arguments, said):
    shown = run(*arguments)
    assert shown.exit_code == 2
    line = " ".join(shown.stderr.split())
    assert line.startswith("error: ")
    assert re.search(said, line), line
    assert "Traceback" not in line
