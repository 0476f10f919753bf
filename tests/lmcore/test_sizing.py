"""One number makes a whole run: valid at any size, as large as was asked for, and growing with it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import ModelConfig, MoEConfig, Recipe
from lmcore.errors import ConfigError
from lmcore.model.transformer import Transformer
from lmcore.sizing import (
    MAX_DEPTH,
    MAX_PARAMETERS,
    MIN_PARAMETERS,
    RULES,
    batch_of,
    count_parameters,
    learning_rate_of,
    operations_of,
    recipe_of,
    size_of_depth,
    size_of_parameters,
    training_of,
    warmup_of,
)

DEPTHS = range(1, MAX_DEPTH + 1)
COUNTS = st.floats(math.log(MIN_PARAMETERS), math.log(MAX_PARAMETERS)).map(
    lambda x: min(MAX_PARAMETERS, max(MIN_PARAMETERS, round(math.exp(x))))
)


def whole(model: ModelConfig, vocab_size: int) -> Transformer:
    with torch.device("meta"):
        return Transformer(model, vocab_size)


@given(count=COUNTS)
@settings(max_examples=30)
def test_a_model_has_as_many_parameters_as_were_asked_for(count):
    size = size_of_parameters(count)
    assert size.num_parameters == pytest.approx(count, rel=0.1)
    model = size.model
    assert 2 <= model.mlp_size / model.hidden_size <= 4
    assert 20 < model.hidden_size / model.num_layers < 300
    assert model.head_size in (64, 128)


@given(count=COUNTS, processes=st.integers(1, 100), precision=st.sampled_from(["fp32", "bf16", "fp8"]))
@settings(max_examples=30)
def test_the_recipe_of_any_size_and_number_of_processes_is_valid(count, processes, precision):
    recipe = recipe_of(size_of_parameters(count), "r", "data/*.txt", processes, precision)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert recipe.train.parallel.num_processes == processes
    assert recipe.train.steps * recipe.train.global_batch_tokens >= 19 * count


@pytest.mark.parametrize("depth", [1, 3, 12, 24])
def test_parameters_and_operations_are_counted_as_torch_counts_them(depth):
    size = size_of_depth(depth)
    model = whole(size.model, size.vocab_size)
    assert size.num_parameters == model.num_parameters
    head = 6 * size.vocab_size * size.model.hidden_size
    # Norms are among the parameters, and multiply no matrix.
    assert operations_of(size, 1, 128) == pytest.approx(model.flops_per_token(128) - head, rel=0.01)


@given(
    position=st.sampled_from(["rope", "learned"]),
    norm=st.sampled_from(["rmsnorm", "layernorm"]),
    activation=st.sampled_from(["swiglu", "relu2", "gelu", "gelu_erf"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    kv_heads=st.sampled_from([None, 1, 2]),
)
@settings(max_examples=40)
def test_parameters_of_any_style_are_counted_as_torch_counts_them(
    position, norm, activation, flags, kv_heads
):
    qk_norm, bias, tied = flags
    model = ModelConfig(
        num_layers=3,
        hidden_size=48,
        num_heads=4,
        num_kv_heads=kv_heads,
        position=position,
        norm=norm,
        activation=activation,
        qk_norm=qk_norm,
        bias=bias,
        tie_embeddings=tied,
    )
    assert count_parameters(model, 77) == whole(model, 77).num_parameters


def test_parameters_of_experts_are_counted_as_torch_counts_them():
    moe = MoEConfig(num_experts=6, intermediate_size=40, num_shared_experts=2, num_dense_layers=1)
    for activation in ("swiglu", "gelu"):
        model = ModelConfig(num_layers=4, hidden_size=48, activation=activation, moe=moe)
        assert count_parameters(model, 77) == whole(model, 77).num_parameters


def test_all_grows_with_depth_but_the_learning_rate_which_falls():
    sizes = [size_of_depth(depth) for depth in DEPTHS]
    trainings = [training_of(size) for size in sizes]
    for a, b in itertools.pairwise(sizes):
        assert a.num_parameters < b.num_parameters
        assert a.model.hidden_size <= b.model.hidden_size
        assert a.vocab_size <= b.vocab_size
        assert a.model.max_seq_len <= b.model.max_seq_len
    for a, b in itertools.pairwise(trainings):
        assert a.steps * a.global_batch_tokens < b.steps * b.global_batch_tokens
        assert a.global_batch_tokens <= b.global_batch_tokens
        assert a.optimizer.learning_rate >= b.optimizer.learning_rate


def test_twice_the_parameters_are_more_of_everything():
    counts = [MIN_PARAMETERS * 2**k for k in range(19)]
    trainings = [training_of(size_of_parameters(count)) for count in counts]
    for a, b in itertools.pairwise(trainings):
        assert a.steps * a.global_batch_tokens < b.steps * b.global_batch_tokens
        assert a.global_batch_tokens <= b.global_batch_tokens
        assert a.optimizer.learning_rate > b.optimizer.learning_rate


@pytest.mark.parametrize(
    ("depth", "width", "heads", "kv_heads", "context"),
    [(12, 768, 12, 12, 1024), (28, 3072, 24, 8, 4096), (32, 4096, 32, 8, 4096), (40, 5120, 40, 8, 8192)],
)
def test_shapes_are_those_of_published_models(depth, width, heads, kv_heads, context):
    """GPT-2 small, Llama 3.2 3B, Llama 3 8B (with Llama 2's context), Llama 2 13B with groups of heads."""
    model = size_of_depth(depth).model
    assert (model.hidden_size, model.num_heads, model.num_kv_heads) == (width, heads, kv_heads)
    assert model.max_seq_len == context


def test_the_laws_give_what_their_paper_gives():
    # Bi et al. 2024, table 2: 7B on 2T tokens with batches of 9.4M tokens and a rate of 4.2e-4. Its 30 layers
    # of width 4,096 take 4.3e10 operations a token without the vocabulary.
    operations = 4.3e10 * 2e12
    assert 0.2920 * operations**0.3271 == pytest.approx(9.4e6, rel=0.15)
    assert batch_of(operations) == 2**23
    assert learning_rate_of(operations) == pytest.approx(4.2e-4, rel=0.05)
    # What people found by hand for GPT-2 small: 0.0015 to 0.0018 for 2^18 to 2^19 tokens a step.
    train = training_of(size_of_parameters(124_000_000))
    assert 2**18 <= train.global_batch_tokens <= 2**19
    assert 0.0015 <= train.optimizer.learning_rate <= 0.0018


def test_warmup_is_never_the_whole_run():
    assert [warmup_of(steps) for steps in (2, 30, 1_000, 10_000, 10**6)] == [1, 29, 40, 200, 2_000]


def test_every_reason_is_of_a_setting():
    values = recipe_of(size_of_depth(4), "r").model_dump()
    for path in RULES:
        table = values
        for name in path.split("."):
            table = table[name]


@pytest.mark.parametrize(
    ("function", "wrong"),
    [(size_of_depth, 0), (size_of_depth, 1000), (size_of_parameters, 10), (size_of_parameters, 10**13)],
)
def test_sizes_without_a_rule_are_refused(function, wrong):
    with pytest.raises(ConfigError, match="expected"):
        function(wrong)
