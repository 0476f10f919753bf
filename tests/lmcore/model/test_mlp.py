"""An MLP that is one operation is the MLP, and its nonlinearities are torch's."""

import pytest
import torch
import torch.nn.functional as F

from lmcore.config import ModelConfig
from lmcore.model import linear
from lmcore.model.mlp import MLP, _MLPOnCPU, activate

NAMES = ("relu2", "gelu", "gelu_erf", "swiglu")
BLOCK = 32  # of SwiGLU's rows


def by_torch(h, name, block):
    if name == "swiglu":
        gate, up = h.unflatten(-1, (-1, 2, block)).unbind(-2)
        return (F.silu(gate) * up).flatten(-2)
    if name == "relu2":
        return F.relu(h).square()
    return F.gelu(h, approximate="tanh" if name == "gelu" else "none")


def mlp_and_input(name, *, bias=False):
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=160, num_heads=4, num_layers=1, activation=name, bias=bias)
    return MLP(config), torch.randn(3, 50, 160, requires_grad=True)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("name", NAMES)
def test_results_and_slopes_are_torchs(name, scale):
    x = (torch.randn(64, 192, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    exact = x.detach().double().requires_grad_()
    ours, theirs = activate(x, name, BLOCK), by_torch(exact, name, BLOCK)
    above = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    ours.backward(above)
    theirs.backward(above.double())
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_read_stays_as_it_is(name, gradient):
    x = torch.linspace(-5, 5, 64, requires_grad=gradient)
    before = x.detach().clone()
    result = activate(x, name, BLOCK)
    torch.testing.assert_close(result, by_torch(x, name, BLOCK))
    if gradient:
        above = torch.ones(result.shape)
        for _ in range(2):  # and a second pass through it is as the first
            x.grad = None
            result.backward(above, retain_graph=True)
            torch.testing.assert_close(x.grad, torch.autograd.grad(by_torch(x, name, BLOCK).sum(), x)[0])
        assert torch.equal(above, torch.ones(result.shape))
    assert torch.equal(x, before)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_one_operation_is_as_several(monkeypatch, name, turned, bias, onednn):
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: onednn and torch.backends.mkldnn.is_available())
    mlp, x = mlp_and_input(name, bias=bias)
    above = torch.randn(50, 3, 160).transpose(0, 1) if turned else torch.randn(3, 50, 160)
    found = []
    for merged in (True, False):
        mlp.merged = merged
        result = mlp(x)
        assert (type(result.grad_fn).__name__ == "_MLPOnCPUBackward") == merged
        result.backward(above)
        found.append([result.detach(), *(p.grad for p in (x, *mlp.parameters()))])
        for p in (x, *mlp.parameters()):
            p.grad = None
    for one, several in zip(*found, strict=True):
        torch.testing.assert_close(one, several, rtol=0, atol=0)  # bit by bit


@pytest.mark.parametrize("without", ["input", "up.weight", "up.bias", "down.weight", "down.bias"])
def test_gradients_that_nobody_needs_are_not_computed(without):
    mlp, x = mlp_and_input("relu2", bias=True)
    for name, tensor in (("input", x), *mlp.named_parameters()):
        tensor.requires_grad_(name != without)
    mlp(x).sum().backward()
    for name, tensor in (("input", x), *mlp.named_parameters()):
        assert (tensor.grad is None) == (name == without), name


def test_layers_of_another_class_are_asked(monkeypatch):
    class Other(linear.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    mlp, x = mlp_and_input("relu2")
    for name in ("up", "down"):
        layer = getattr(mlp, name)
        other = Other(layer.in_features, layer.out_features, bias=False)
        other.load_state_dict(layer.state_dict())
        monkeypatch.setitem(mlp._modules, name, other)
        expected = mlp.down(activate(mlp.up(x), "relu2", BLOCK))
        assert torch.equal(mlp(x), expected)
        monkeypatch.setitem(mlp._modules, name, layer)
        assert not torch.equal(mlp(x), expected)


def test_no_rows_are_no_matter():
    mlp, _ = mlp_and_input("gelu")
    x = torch.empty(0, 50, 160, requires_grad=True)
    mlp(x).sum().backward()
    assert x.grad.shape == x.shape
    assert not mlp.up.weight.grad.any()


def test_a_second_derivative_is_refused():
    mlp, x = mlp_and_input("gelu")
    (gradient,) = torch.autograd.grad(mlp(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_it_is_for_training_in_fp32_on_a_cpu(monkeypatch):
    mlp, x = mlp_and_input("gelu")
    monkeypatch.setattr(_MLPOnCPU, "apply", lambda *arguments: pytest.fail("taken"))
    with torch.no_grad():
        mlp(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp(x).dtype == torch.bfloat16
    mlp.double()(x.double())
