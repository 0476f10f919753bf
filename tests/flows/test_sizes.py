"""Recipes that one number makes, written out and read back."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli import app
from flows.recipe_files import write_out
from flows.sizes import parse_count, write_size
from lmcore.config import EvaluationConfig, Recipe, load_recipe
from lmcore.errors import ConfigError
from lmcore.sizing import RULES, size_of_depth, size_of_parameters


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["--depth", "12"], size_of_depth(12)),
        (["--parameters", "124M"], size_of_parameters(124_000_000)),
        (
            ["--parameters", "1.5b", "--processes", "8", "--precision", "fp8"],
            size_of_parameters(1_500_000_000),
        ),
        (["--depth", "4", "--path", "data/*.txt", "--precision", "fp32"], size_of_depth(4)),
    ],
)
def test_what_is_printed_is_a_complete_recipe(tmp_path, arguments, size):
    shown = CliRunner().invoke(app, ["size", *arguments])
    assert shown.exit_code == 0, shown.output
    path = tmp_path / "mine.yaml"
    path.write_text(shown.stdout)
    recipe = load_recipe(path)
    assert recipe.model == size.model
    assert recipe.data.tokenizer.vocab_size == size.vocab_size
    assert yaml.safe_load(shown.stdout) == recipe.model_dump(mode="json")
    for reason in RULES.values():
        assert f"# {reason}\n" in shown.stdout


def test_a_model_that_is_too_large_for_the_standard_library_says_so_before_it_is_trained(tmp_path):
    shown = CliRunner().invoke(app, ["size", "--depth", "12"])
    assert "warning: too little text" in shown.stderr
    assert "--path" in shown.stderr
    told = " ".join(line.removeprefix("# ") for line in shown.stdout.splitlines() if line.startswith("# "))
    assert shown.stderr.strip().removeprefix("warning: ") in told
    small = CliRunner().invoke(app, ["size", "--parameters", "600k"])
    assert small.stderr == ""
    assert "too little" not in small.stdout
    mine = tmp_path / "mine.yaml"
    mine.write_text(shown.stdout)
    planned = CliRunner().invoke(app, ["plan", str(mine), "--gpus", "8"])
    assert planned.exit_code == 0, planned.output
    assert "warning: too little text" in planned.output


def test_the_mill_takes_it(make_mill, tmp_path):
    path = tmp_path / "mine.yaml"
    mill = make_mill("sizes")
    path.write_text(write_size(2, "", str(mill.corpus), 1, "fp32"))
    explained = mill.call("explain", str(path))
    assert explained.returncode == 0, explained.stderr
    assert "documents" in explained.stdout


@given(prompts=st.lists(st.text(min_size=1), min_size=1).map(tuple))
@settings(max_examples=50)
def test_any_text_survives_being_written_out(prompts):
    recipe = Recipe(evaluation=EvaluationConfig(prompts=prompts))
    written = write_out(recipe, "A head", {"train.steps": "A reason"})
    assert yaml.safe_load(written) == recipe.model_dump(mode="json")
    assert "  # A reason\n  steps: 400\n" in written
    assert written.startswith("# A head\n")


@pytest.mark.parametrize(
    ("text", "count"),
    [("124 M", 124_000_000), ("1.5b", 1_500_000_000), ("300k", 300_000), ("1_000,000", 10**6)],
)
def test_counts_are_read_as_people_write_them(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "12x", "-3", "1.2.3", "1,5B", "12,4M"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ConfigError, match="number of parameters"):
        parse_count(text)


@pytest.mark.parametrize("parameters", ["124 M", "124,000,000", "124_000_000"])
def test_a_count_in_any_form_names_a_recipe(parameters):
    assert yaml.safe_load(write_size(None, parameters, "", 1, "bf16"))["name"].startswith("size-124")


def test_a_path_with_a_password_is_refused_without_showing_it():
    shown = CliRunner().invoke(app, ["size", "--depth", "4", "--path", "s3://me:hunter2@bucket/*.txt"])
    assert shown.exit_code == 2
    assert "password" in shown.output
    assert "hunter2" not in shown.output


@pytest.mark.parametrize(("depth", "parameters"), [(None, ""), (3, "1M")])
def test_exactly_one_number_is_asked_for(depth, parameters):
    with pytest.raises(ConfigError, match="--depth 12, or --parameters 124M"):
        write_size(depth, parameters, "", 1, "bf16")
