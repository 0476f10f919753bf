"""`gristmill plan`: a table, a file, and errors that help."""

import json
import re

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.plan import show_plan
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
    sets = ("--set", "train.steps=70", "--set", "train.costs.peak_tflops=10")
    shown = run("quickstart", "--gpus", "2", "--gpu", "A100", *sets)
    assert shown.exit_code == 0, shown.output
    assert "in 70 steps" in shown.output
    assert "MFU is of 10 TFLOP/s a GPU, train.costs.peak_tflops." in shown.output
    assert "2 A100 of 80 GB" in shown.output


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    return file, run("quickstart", "--gpus", "2", "--set", "train.steps=70", "--json", str(file))


def test_a_small_case_is_told_in_units_that_fit_it(small):
    file, shown = small
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
    assert "MFU is of 67 TFLOP/s a GPU, the vendor's figure for H100, FP32" in shown.output
    why = " ".join(layout["why"] for layout in plan["layouts"])
    assert not re.search(r"\b0(\.0+)? (s|GB)\b|of 0\b|instead of 0\.00\b", why), why


@pytest.mark.parametrize(
    ("size", "unit", "told"),
    [(9e9, "GB", "9.00"), (12e9, "GB", "12.0"), (900e6, "MB", "900.0"), (1.2e6, "MB", "1.20")],
)
def test_bytes_are_told_in_the_unit_of_the_whole(small, size, unit, told, capsys):
    plan = json.loads(small[0].read_text())
    best = plan["layouts"][0]
    best["memory_bytes"] |= {"total": size}
    best["sent_bytes_per_step"] = {"dp_replicate": size}
    show_plan("a recipe", plan | {"layouts": [best]})
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    (memory,) = (at for at, line in enumerate(lines) if line.startswith(f"{unit} of the fullest process"))
    heading, row = (re.split(r"\s{2,}", line.strip()) for line in lines[memory + 1 : memory + 3])
    columns = dict(zip(heading, row, strict=True))
    assert columns["total"] == told
    assert [line for line in lines if line.startswith(f"{unit} that a process sends")]
    (sent,) = (at for at, line in enumerate(lines) if re.match(r"layout +dp_replicate +matmul", line))
    assert re.split(r"\s{2,}", lines[sent + 1].strip())[1].startswith(f"{told} ")


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
