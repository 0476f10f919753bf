"""Target 2: a step of nanoGPT's own architecture and shapes, in our loop and in its own, in turn."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from lmcore.config import ModelConfig, TrainConfig
from lmcore.parallel.mesh import keep_freed_memory
from lmcore.train.garbage import collected_every
from lmcore.train.trainer import Trainer
from training.measuring import Times, not_measured, say, verdict
from training.nanogpt import NanoGPT, is_there, read_characters
from training.trainers import make_trainer, write_tokens

TARGET = "seconds of our step over those of nanoGPT's, its architecture and shapes"
LIMIT = 0.9

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=128,
    num_heads=4,
    max_seq_len=64,
    position="learned",
    norm="layernorm",
    activation="gelu_erf",
    qk_norm=False,
    zero_init_projections=False,
)
TRAIN = TrainConfig.model_validate(
    {
        "steps": 2_000,
        "seq_len": 64,
        "global_batch_tokens": 768,
        "micro_batch_size": 12,
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "beta2": 0.99, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_steps": 100, "min_ratio": 0.1},
        "parallel": {"dp_replicate": 1},
    }
)


def _step(trainer: Trainer, collect: Callable[[int], None]) -> None:
    """What a run does in each step that neither validates nor saves."""
    with trainer.costs.step(trainer.step + 1):
        trainer._train_step()
    collect(trainer.step)


def measure(nanogpt: Path | None, text: Path, *, threads: int, rounds: int, steps: int = 10) -> None:
    """Let nanoGPT and ours do ``steps`` steps each in 4 x ``rounds`` turns, or to its end; print medians.

    What else the machine does lasts for seconds, and a step takes a third longer meanwhile: so turns are
    short, and what is compared is each turn of ours with that of nanoGPT's right before it.
    """
    if not is_there(nanogpt) or not text.is_file():
        not_measured(2, TARGET, "nanoGPT or its text is not there: --nanogpt, --shakespeare")
        return
    torch.set_num_threads(threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        characters, train, validation = read_characters(text)
        write_tokens(
            Path(folder), {"train": train + 1, "validation": validation + 1}, vocab_size=len(characters) + 1
        )
        trainer = make_trainer(Path(folder), MODEL, TRAIN)
        peer = NanoGPT(nanogpt, Path(folder) / "nanogpt", threads, train, validation, len(characters))
        try:
            peer.reach(10)  # past its first estimate of the loss
            ours, ratios = Times(), []
            with collected_every(TRAIN.collect_garbage_every) as collect:
                step = functools.partial(_step, trainer, collect)
                for _ in range(10):
                    step()
                for _ in range(min(4 * rounds, (TRAIN.steps - 20) // (steps + 2))):
                    first = peer.num_iterations + 1  # during the one before it stood still
                    peer.reach(first + steps)
                    for _ in range(steps):
                        ours.add(step)
                    ratios.append(statistics.median(ours.wall[-steps:]) / peer.iteration_seconds(first))
            theirs = peer.iteration_seconds()
            their_cpu = peer.cpu_seconds_per_iteration()
        finally:
            peer.stop()
    say(
        f"  a step of 768 tokens, {trainer.model_size:,} parameters, {threads} threads, medians: "
        f"nanoGPT {theirs * 1e3:.2f} ms, ours {ours.seconds * 1e3:.2f} ms; processor time: "
        f"{their_cpu * 1e3:.2f} and {ours.cpu_seconds * 1e3:.2f} ms, {ours.cpu_seconds / their_cpu:.2f}"
    )
    low, middle, high = statistics.quantiles(ratios, n=4)
    say(
        f"  of {len(ratios)} turns of {steps} steps, ours over nanoGPT's: {low:.3f}, {middle:.3f}, {high:.3f}"
    )
    verdict(2, TARGET, middle, LIMIT)
