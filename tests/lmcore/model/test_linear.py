"""Linear layers by another library are linear layers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmcore.model import linear
from lmcore.model.linear import Linear, by_onednn, product

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)
CALL = "mkldnn::_linear_pointwise"


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """Have it taken on any processor."""
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)


def layer_and_input(inputs=160, outputs=224, *, bias=False):
    torch.manual_seed(0)
    return Linear(inputs, outputs, bias=bias), torch.randn(3, 50, inputs, requires_grad=True)


def calls(work):
    """How often ``work`` multiplied by oneDNN."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        work()
    return sum(event.name == CALL for event in profiled.events())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_results_and_gradients_are_torchs(bias, turned):
    layer, x = layer_and_input(bias=bias)
    above = torch.randn(50, 3, 224).transpose(0, 1) if turned else torch.randn(3, 50, 224)
    found = []
    for compute in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        y = compute(x)
        y.backward(above)
        found.append([y.detach(), *(p.grad for p in (x, *layer.parameters()))])
        for p in (x, *layer.parameters()):
            p.grad = None
    assert type(layer(x).grad_fn).__name__ == "_OneDNNBackward"
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_gradient_that_nobody_needs_is_not_computed():
    layer, x = layer_and_input()
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))
    assert calls(lambda: Linear.forward(layer, x.detach()).sum()) == 1


def test_it_is_taken_for_training_in_fp32_of_matrices_worth_it():
    layer, x = layer_and_input()
    assert by_onednn(x.detach(), layer.weight)
    assert not by_onednn(x.detach().double(), layer.weight.double())
    assert not by_onednn(x.detach(), layer.weight.bfloat16())
    assert not by_onednn(x.detach()[..., :100], layer.weight[:, :100])
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_onednn(x.detach(), layer.weight)
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert calls(lambda: layer(x)) == 0  # shapes come and go there, each with a kernel to be made


def test_a_product_without_a_gradient_is_the_same():
    a, b = torch.randn(300, 160), torch.randn(224, 160)
    torch.testing.assert_close(product(a, b), a @ b.t(), rtol=1e-4, atol=1e-4)


def test_one_vector_is_multiplied_too():
    layer, _ = layer_and_input(bias=True)
    x = torch.randn(160, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0))
    torch.testing.assert_close(layer.weight.grad, x.detach().expand(224, 160))


def test_a_second_derivative_is_refused():
    layer, x = layer_and_input()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("vendor", "capability", "mkl", "taken"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True, True),
        ("vendor_id : AuthenticAMD", "AVX2", True, False),
        ("vendor_id : GenuineIntel", "AVX512", True, False),
        ("vendor_id : AuthenticAMD", "AVX512", False, False),
        ("", "NO AVX", True, False),
    ],
)
def test_it_is_for_processors_that_mkl_gives_less(monkeypatch, vendor, capability, mkl, taken):
    monkeypatch.undo()
    monkeypatch.setattr(linear, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert linear.onednn_is_faster.__wrapped__() == taken


def test_the_vendor_of_this_processor_is_read():
    lines = Path("/proc/cpuinfo")
    if not lines.is_file() or "vendor_id" not in lines.read_text():
        pytest.skip("this system does not say it there")
    assert linear._vendor() in lines.read_text().splitlines()
