"""Products of eight-bit floats, against the same in fp32; torch multiplies them on a CPU too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmcore.config import ModelConfig, ParallelConfig, Recipe, parse
from lmcore.errors import ConfigError
from lmcore.model.float8 import BACKWARD, FORWARD, Float8Linear, quantize, use_float8
from lmcore.model.linear import Linear
from lmcore.model.transformer import Transformer
from lmcore.train.precision import check_fp8

CONFIG = ModelConfig(num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=2, max_seq_len=32)
CPU = torch.device("cpu")


def relative(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def both(rows, inputs, outputs, dtype=torch.float32, bias=True):
    """A layer in eight bits and the same in fp32, with their gradients for one batch."""
    torch.manual_seed(rows)
    plain = nn.Linear(inputs, outputs, bias=bias)
    eight = nn.Linear(inputs, outputs, bias=bias)
    eight.load_state_dict(plain.state_dict())
    eight.__class__ = Float8Linear
    x, gradient = torch.randn(rows, inputs), torch.randn(rows, outputs)
    results = []
    for layer, kind in ((plain, torch.float32), (eight, dtype)):
        leaf = x.to(kind, copy=True).requires_grad_()
        y = layer(leaf)
        y.backward(gradient.to(y.dtype))
        results.append((y, leaf.grad, layer.weight.grad))
    return results


@pytest.mark.parametrize("rows", [1, 16, 37, 128])  # tokens need not be a multiple of 16
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_and_its_gradients_are_near_those_of_fp32(rows, dtype):
    expected, found = both(rows, 96, 48, dtype)
    assert found[0].dtype == torch.bfloat16
    assert found[1].dtype == dtype
    # Three bits of fraction round by at most 1/16, two by 1/8; their errors add up as independent ones do.
    for tolerance, a, b in zip((0.07, 0.1, 0.1), found, expected, strict=True):
        assert 1e-4 < relative(a, b) < tolerance


@given(
    exponent=st.integers(-40, 40), size=st.integers(1, 50), seed=st.integers(0, 99), backward=st.booleans()
)
@settings(max_examples=50, deadline=None)
def test_scaling_keeps_the_relative_error_whatever_the_magnitude(exponent, size, seed, backward):
    dtype, bits = (BACKWARD, 2) if backward else (FORWARD, 3)
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    eight, scale = quantize(values * 2.0**exponent, dtype)
    assert torch.frexp(scale)[0] == 0.5  # a power of two
    assert eight.float().abs().max() <= torch.finfo(dtype).max
    # What is not small beside the largest is rounded by at most half a unit of its last bit.
    large = values.abs() > values.abs().max() * 2.0**-6
    error = (eight.float() * scale / 2.0**exponent - values).abs() / values.abs()
    assert error[large].max() <= 2.0 ** -(bits + 1)
    assert torch.equal(quantize(values * 2.0**exponent * 4, dtype)[0].float(), eight.float())


def test_zeros_stay_zeros_and_what_is_not_finite_is_seen():
    layer = nn.Linear(16, 16, bias=False)
    layer.__class__ = Float8Linear
    assert torch.equal(layer(torch.zeros(4, 16)), torch.zeros(4, 16, dtype=torch.bfloat16))
    for wrong in (float("inf"), float("nan")):
        x = torch.zeros(4, 16)
        x[0, 0] = wrong
        assert not torch.isfinite(layer(x)[0]).any()


def test_the_products_of_blocks_are_converted_and_nothing_else():
    model = Transformer(CONFIG, 100)
    names = list(model.state_dict())
    converted = use_float8(model.blocks)
    assert set(converted.layers) == {
        f"{layer}.{name}"
        for layer in range(2)
        for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }
    assert converted.kept == ()
    assert not isinstance(model.head, Float8Linear)
    assert list(model.state_dict()) == names


def test_layers_of_other_sizes_stay_and_are_named():
    config = CONFIG.model_copy(update={"intermediate_size": 100})
    model = Transformer(config, 100)
    converted = use_float8(model.blocks)
    assert converted.kept == ("0.mlp.up", "0.mlp.down", "1.mlp.up", "1.mlp.down")
    assert "0.mlp.up" in str(converted)
    assert type(model.blocks[0].mlp.up) is Linear


def test_logits_are_near_those_of_fp32():
    config = CONFIG.model_copy(update={"zero_init_projections": False, "init_std": 0.2})
    model = Transformer(config, 100)
    model.init_weights(0)
    tokens = torch.randint(0, 100, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens)
        use_float8(model.blocks)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(tokens)
    assert 1e-3 < relative(found, expected) < 0.15


@pytest.mark.parametrize(
    ("model", "parallel", "hint"),
    [
        (CONFIG, {"tp": 2}, "train.parallel.tp=1"),
        (ModelConfig(hidden_size=24, num_heads=2), {}, "multiple of 16"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(model, parallel, hint):
    with pytest.raises(ConfigError, match=hint):
        check_fp8(model, ParallelConfig(dp_replicate=1, **parallel), CPU)


def test_a_recipe_that_divides_matrices_of_fp8_is_refused():
    train = {"precision": "fp8", "parallel": {"tp": 3}}
    with pytest.raises(ConfigError, match="precision fp8 needs whole matrices"):
        parse(Recipe, {"train": train}, where="r.yaml")


def test_an_old_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ConfigError, match=r"8\.9 or newer, found NVIDIA A100 of 8\.0.*train\.precision=bf16"):
        check_fp8(CONFIG, ParallelConfig(dp_replicate=1), torch.device("cuda"))


def test_a_cpu_is_taken_for_checks():
    check_fp8(CONFIG, ParallelConfig(dp_replicate=1), CPU)
