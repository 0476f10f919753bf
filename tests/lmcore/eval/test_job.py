import subprocess
import sys

import pytest

from lmcore.config import EvaluationConfig, LaunchConfig
from lmcore.errors import ConfigError
from lmcore.eval.job import EvaluationJob


def test_what_is_written_is_read(tmp_path):
    job = EvaluationJob(
        evaluation=EvaluationConfig(stride_tokens=3),
        launch=LaunchConfig(),
        model="m",
        tokens="t",
        tokenizer="z",
        seq_len=8,
    )
    job.write(tmp_path / "run")
    assert EvaluationJob.read(tmp_path / "run") == job


def test_a_missing_or_wrong_job_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        EvaluationJob.read(tmp_path)
    (tmp_path / "config.json").write_text('{"evaluation": {"stride": 2}, "seq_len": 8}')
    with pytest.raises(ConfigError, match="stride_tokens"):
        EvaluationJob.read(tmp_path)


def test_jobs_gate_and_baselines_do_not_import_torch():
    code = "import sys, lmcore.eval.job, lmcore.eval.gate, lmcore.eval.baselines"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
