"""How fast the trainer is on this machine: ``python tests/benchmarks/train.py [--layers 3 ...]``.

Alternates a few training steps (one process, fp32, everything the trainer does but checkpoints) with a plain
matrix product, so that both see the same machine, and prints medians: tokens/s, GFLOP/s, and the share of the
product's rate that training reaches.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lmcore.config import ModelConfig, TrainConfig
from lmcore.data.token_writer import TokenWriter
from lmcore.parallel.mesh import World, keep_freed_memory
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), options)
        product = torch.randn(2048, 2048)
        for _ in range(3):
            trainer._train_step()
        steps, products = [], []
        for _ in range(options.rounds):
            steps += [seconds(trainer._train_step) for _ in range(3)]
            products += [seconds(lambda: product @ product) for _ in range(3)]
    step = statistics.median(steps)
    tokens = options.batch * options.seq_len
    rate = trainer.whole.flops_per_token(options.seq_len) * tokens / step
    peak = 2 * 2048**3 / statistics.median(products)
    print(
        f"{trainer.model_size:,} parameters, {tokens} tokens a step, {options.threads} threads: "
        f"{step * 1e3:.1f} ms, {tokens / step:,.0f} tokens/s, {rate / 1e9:.1f} GFLOP/s, "
        f"{rate / peak:.1%} of the {peak / 1e9:.0f} GFLOP/s of a matrix product"
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in [
        ("layers", 3),
        ("hidden", 192),
        ("heads", 3),
        ("vocab", 2048),
        ("seq-len", 256),
        ("batch", 12),
        ("threads", 2),
        ("rounds", 6),
    ]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--optimizer", default="muon")
    return parser.parse_args()


def make_trainer(folder: Path, options: argparse.Namespace) -> Trainer:
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        with TokenWriter(folder / split, eos_id=0, vocab_size=options.vocab) as writer:
            tokens = rng.integers(1, options.vocab, 400_000).astype(np.int32)
            tokens[999::1000] = 0
            names = [f"{split}-{i}" for i in range(400)]
            writer.add(names, names, tokens, np.full(400, 1000), 1_200_000)
    vocabulary = {f"t{i}": i for i in range(options.vocab)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    job = TrainJob(
        model=ModelConfig(
            num_layers=options.layers,
            hidden_size=options.hidden,
            num_heads=options.heads,
            max_seq_len=options.seq_len,
        ),
        train=TrainConfig(
            steps=10_000,
            seq_len=options.seq_len,
            global_batch_tokens=options.batch * options.seq_len,
            micro_batch_size=options.batch,
            optimizer={"name": options.optimizer},
            parallel={"dp_replicate": 1, "dp_shard": 1},
        ),
        tokens=str(folder),
        tokenizer=str(folder),
    )
    (folder / "run").mkdir()
    return Trainer(job, folder / "run", World(0, 1, torch.device("cpu")), lambda: False)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
