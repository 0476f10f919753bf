"""What following into MLflow costs the trainer: the same training with and without a follower, in turn.

    python tests/benchmarks/tracking.py [PAIRS [STEPS]]

Prints the median step time of each and the ratio pair by pair; and, steadier than times on a busy machine,
the share of all processor time that following takes. The follower runs where it runs in use: in the process
that launched the training, on the same processors; MLflow is imported before, as a flow does.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lmcore.config import identify, make_recipe
from lmcore.data import prepare
from lmcore.home import Home
from lmcore.launch import local
from lmcore.progress import silent
from lmcore.train.job import TrainJob
from tasks import runs
from tasks.tracking import Follower, Tracker


def make_data(root: Path, recipe) -> tuple[Path, Path]:
    folders = {name: root / name for name in ("documents", "splits", "tokenizer", "tokens")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    documents, splits, tokenizer, tokens = folders.values()
    inventory = prepare.take_inventory(recipe.data)
    prepare.build_documents(recipe.data, inventory, documents, silent)
    prepare.build_splits(recipe.data, documents, splits, silent)
    prepare.build_tokenizer(recipe.data, documents, splits, tokenizer, silent)
    prepare.build_tokens(recipe.data, documents, splits, tokenizer, tokens, silent)
    return tokenizer, tokens


def step_seconds(run_dir: Path) -> float:
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    seconds = [row["values"]["perf/step_seconds"] for row in rows if row["kind"] == "step"]
    return statistics.median(seconds[5:])


def train(root: Path, name: str, recipe, data: tuple[Path, Path], *, followed: bool) -> tuple[float, float]:
    """Return the seconds of a step, and this process's share of all processor time meanwhile."""
    run_dir, (tokenizer, tokens) = root / "runs" / name, data
    TrainJob(
        model=recipe.model,
        train=recipe.train,
        tokens=str(tokens),
        tokenizer=str(tokenizer),
        tokens_digest=name,
    ).write(run_dir)
    runs.open_run(run_dir, name=name, kind="train", experiment="benchmark")
    processes = recipe.train.parallel.num_processes
    tracker = Tracker("", Home(root))
    tracker.experiment_id("benchmark")
    follower = (
        Follower(tracker, [run_dir], print, patience_seconds=60) if followed else contextlib.nullcontext()
    )
    wall, cpu = time.perf_counter(), time.process_time()
    with follower:
        local.run("lmcore.train", run_dir, processes, recipe.train.launch)
        runs.close_run(run_dir, "finished")
    cores = len(os.sched_getaffinity(0))
    share = (time.process_time() - cpu) / (time.perf_counter() - wall) / cores
    if not followed:
        return step_seconds(run_dir), share
    sent = len(tracker.client.get_metric_history(tracker.run_id(run_dir), "train/loss"))
    assert sent == recipe.train.steps, f"{sent} of {recipe.train.steps} steps reached MLflow"
    return step_seconds(run_dir), share


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    recipe = make_recipe(train={"steps": steps, "validate_every": 0, "checkpoint_every": 0})
    assert identify(model=recipe.model).chosen == {}, "the quickstart's own model"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_data(root / "data", recipe)
        ratios, shares = [], []
        for pair in range(pairs):
            order = (False, True) if pair % 2 else (True, False)
            found = {
                followed: train(root, f"{pair}-{followed}", recipe, data, followed=followed)
                for followed in order
            }
            (with_, busy), (without, idle) = found[True], found[False]
            ratios.append(with_ / without)
            shares.append(busy - idle)
            print(
                f"pair {pair}: followed {1e3 * with_:.1f} ms, alone {1e3 * without:.1f} ms a step; "
                f"following takes {shares[-1]:.2%} of the processors"
            )
        ordered = sorted(ratios)
        print(
            f"step time followed / alone: median {statistics.median(ratios):.4f} "
            f"(from {ordered[0]:.4f} to {ordered[-1]:.4f}, {pairs} pairs of {steps} steps)"
        )
        print(f"processor time of following: median {statistics.median(shares):.2%} of all")


if __name__ == "__main__":
    main()
