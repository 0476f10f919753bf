"""Activation checkpoints: the same numbers in less memory."""

import functools
import gc
from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from lmcore.config import ModelConfig, ParallelConfig
from lmcore.data.loader import Batch
from lmcore.model import linear
from lmcore.model.attention import Attention
from lmcore.model.backends import attend_by_blocks, document_blocks
from lmcore.model.mlp import MLP
from lmcore.model.transformer import Transformer, initial_weight
from lmcore.parallel.apply import wrap
from lmcore.parallel.checkpointing import policy
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.parallel.stage import Stage
from lmcore.train.loss import loss_sums
from lmcore.train.memory import TensorBytes

SHAPE = {
    "num_layers": 3,
    "hidden_size": 64,
    "num_heads": 4,
    "max_seq_len": 64,
    "zero_init_projections": False,
}
MODELS = {
    "llama": ModelConfig(**SHAPE, activation="swiglu", num_kv_heads=2),
    "gpt2": ModelConfig(
        **SHAPE, position="learned", norm="layernorm", activation="gelu", bias=True, tie_embeddings=True
    ),
    "relu2": ModelConfig(**SHAPE, dropout=0.1),
    "moe": ModelConfig(
        **SHAPE, activation="swiglu", moe={"num_experts": 4, "intermediate_size": 48, "num_shared_experts": 1}
    ),
}
VOCAB = 50


ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


ONEDNN = "mkldnn._linear_pointwise.default"  # a name: torch for macOS comes without it
PRODUCTS = ("aten.mm.default", "aten.addmm.default", ONEDNN)


class Counted(TorchDispatchMode):
    """Counts operations that are done."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def gradients(config, precision, mode, *, compiled=False):
    """Gradients of two micro-batches, and the most bytes there were."""
    layout = make_layout(ParallelConfig(dp_replicate=1), World(0, 1, torch.device("cpu")))
    model = DividedModel(
        config,
        VOCAB,
        layout,
        precision,
        lambda name, shape: initial_weight(name, shape, config, 0),
        checkpointing=mode,
    )
    for block in model.stages[0].blocks if compiled else ():
        block.compile(backend="aot_eager")
    tokens = torch.randint(0, VOCAB, (4, 64), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(64).expand_as(tokens) // 20
    batch = Batch(tokens, tokens, torch.arange(64).expand_as(tokens) % 20, documents, torch.arange(4))
    weights = [p for _, p in model.named_parameters()]
    gc.collect()
    with TensorBytes(torch.device("cpu"), weights) as tensors:
        model.forward_backward(
            [batch, batch], lambda logits, targets, shard: loss_sums(logits, targets, shard, z_loss=False)[0]
        )
    return [p.grad for p in weights], tensors.peak


def merged_parts(stage):
    return [m.merged for m in stage.modules() if isinstance(m, (Attention, MLP))]


def test_what_is_checkpointed_or_goes_back_in_halves_is_not_one_operation():
    for name, model in MODELS.items():
        for mode in ("none", "selective", "full"):
            layout = make_layout(ParallelConfig(dp_replicate=1), World(0, 1, torch.device("cpu")))
            draw = functools.partial(initial_weight, config=model, seed=0)
            divided = DividedModel(model, VOCAB, layout, "fp32", draw, checkpointing=mode)
            parts = merged_parts(divided.stages[0])
            assert parts == [mode == "none"] * len(parts), name
    for schedule in get_args(ParallelConfig.model_fields["pipeline_schedule"].annotation):
        model = MODELS["gpt2"]
        with torch.device("meta"):
            stage = Stage(Transformer(model, VOCAB), range(model.num_layers))
        layout = replace(layout, parallel=ParallelConfig(dp_replicate=1, pp=2, pipeline_schedule=schedule))
        wrap(stage, layout, "fp32", draw, checkpointing="none")
        assert set(merged_parts(stage)) == {schedule not in ("zbv", "interleaved_zero_bubble")}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_the_same_bit_by_bit_in_less_and_less_memory(model, precision):
    found = {mode: gradients(MODELS[model], precision, mode) for mode in ("none", "selective", "full")}
    expected, none = found.pop("none")
    for mode, (others, _) in found.items():
        for one, other in zip(expected, others, strict=True):
            assert torch.equal(one, other), mode
    assert none > 1.2 * found["selective"][1]
    assert found["selective"][1] > 1.1 * found["full"][1]


def test_a_selective_checkpoint_multiplies_and_attends_no_second_time():
    def products(mode):
        with Counted() as counted:
            gradients(MODELS["llama"], "fp32", mode)
        return [counted.calls[torch.ops.aten.mm.default], counted.calls[ATTENTION]]

    none, selective, full = (products(mode) for mode in ("none", "selective", "full"))
    assert selective == none
    assert all(more > less for more, less in zip(full, none, strict=True))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_a_selective_checkpoint_keeps_what_onednn_multiplied(monkeypatch):
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    wide = MODELS["gpt2"].model_copy(update={"hidden_size": 256, "num_layers": 2})
    count = {}
    for mode in ("none", "selective", "full"):
        with Counted() as counted:
            gradients(wide, "fp32", mode)
        calls = {str(op): number for op, number in counted.calls.items()}
        assert calls[ONEDNN]
        count[mode] = sum(calls.get(name, 0) for name in PRODUCTS)
    # 2 micro-batches of 2 blocks: the last product of each is done again, or all four.
    assert count["selective"] == count["none"] + 4
    assert count["full"] == count["none"] + 16


def test_the_gradient_is_the_same_bit_by_bit_by_onednn(monkeypatch):
    monkeypatch.setattr(linear, "onednn_is_faster", torch.backends.mkldnn.is_available)
    wide = MODELS["gpt2"].model_copy(update={"hidden_size": 256, "num_layers": 2})
    expected, *others = (gradients(wide, "fp32", mode)[0] for mode in ("none", "selective", "full"))
    for found in others:
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_a_selective_checkpoint_can_be_compiled():
    expected, _ = gradients(MODELS["relu2"], "fp32", "none")
    for mode in ("selective", "full"):
        found, _ = gradients(MODELS["relu2"], "fp32", mode, compiled=True)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_is_compiled_keeps_attention_by_blocks():
    q, k, v = (torch.randn(1, 2, 64, 8) for _ in range(3))  # [B, H, T, hd]
    blocks = document_blocks(torch.arange(64)[None] // 20)
    contexts = create_selective_checkpoint_contexts(functools.partial(policy, 16))
    found = []
    for context in contexts:
        with context:
            found.append(attend_by_blocks(q, k, v, blocks))
        k.zero_()  # who computed it again would see it
    assert found[0].any()
    assert torch.equal(*found)
