import subprocess
import sys

import pytest

from lmcore.config import ModelConfig, TrainConfig
from lmcore.errors import ConfigError
from lmcore.train.job import TrainJob


def test_what_is_written_is_read(tmp_path):
    job = TrainJob(
        model=ModelConfig(), train=TrainConfig(steps=70), tokens="t", tokenizer="z", tokens_digest="d"
    )
    job.write(tmp_path / "run")
    assert TrainJob.read(tmp_path / "run") == job


def test_a_missing_or_wrong_job_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainJob.read(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model": {"num_layer": 2}, "train": {}, "tokens": "", "tokenizer": ""}'
    )
    with pytest.raises(ConfigError, match="num_layers"):
        TrainJob.read(tmp_path)


def test_importing_a_job_does_not_import_torch():
    code = "import sys, lmcore.train.job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
