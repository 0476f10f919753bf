"""Target 4: batches from Parquet, their share of a step, and the time to any step."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lmcore.config import ModelConfig, TrainConfig
from lmcore.data.loader import TrainLoader, Windows
from lmcore.data.tokens import TokenDataset
from lmcore.parallel.mesh import keep_freed_memory
from training.measuring import Times, say, verdict
from training.trainers import make_trainer, write_noise, write_tokens

RATE = "tokens/s a core, batches from Parquet"
SHARE = "share of a step that batches take"
SEEK = "seconds to the batch of any step, the files opened anew"


def measure(*, num_tokens: int, rounds: int) -> None:
    """Read batches of 64 windows of 2,048 from ``num_tokens`` tokens; then those of a small training."""
    torch.set_num_threads(1)  # a core
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).integers(1, 50_000, num_tokens)
        write_tokens(Path(folder), {"train": tokens}, 50_257, document=1_000)
        loader = _open(Path(folder) / "train")
        read = Times()
        for step in range(rounds):
            read.add(lambda at=step: list(loader.micro_batches(at)))
        rate = 64 * 2_048 / read.cpu_seconds
        say(f"  {num_tokens:,} tokens; by the clock {64 * 2_048 / read.seconds / 1e6:.0f} M tokens/s")
        verdict(4, RATE, rate, 100e6, least=True)
        seeks = [_seek(Path(folder) / "train", step) for step in (0, 3, 10**4, 10**6, 10**9)]
        verdict(4, SEEK, max(seeks), 0.1)
    _share_of_a_step(rounds)


def _open(folder: Path) -> TrainLoader:
    windows = Windows(TokenDataset(folder), 2_048, document_mask=False, vocab_size=50_257)
    return TrainLoader(windows, global_batch_size=64, micro_batch_size=64, seed=0)


def _seek(folder: Path, step: int) -> float:
    start = time.perf_counter()
    next(_open(folder).micro_batches(step))
    return time.perf_counter() - start


def _share_of_a_step(rounds: int) -> None:
    """Of the model of target 3, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder), 2_048)
        model = ModelConfig(num_layers=3, hidden_size=384, num_heads=3, max_seq_len=256)
        settings = {"seq_len": 256, "global_batch_tokens": 3_072, "micro_batch_size": 12, "steps": 10_000}
        train = TrainConfig.model_validate(settings | {"parallel": {"dp_replicate": 1}})
        trainer = make_trainer(Path(folder), model, train)
        steps, reads = Times(), Times()
        for number in range(max(4, rounds // 10)):
            steps.add(trainer._train_step)
            reads.add(lambda at=number: _read(trainer.inputs.loader, at))
    verdict(4, SHARE, reads.cpu_seconds / steps.cpu_seconds, 0.01)


def _read(loader: TrainLoader, step: int) -> None:
    loader.num_targets(step)
    for _ in loader.micro_batches(step):
        pass
