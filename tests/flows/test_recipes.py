"""The recipes that come with the mill: whole, of the size they say, and laid out so that all divides."""

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from flows.recipe_files import RECIPES, descriptions, find_recipe
from lmcore.config import load_recipe
from lmcore.errors import ConfigError
from lmcore.layout import find_misfit
from lmcore.model.transformer import Transformer
from lmcore.sizing import count_parameters

SOURCE = "data.sources.0.path=data/*.jsonl.zst"
# Published, and what a token meets of it.
PARAMETERS = {
    "gpt2-124m": (124_439_808, 124_439_808),
    "llama-1b": (1_235_814_400, 1_235_814_400),
    "llama-405b": (405_853_388_800, 405_853_388_800),
    "llama-8b": (8_030_261_248, 8_030_261_248),
    "moe-small": (2.0e9, 0.3e9),
}
PROCESSES = {"gpt2-124m": 8, "llama-1b": 8, "llama-405b": 16_384, "llama-8b": 64, "moe-small": 8}
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
LARGE = [name for name in NAMES if name not in ("quickstart", "continue-from-hf", "shakespeare-char")]


def load(name):
    return load_recipe(find_recipe(name), [SOURCE])


def test_every_large_recipe_has_a_published_size():
    assert set(LARGE) == set(PARAMETERS)


@pytest.mark.parametrize("name", LARGE)
def test_the_model_has_the_published_number_of_parameters(name):
    recipe = load(name)
    vocab_size = recipe.data.tokenizer.vocab_size
    with torch.device("meta"):
        model = Transformer(recipe.model, vocab_size)
    total, active = PARAMETERS[name]
    assert model.num_parameters == pytest.approx(total, rel=0.01)
    assert count_parameters(recipe.model, vocab_size) == model.num_parameters
    moe = recipe.model.moe
    if moe.num_experts:
        asleep = moe.num_experts - moe.num_experts_per_token
        asleep *= 3 * recipe.model.hidden_size * recipe.model.expert_size * recipe.model.num_layers
        assert model.num_parameters - asleep == pytest.approx(
            active, rel=0.2
        )  # published as about 0.3 billion


def test_characters_of_shakespeare_cost_what_they_cost_nanogpt():
    recipe = load("shakespeare-char")
    assert recipe.train.steps * recipe.train.global_batch_tokens == 2_000 * 12 * 64
    # Its blocks, norms, 65 characters and 64 positions.
    assert count_parameters(recipe.model, 66) <= 4 * 12 * 128**2 + 9 * 128 + (65 + 64) * 128


def test_a_recipe_that_needs_a_text_says_where_that_is_told():
    shown = CliRunner().invoke(app, ["run", "shakespeare-char"])
    assert shown.exit_code == 2
    assert "--set data.sources.0.path=" in shown.stderr
    path = find_recipe("shakespeare-char")
    assert f"The first lines of {path} tell" in shown.stderr
    assert "karpathy/char-rnn/master/data/tinyshakespeare/input.txt" in path.read_text()[:600]


def test_a_model_to_go_on_from_is_gpt2():
    paths = ["train.initial_weights=gpt2", "data.tokenizer.path=gpt2"]
    recipe = load_recipe(find_recipe("continue-from-hf"), paths)
    with torch.device("meta"):
        model = Transformer(recipe.model, 50_257)
    assert model.num_parameters == PARAMETERS["gpt2-124m"][0]
    assert find_misfit(recipe.model, recipe.train) == ""


@pytest.mark.parametrize("name", LARGE)
def test_the_batch_divides_over_the_layout(name):
    train = load(name).train
    parallel = train.parallel
    assert parallel.num_processes == PROCESSES[name]
    assert (
        train.micro_batch_size * train.grad_accum_steps * parallel.dp * train.seq_len
        == train.global_batch_tokens
    )
    assert find_misfit(load(name).model, train) == ""


@pytest.mark.parametrize("name", LARGE)
def test_a_run_learns_from_a_plausible_number_of_tokens(name):
    train = load(name).train
    active = PARAMETERS[name][1]
    assert 19 < train.steps * train.global_batch_tokens / active < 400
    assert 5e-5 < train.optimizer.learning_rate < 3e-3
    assert train.schedule.warmup_steps < 0.1 * train.steps


@pytest.mark.parametrize("name", LARGE)
def test_weights_moments_and_gradients_fit_a_gpu_of_80_gb(name):
    recipe = load(name)
    size = count_parameters(recipe.model, recipe.data.tokenizer.vocab_size)
    parallel = recipe.train.parallel
    assert 16 * size / (parallel.dp_shard * parallel.tp * parallel.pp) < 40e9


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_says_what_is_missing(name):
    with pytest.raises(ConfigError) as caught:
        load_recipe(find_recipe(name))
    assert "--set data.sources.0.path=" in str(caught.value)
    assert "too_short" not in str(caught.value)
    assert "at least 1 item" not in str(caught.value)
    assert "--set data.sources.0.path=" in " ".join(find_recipe(name).read_text().split())


def test_every_recipe_is_described_in_a_line():
    found = descriptions()
    assert list(found) == NAMES
    assert all(20 < len(text) < 110 for text in found.values())


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=", ".join(NAMES)):
        find_recipe("gpt3")


def test_names_stand_apart_from_what_recipes_are():
    shown = CliRunner().invoke(app, ["recipes"]).stdout.splitlines()
    assert [line.split("  ")[0] for line in shown] == NAMES
