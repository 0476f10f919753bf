"""The planner beside what others published and what torch measures, and how long it takes.

python tests/benchmarks/planner.py [speed] [memory] [plans]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/lmcore/plan"))

PLANS = (("llama-8b", 64), ("llama-405b", 1024), ("llama-405b", 16_384))


def show_speed() -> None:
    """Predicted and published tokens a second and GPU; and the memory, of another program than ours."""
    from published import RUNS

    print("| run | predicted | published | error | GiB of ours | GiB of theirs | fitted on it |")
    print("|---|---|---|---|---|---|---|")
    errors: dict[bool, list[float]] = {True: [], False: []}
    for run in RUNS:
        error = run.predicted / run.published - 1
        errors[bool(run.fitted)].append(abs(error))
        gib = (f"{run.predicted_gib:.0f}", f"{run.gib:.0f}") if run.gib else ("", "")
        numbers = f"{run.predicted:,.0f} | {run.published:,.0f} | {error:+.0%}"
        print(f"| {run} | {numbers} | {gib[0]} | {gib[1]} | {run.fitted} |")
    for fitted, found in errors.items():
        kind = "that constants were taken from" if fitted else "of which nothing was taken"
        mean, largest = statistics.mean(found), max(found)
        print(f"\n{len(found)} runs {kind}: mean error {mean:.1%}, largest {largest:.1%}")


def show_memory() -> None:
    """Predicted and measured memory of a process, on the CPU, by torch's tracker."""
    from measure import measured_peak
    from test_memory import CASES, REPLICAS, measured_replicas, train_config

    from lmcore.config import ModelConfig
    from lmcore.plan.memory import memory_of
    from lmcore.plan.shape import shape_of

    print("| case | predicted MB | measured MB | error | worst moment |")
    print("|---|---|---|---|---|")
    replicas = measured_replicas()
    for name, (model, vocab_size, micro_batch_size, values) in {**CASES, **REPLICAS}.items():
        config, train = ModelConfig(**model), train_config(micro_batch_size, **values)
        predicted = memory_of(shape_of(config, vocab_size), train, "cpu")
        measured = replicas[name] if name in REPLICAS else measured_peak(config, vocab_size, train)
        error = predicted.total / measured - 1
        sizes = f"{predicted.total / 1e6:.2f} | {measured / 1e6:.2f} | {error:+.1%}"
        print(f"| {name} | {sizes} | {predicted.moment} |")


def show_plans() -> None:
    """How long the command takes, by the clock and of a processor."""
    for recipe, gpus in PLANS:
        command = [
            sys.executable,
            "-m",
            "flows.cli",
            "plan",
            recipe,
            "--gpus",
            str(gpus),
            "--gpu-memory",
            "80",
        ]
        before, started = os.times(), time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
        )
        after = os.times()
        busy = after.children_user + after.children_system - before.children_user - before.children_system
        taken = next(line for line in done.stdout.splitlines() if line.startswith("->"))
        seconds = time.perf_counter() - started
        print(f"{recipe} on {gpus:,}: {seconds:.1f} s, {busy:.1f} s of a processor\n  {taken}")


def main() -> None:
    parts = {"speed": show_speed, "memory": show_memory, "plans": show_plans}
    for name in sys.argv[1:] or parts:
        parts[name]()
        print()


if __name__ == "__main__":
    main()
