"""What a training process is told: the ``config.json`` of its run directory."""

from __future__ import annotations

import json
from pathlib import Path

from lmcore.config import Config, ModelConfig, TrainConfig, parse, setting
from lmcore.errors import ConfigError
from lmcore.store import write_atomically

JOB_FILE = "config.json"


class TrainJob(Config):
    """One training run: the settings, and where its inputs are."""

    model: ModelConfig = setting(..., "The Transformer")
    train: TrainConfig = setting(..., "Training")
    tokens: str = setting(..., "Directory of the tokens artifact")
    tokenizer: str = setting(..., "Directory of the tokenizer artifact")
    tokens_digest: str = setting("", "Digest of the tokens artifact; a checkpoint belongs to one")

    def write(self, run_dir: Path) -> None:
        """Write ``config.json`` into ``run_dir``, which is created if missing."""
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / JOB_FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, run_dir: Path) -> TrainJob:
        """Read the job of ``run_dir``.

        Raises:
            ConfigError: the file is missing, not JSON, or holds a wrong key or value.
        """
        path = run_dir / JOB_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be read",
                expected="the job that TrainJob.write left there",
                found=str(error),
                remedy="Start the run again from its recipe.",
            ) from None
        return parse(cls, values, where=str(path))
