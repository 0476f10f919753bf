"""What is computed by operations of our own is what torch computes."""

import pytest
import torch
import torch.nn.functional as F

from lmcore.model.layers import activate


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 1e6])
def test_gelu_and_its_slope_are_torchs(scale):
    x = (torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    exact = x.detach().double().requires_grad_()
    above = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    ours, theirs = activate(x, "gelu", 1), F.gelu(exact, approximate="tanh")
    ours.backward(above)
    theirs.backward(above.double())
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=1e-4, atol=1e-5)


def test_gelu_without_a_gradient_leaves_its_input_alone():
    x = torch.linspace(-5, 5, 101)
    before = x.clone()
    torch.testing.assert_close(activate(x, "gelu", 1), F.gelu(x, approximate="tanh"))
    assert torch.equal(x, before)


def test_a_second_pass_through_a_gelu_is_refused():
    x = torch.linspace(-5, 5, 101, requires_grad=True)
    y = activate(x, "gelu", 1).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_the_exact_gelu_is_torchs():
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(activate(x, "gelu_erf", 1), F.gelu(x))
