"""Target 5: two processes of one thread each beside one process of two threads, the same batch."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lmcore.config import ModelConfig, TrainConfig
from lmcore.train.job import TrainJob
from training.measuring import say, verdict
from training.trainers import write_noise

TARGET = "tokens/s of two processes (DDP) over those of one with two threads"
LIMIT = 0.9
_WARMUP_STEPS = 5


def measure(*, rounds: int, steps: int) -> None:
    """Run both in turn ``rounds`` times, ``steps`` steps each; print medians of their steps."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder), 2_048)
        for index in range(rounds):
            for processes in seconds:
                seconds[processes] += _run(Path(folder), index, processes, steps)
    one, two = (statistics.median(seconds[processes]) for processes in (1, 2))
    say(f"  3,072 tokens a step, medians: one process {one * 1e3:.1f} ms, two {two * 1e3:.1f} ms")
    verdict(5, TARGET, one / two, LIMIT, least=True)


def _run(folder: Path, index: int, processes: int, steps: int) -> list[float]:
    run = folder / f"run-{index}-{processes}"
    run.mkdir()
    settings = {
        "steps": steps + _WARMUP_STEPS,
        "seq_len": 256,
        "global_batch_tokens": 3_072,
        "micro_batch_size": 12 // processes,
        "parallel": {"dp_replicate": processes},
        "launch": {"threads_per_process": 2 // processes, "device": "cpu"},
        "validate_every": 0,
        "checkpoint_every": 0,
    }
    TrainJob(
        model=ModelConfig(num_layers=3, hidden_size=192, num_heads=3, max_seq_len=256),
        train=TrainConfig.model_validate(settings),
        tokens=str(folder),
        tokenizer=str(folder),
    ).write(run)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(2 // processes)}
    subprocess.run(
        [sys.executable, *launcher, "-m", "lmcore.train", str(run)],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    found = [row["values"]["perf/step_seconds"] for row in rows if row["kind"] == "step"]
    return found[_WARMUP_STEPS:]
