"""The head and the loss by chunks of tokens: the same loss and gradient, and no whole logits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Replicate

from lmcore.data.loader import IGNORE_INDEX
from lmcore.parallel.head import chunk_size, each_loss, summed_loss
from lmcore.train.loss import loss_sums
from lmcore.train.memory import TensorBytes

CPU = torch.device("cpu")
WIDTH, VOCAB, PLACE = 16, 300, {"stream": Replicate()}


def make(tokens=60):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCAB, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCAB, WIDTH, generator=generator))
    hidden = torch.randn(2, tokens // 2, WIDTH, generator=generator)
    targets = torch.randint(0, VOCAB, hidden.shape[:2], generator=generator)
    targets[0, 5:20] = IGNORE_INDEX
    return head, hidden, targets


def losses(logits, targets):
    loss, z_loss = loss_sums(logits, targets, None, z_loss=True)
    return loss + 1e-2 * z_loss


def compute(size, dtype=None, scale=0.5, **options):
    """Loss, and gradients by the hidden states and the weight; under autocast with a ``dtype``."""
    head, hidden, targets = make()
    hidden.requires_grad_()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = summed_loss(head, hidden, targets, losses, size, **PLACE, **options)
    assert loss.dtype == torch.float32
    (loss * scale).backward()
    return [loss.detach(), hidden.grad, head.weight.grad]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 7, 30, 59])
def test_chunks_add_up_to_the_whole(size, dtype):
    whole, parts, exact = compute(0, dtype), compute(size, dtype), compute(0)
    for one, other, true in zip(whole, parts, exact, strict=True):
        assert one.dtype == other.dtype == torch.float32
        if dtype is None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        # In 16 bits as near to the truth as the usual way is.
        assert (other - true).norm() <= 1.1 * (one - true).norm() + 1e-5 * true.norm()


def test_a_backward_pass_may_come_twice_where_it_is_said():
    head, hidden, targets = make()
    hidden.requires_grad_()
    loss = summed_loss(head, hidden, targets, losses, 7, **PLACE, once=False) * 0.5
    (by_hidden,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (by_weight,) = torch.autograd.grad(loss, head.weight)
    expected = compute(0)
    torch.testing.assert_close([by_hidden, by_weight], expected[1:], rtol=1e-5, atol=1e-5)


def test_losses_of_each_token_are_the_same_by_chunks():
    head, hidden, targets = make()

    def each(logits, wanted):
        flat = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten().clamp(min=0), reduction="none"
        )
        return flat.view_as(wanted)

    whole, parts = (each_loss(head, hidden, targets, each, size, **PLACE) for size in (0, 7))
    assert parts.shape == targets.shape
    torch.testing.assert_close(whole, parts)


def test_logits_are_never_whole():
    head, hidden, targets = make(tokens=2000)
    peaks = []
    for size in (0, 500, 50):
        hidden = hidden.detach().requires_grad_()
        with TensorBytes(CPU) as tensors:
            summed_loss(head, hidden, targets, losses, size, **PLACE).backward()
        peaks.append(tensors.peak)
    logits = 2000 * VOCAB * 4
    assert peaks[0] > 2 * logits
    assert peaks[1] < peaks[0] / 2
    assert peaks[2] < logits / 2


@pytest.mark.parametrize(("vocab", "wish", "expected"), [(66, None, 0), (8192, None, 128), (8192, 0, 0)])
def test_chunks_are_about_as_large_as_one_another(vocab, wish, expected):
    assert chunk_size(2048, vocab, wish, CPU) == expected
    assert chunk_size(1000, vocab, 300, CPU) == 250


@pytest.mark.long
def test_who_has_less_of_the_vocabulary_makes_as_many_chunks():
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = Path(__file__).with_name("odd_vocabulary.py")
    done = subprocess.run([*agent, program], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
