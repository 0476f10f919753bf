"""Divided experts compute what whole ones do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_divided_experts_are_the_whole_ones():
    """Outputs, gradients and a step, whoever gets the tokens; over two and over four real processes."""
    script = Path(__file__).with_name("divided_mixtures.py")
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    done = subprocess.run(
        [sys.executable, *agent, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
