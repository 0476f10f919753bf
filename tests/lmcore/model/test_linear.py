"""Linear layers by another library are linear layers."""

import pytest
import torch
import torch.nn.functional as F

from lmcore.model import linear
from lmcore.model.linear import Linear, by_onednn, multiply

# Torch for macOS comes without it.
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
CALL = "mkldnn::_linear_pointwise"
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\n"


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


@needs_onednn
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


@needs_onednn
def test_a_gradient_that_nobody_needs_is_not_computed():
    layer, x = layer_and_input()
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))
    assert calls(lambda: Linear.forward(layer, x.detach()).sum()) == 1


@needs_onednn
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


@needs_onednn
def test_a_product_without_a_gradient_is_the_same():
    a, b = torch.randn(300, 160), torch.randn(224, 160)
    torch.testing.assert_close(multiply(a, b), a @ b.t(), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_one_vector_is_multiplied_too():
    layer, _ = layer_and_input(bias=True)
    x = torch.randn(160, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0))
    torch.testing.assert_close(layer.weight.grad, x.detach().expand(224, 160))


@needs_onednn
def test_a_second_derivative_is_refused():
    layer, x = layer_and_input()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("cpuinfo", "capability", "mkl", "onednn", "taken"),
    [
        (AMD, "AVX512", True, True, True),
        (AMD, "AVX2", True, True, False),
        (AMD, "AVX512", False, True, False),
        (AMD, "AVX512", True, False, False),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", "AVX512", True, True, False),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", "DEFAULT", True, True, False),
    ],
)
def test_it_is_for_processors_that_mkl_gives_less(
    monkeypatch, tmp_path, cpuinfo, capability, mkl, onednn, taken
):
    monkeypatch.undo()
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert linear.onednn_is_faster.__wrapped__() == taken


def test_a_compiler_sees_one_graph(monkeypatch):
    monkeypatch.undo()  # the question about the processor is one that it would stop at
    torch.compiler.reset()
    layer, x = layer_and_input()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), F.linear(x, layer.weight))
