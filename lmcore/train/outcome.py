"""What a training leaves besides checkpoints: its model, written whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from lmcore.disk import disk_errors, storage_error
from lmcore.model.io import save_model
from lmcore.run_directory import GOES_ON
from lmcore.train.job import TrainJob

MODEL = "model"


def write_model(run_dir: Path, state: Mapping[str, Tensor], job: TrainJob, vocab_size: int) -> None:
    """Write the model directory of a run; one that is there is replaced once the new one is whole.

    Args:
        run_dir: Of the run; the model is below it.
        state: Its whole tensors by name.
        job: Says its shape, its tokenizer and the length that it was trained on.
        vocab_size: Rows of its embedding.

    Raises:
        StorageError: the disk has no room, or fails.
    """
    done, target = "the model was written", run_dir / MODEL
    build = run_dir / f".model-{uuid.uuid4().hex[:8]}"
    try:
        with disk_errors(build, done, GOES_ON):
            tokenizer = Path(job.tokenizer)
            save_model(build, state, job.model.unpadded, vocab_size, tokenizer, job.train.seq_len)
            shutil.rmtree(target, ignore_errors=True)
            build.rename(target)
    except SafetensorError as error:
        raise storage_error(build, done, error, GOES_ON) from error
    finally:
        shutil.rmtree(build, ignore_errors=True)
