import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from lmcore.config import ModelConfig, ParallelConfig
from lmcore.data.loader import Batch
from lmcore.model.backends import Backend
from lmcore.model.transformer import initial_weight
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.train.loss import loss_sums

CONFIG = ModelConfig(num_layers=1, hidden_size=16, num_heads=2, max_seq_len=8, tie_embeddings=False)


def divided(vocab_size=11, **options):
    layout = make_layout(ParallelConfig(dp_replicate=1), World(0, 1, torch.device("cpu")))
    return DividedModel(
        CONFIG,
        vocab_size,
        layout,
        "fp32",
        lambda name, shape: initial_weight(name, shape, CONFIG, 0),
        **options,
    )


def test_logits_are_gone_before_the_backward_pass_is_done():
    model, seen, there = divided(), [], []

    def criterion(logits, targets, shard):
        seen.append(weakref.ref(logits))
        return loss_sums(logits, targets, shard, z_loss=False)[0]

    (embedding,) = (p for name, p in model.named_parameters() if name == "embedding.weight")
    embedding.register_hook(lambda gradient: there.append([reference() for reference in seen]))
    tokens = torch.arange(8)[None]
    model.forward_backward([Batch(tokens, tokens)] * 2, criterion)
    assert there == [[None], [None, None]]


def criterion_of_losses(logits, targets, shard):
    return loss_sums(logits, targets, shard, z_loss=False)[0]


def test_validation_computes_attention_by_the_kernel_of_training():
    model, allowed = divided(attention=Backend("math", (SDPBackend.MATH,))), []
    kernels = (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.flash_sdp_enabled)
    (block,) = model.stages[0].blocks
    block.register_forward_pre_hook(lambda *_: allowed.append([is_enabled() for is_enabled in kernels]))
    tokens = torch.arange(8)[None]
    model.forward_backward([Batch(tokens, tokens)], criterion_of_losses)
    model.token_losses(Batch(tokens, tokens))
    model.next_logits([1, 2, 3])
    assert allowed == [[True, False]] * 3
    assert all(is_enabled() for is_enabled in kernels)


@pytest.mark.long
def test_validation_in_a_pipeline_is_no_forward_pass_of_a_step():
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = Path(__file__).with_name("pipeline_clock.py")
    done = subprocess.run([*agent, program], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
