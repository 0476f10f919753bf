"""Trainers on made-up or given tokens, without the pipeline around them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from lmcore.config import ModelConfig, TrainConfig
from lmcore.data.token_writer import TokenWriter
from lmcore.parallel.mesh import World
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer

END = "<|endoftext|>"


def write_tokens(folder: Path, splits: dict[str, np.ndarray], vocab_size: int, document: int = 0) -> None:
    """Write each of ``splits`` (ids from 1) in documents of ``document`` tokens, or as one, and a tokenizer.

    The id 0 ends a document.
    """
    for split, tokens in splits.items():
        size = document or len(tokens)
        with TokenWriter(folder / split, eos_id=0, vocab_size=vocab_size) as writer:
            for start in range(0, len(tokens), 1_000 * size):
                part = tokens[start : start + 1_000 * size]
                pieces = [np.append(part[i : i + size], 0) for i in range(0, len(part), size)]
                names = [f"{split}-{start + i}" for i in range(len(pieces))]
                lengths = np.array([len(piece) for piece in pieces])
                writer.add(names, names, np.concatenate(pieces).astype(np.int32), lengths, len(part))
    vocabulary = {END: 0} | {f"t{i}": i for i in range(1, vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))


def write_noise(folder: Path, vocab_size: int, num_tokens: int = 400_000) -> None:
    """Write tokens drawn by lot: for the time of a step they are as good as others."""
    rng = np.random.default_rng(0)
    splits = {
        "train": rng.integers(1, vocab_size, num_tokens),
        "validation": rng.integers(1, vocab_size, 20_000),
    }
    write_tokens(folder, splits, vocab_size, document=1_000)


def make_trainer(folder: Path, model: ModelConfig, train: TrainConfig, world: World | None = None) -> Trainer:
    """A trainer on the tokens in ``folder``, alone on the CPU unless ``world`` says otherwise."""
    world = world or World(0, 1, torch.device("cpu"))
    run = folder / f"run-{len(list(folder.glob('run-*')))}-{world.rank}"
    run.mkdir()
    job = TrainJob(model=model, train=train, tokens=str(folder), tokenizer=str(folder))
    trainer = Trainer(job, run, world, lambda: False)
    trainer.progress = type(trainer.progress)(train.steps, enabled=False)
    return trainer
