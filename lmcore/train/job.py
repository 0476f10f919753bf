"""What a training process is told: the ``config.json`` of its run directory."""

from __future__ import annotations

from lmcore.config import ModelConfig, TrainConfig, setting
from lmcore.layout import micro_batch_sizes
from lmcore.run_directory import RunJob


class TrainJob(RunJob):
    """One training run: the settings, and where its inputs are."""

    model: ModelConfig = setting(..., "The Transformer")
    train: TrainConfig = setting(..., "Training")
    tokens: str = setting(..., "Directory of the tokens artifact")
    tokenizer: str = setting(..., "Directory of the tokenizer artifact")
    tokens_digest: str = setting("", "Digest of the tokens artifact; a checkpoint belongs to one")
    weights_digest: str = setting("", "Digest of the weights at train.initial_weights; likewise")


def with_a_micro_batch(job: TrainJob) -> TrainJob:
    """Return ``job`` with the least size of a micro-batch to begin with, where one is to be found."""
    if job.train.micro_batch_size:
        return job
    size = next(iter(micro_batch_sizes(job.train)), 1)
    return job.model_copy(update={"train": job.train.model_copy(update={"micro_batch_size": size})})
