import pytest
import torch

from lmcore.data.loader import IGNORE_INDEX
from lmcore.train.loss import token_loss_sum, z_loss_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_and_its_gradient_are_those_of_the_definition(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 7, 30, generator=generator) * 3).to(dtype).requires_grad_()
    targets = torch.randint(0, 30, (2, 7), generator=generator)
    targets[0, 3:5] = IGNORE_INDEX
    loss = token_loss_sum(logits, targets)
    (loss * 0.5).backward()
    counted = targets != IGNORE_INDEX
    log_probabilities = logits.detach().double().log_softmax(-1)
    expected = -log_probabilities[counted].gather(-1, targets[counted][:, None]).sum()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    one_hot = torch.nn.functional.one_hot(targets.clamp(min=0), 30)
    gradient = 0.5 * (log_probabilities.exp() - one_hot) * counted[..., None]
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(logits.grad.double(), gradient, atol=tolerance, rtol=0)


def test_the_z_loss_is_that_of_the_definition():
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).double() * 4
    targets = torch.zeros(2, 5, dtype=torch.long)
    targets[1, 2:] = IGNORE_INDEX
    expected = sum(
        logits[row, place].exp().sum().log().item() ** 2
        for row, place in (targets != IGNORE_INDEX).nonzero().tolist()
    )
    assert z_loss_sum(logits, targets).item() == pytest.approx(expected, rel=1e-5)
