"""Target 3: the share of a matrix product's rate that training reaches, in turn on the same machine."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from lmcore.config import ModelConfig, TrainConfig
from lmcore.model.linear import _onednn
from lmcore.parallel.mesh import keep_freed_memory
from training.measuring import alternate, say, verdict
from training.trainers import make_trainer, write_noise

TARGET = "rate of training over that of an fp32 matrix product, 6 M parameters, block 256, {} tokens a step"
LIMIT = 0.65
SIDE, PRODUCTS = 2_048, 20  # products in a turn: one alone is over before the processor is at its rate


def measure(shape: argparse.Namespace, tokens: int, *, threads: int, rounds: int) -> None:
    """Alternate a few steps (fp32, all that the trainer does but checkpoints) with plain products.

    By MKL and by oneDNN: the machine's rate is that of the faster.

    Args:
        shape: layers, hidden, heads, vocab, seq_len, batch (of a micro-batch) and optimizer.
        tokens: Of a step.
        threads: Of both.
        rounds: How often.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder), shape.vocab)
        trainer = make_trainer(Path(folder), *_configs(shape, tokens))
        side = torch.randn(SIDE, SIDE)
        few = max(1, 9_000 // tokens)  # some seconds of steps

        def several_steps() -> None:
            for _ in range(few):
                trainer._train_step()

        def several_products() -> None:
            for _ in range(PRODUCTS):
                side @ side

        def several_by_onednn() -> None:
            for _ in range(PRODUCTS):
                _onednn(side, side)

        kinds = [several_products, *[several_by_onednn] * torch.backends.mkldnn.is_available()]
        several_steps()
        steps, *others = alternate(rounds, 1, several_steps, *kinds)
        products = min(others, key=lambda times: times.seconds)
    seconds, cpu_seconds = steps.seconds / few, steps.cpu_seconds / few
    product = 2 * SIDE**3 * PRODUCTS
    flops = trainer.whole.flops_per_token(shape.seq_len) * tokens
    rate, peak = flops / seconds, product / products.seconds
    by_cpu = flops / cpu_seconds / (product / products.cpu_seconds)
    say(
        f"  {trainer.model_size:,} parameters, {tokens} tokens a step, {threads} threads: "
        f"{seconds * 1e3:.1f} ms, {tokens / seconds:,.0f} tokens/s, {rate / 1e9:.1f} GFLOP/s, "
        f"{rate / peak:.1%} of the {peak / 1e9:.0f} GFLOP/s of a matrix product; "
        f"by processor time {by_cpu:.1%}"
    )
    verdict(3, TARGET.format(f"{tokens:,}"), rate / peak, LIMIT, least=True)


def _configs(shape: argparse.Namespace, tokens: int) -> tuple[ModelConfig, TrainConfig]:
    model = ModelConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_heads=shape.heads,
        max_seq_len=shape.seq_len,
    )
    train = TrainConfig.model_validate(
        {
            "steps": 10_000,
            "seq_len": shape.seq_len,
            "global_batch_tokens": tokens,
            "micro_batch_size": shape.batch,
            "optimizer": {"name": shape.optimizer},
            "parallel": {"dp_replicate": 1},
        }
    )
    return model, train
