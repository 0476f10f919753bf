"""Predicted memory beside what a GPU measures; run with ``pytest tests/gpu`` on a machine that has one."""

import pytest
import torch

from lmcore.config import ModelConfig, TrainConfig
from lmcore.data.loader import Batch
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.plan.memory import memory_of
from lmcore.plan.shape import shape_of
from lmcore.train.loss import loss_sums
from lmcore.train.optim import Optimizers

TOLERANCE = 0.10
LLAMA = {
    "num_layers": 8,
    "hidden_size": 1024,
    "num_heads": 8,
    "num_kv_heads": 4,
    "intermediate_size": 4096,
    "activation": "swiglu",
    "qk_norm": False,
    "max_seq_len": 2048,
}


def measured(model: ModelConfig, vocab_size: int, train: TrainConfig) -> int:
    """Bytes that are allocated at most in the second of two steps."""
    world = World(0, 1, torch.device("cuda", 0))
    divided = DividedModel(
        model,
        vocab_size,
        make_layout(train.parallel, world),
        train.precision,
        lambda name, whole: torch.randn(whole) * 0.02,
        checkpointing=train.activation_checkpointing,
        loss_chunk_tokens=train.loss_chunk_tokens,
    )
    optimizers = Optimizers(divided.named_parameters(), train.optimizer, torch.bfloat16)
    shape = (train.micro_batch_size, train.seq_len)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        tokens = torch.zeros(shape, dtype=torch.long)
        divided.forward_backward(
            [Batch(tokens, tokens)] * train.grad_accum_steps,
            lambda logits, targets, shard: loss_sums(logits, targets, shard, z_loss=False)[0],
        )
        optimizers.step(1.0)
        optimizers.zero_grad()
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("chunk", [0, None])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("vocab_size", "tied"), [(1024, False), (32_768, True), (32_768, False)])
def test_predicted_memory_is_what_the_gpu_measures(mode, precision, chunk, vocab_size, tied):
    torch.cuda.empty_cache()
    config = ModelConfig(**LLAMA, tie_embeddings=tied)
    train = TrainConfig(
        seq_len=2048,
        micro_batch_size=4,
        global_batch_tokens=4 * 2048,
        precision=precision,
        activation_checkpointing=mode,
        loss_chunk_tokens=chunk,
        parallel={"dp_replicate": 1},
        optimizer={"name": "adamw"},
    )
    predicted = memory_of(shape_of(config, vocab_size), train, "cuda")
    assert predicted.total == pytest.approx(measured(config, vocab_size, train), rel=TOLERANCE), predicted
