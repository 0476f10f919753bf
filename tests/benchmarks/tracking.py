"""What following into MLflow costs the trainer: the same training with and without a follower, in turn.

    python tests/benchmarks/tracking.py [PAIRS [STEPS]]

Prints the median step time of each, and the ratio pair by pair. The follower runs where it runs in use: in
the process that launched the training, on the same processors.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
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


def train(root: Path, name: str, recipe, data: tuple[Path, Path], *, followed: bool) -> float:
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
    if not followed:
        local.run("lmcore.train", run_dir, processes, recipe.train.launch)
        return step_seconds(run_dir)
    tracker = Tracker("", Home(root))
    with Follower(tracker, [run_dir], print, patience_seconds=60):
        local.run("lmcore.train", run_dir, processes, recipe.train.launch)
    sent = len(tracker.client.get_metric_history(tracker.run_id(run_dir), "train/loss"))
    assert sent == recipe.train.steps, f"{sent} of {recipe.train.steps} steps reached MLflow"
    return step_seconds(run_dir)


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    recipe = make_recipe(train={"steps": steps, "validate_every": 0, "checkpoint_every": 0})
    assert identify(model=recipe.model).chosen == {}, "the quickstart's own model"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_data(root / "data", recipe)
        ratios = []
        for pair in range(pairs):
            order = (False, True) if pair % 2 else (True, False)
            seconds = {
                followed: train(root, f"{pair}-{followed}", recipe, data, followed=followed)
                for followed in order
            }
            ratios.append(seconds[True] / seconds[False])
            with_, without = 1e3 * seconds[True], 1e3 * seconds[False]
            print(f"pair {pair}: followed {with_:.1f} ms, alone {without:.1f} ms a step")
        ordered = sorted(ratios)
        print(
            f"step time followed / alone: median {statistics.median(ratios):.4f} "
            f"(from {ordered[0]:.4f} to {ordered[-1]:.4f}, {pairs} pairs of {steps} steps)"
        )


if __name__ == "__main__":
    main()
