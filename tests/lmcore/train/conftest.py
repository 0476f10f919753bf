"""A corpus of synthetic tokens, and training runs in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity.corpus import write_corpus

from lmcore.config import ModelConfig, TrainConfig
from lmcore.parallel.mesh import World
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer

MODEL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_seq_len": 32}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Directories of a tokens and a tokenizer artifact."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


class Run:
    """A run directory, and the processes that work on it."""

    def __init__(self, directory: Path, job: TrainJob):
        self.directory, self.job = directory, job
        job.write(directory)

    def command(self):
        size = self.job.train.parallel.num_processes
        module = ["-m", "lmcore.train", str(self.directory)]
        if size == 1:
            return [sys.executable, *module]
        agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        return [sys.executable, *agent, *module]

    def start(self) -> subprocess.Popen:
        """Start it, in a session of its own, its output in ``log.txt``."""
        with (self.directory / "log.txt").open("ab") as log:
            return subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def finish(self, code=0):
        """Run it to its end and expect ``code``."""
        assert self.start().wait(120) == code, self.log
        return self

    @property
    def log(self):
        return (self.directory / "log.txt").read_text()

    @property
    def result(self):
        return json.loads((self.directory / "result.json").read_text())

    def rows(self, kind="step"):
        """Rows of ``kind``."""
        path = self.directory / "events.jsonl"
        text = path.read_text() if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # one that is being written is not there yet
        return [row for row in map(json.loads, filter(None, lines)) if row["kind"] == kind]

    def values(self, name):
        """Value ``name`` of every step; of a step that was replayed, the last."""
        return {row["step"]: row["values"][name] for row in self.rows() if name in row["values"]}

    @property
    def weights(self):
        return (self.directory / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def make_run(corpus, tmp_path):
    """Return a function that lays out a run; settings are those of training, ``model`` of the model."""

    def make(name="run", model=(), **train):
        settings = {
            "steps": 4,
            "seq_len": 32,
            "global_batch_tokens": 256,
            "micro_batch_size": 8 // (train.get("dp_shard", 1) * train.get("dp_replicate", 1)),
            "validate_every": 0,
            "validation_tokens": 500,
            "checkpoint_every": 0,
            "launch": {"device": "cpu", "threads_per_process": 1},
            "schedule": {"warmup_steps": 1},
            "parallel": {"dp_shard": train.pop("dp_shard", 1), "dp_replicate": train.pop("dp_replicate", 1)},
            **train,
        }
        job = TrainJob(
            model=ModelConfig(**{**MODEL, **dict(model)}),
            train=TrainConfig(**settings),
            tokens=str(corpus / "tokens"),
            tokenizer=str(corpus / "tokenizer"),
            tokens_digest="digest",
        )
        return Run(tmp_path / name, job)

    return make


@pytest.fixture
def run_together():
    """Return a function that finishes several runs with one launch for each number of processes."""

    def run_all(runs):
        for size in sorted({run.job.train.parallel.num_processes for run in runs}):
            same = [run for run in runs if run.job.train.parallel.num_processes == size]
            script = [str(Path(__file__).with_name("run_jobs.py")), *(str(run.directory) for run in same)]
            agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
            done = subprocess.run(
                [sys.executable, *(agent if size > 1 else []), *script],
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert done.returncode == 0, done.stderr

    return run_all


@pytest.fixture
def train_here():
    """Return a function that trains a run in this process."""

    def train(run, stop=lambda: False):

        return Trainer(run.job, run.directory, World(0, 1, torch.device("cpu")), stop).run()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train
    torch.set_num_threads(threads)
