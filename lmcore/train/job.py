"""What a training process is told: the ``config.json`` of its run directory."""

from __future__ import annotations

from lmcore.config import ModelConfig, TrainConfig, setting
from lmcore.run_directory import RunJob


class TrainJob(RunJob):
    """One training run: the settings, and where its inputs are."""

    model: ModelConfig = setting(..., "The Transformer")
    train: TrainConfig = setting(..., "Training")
    tokens: str = setting(..., "Directory of the tokens artifact")
    tokenizer: str = setting(..., "Directory of the tokenizer artifact")
    tokens_digest: str = setting("", "Digest of the tokens artifact; a checkpoint belongs to one")
    weights_digest: str = setting("", "Digest of the weights at train.initial_weights; likewise")
