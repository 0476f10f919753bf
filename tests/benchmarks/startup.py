"""What passes before the first step: ``python tests/benchmarks/startup.py [--rounds 3] [--processes 1 2]``.

Runs the whole mill on a small recipe in a home of its own. Then, with all data stages reused, times
`gristmill run` to the first step of a new training, and of one that was stopped: by the moments at
which files and events appear, and by the processor's time, which a busy machine stretches less. What the
training process does before its first step is timed apart, in a process of its own, and so are imports.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # first: tests has folders of the packages' names
from conftest import Mill, tiny_recipe

STEPS = 100_000  # never reached: a run is stopped at its first steps
IMPORTS = ("flows.cli", "flows.pipeline", "prefect", "mlflow", "torch", "torch.distributed.run")


def main() -> None:
    options = read_options()
    if options.inside:
        print(json.dumps(inside(options.inside)))
        return
    rows: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        mill = Mill(Path(folder))
        mill.run()  # so that all data stages are there
        for module in (*IMPORTS, "lmcore.train.trainer"):
            for _ in range(options.rounds):
                add(rows, f"import {module}", *process([sys.executable, "-c", f"import {module}"]))
        for size in options.processes:
            for number in range(options.rounds):
                write_recipe(mill, size, seed=10 * size + number + 1)
                for kind in ("new", "resumed"):
                    measure(rows, mill, f"{kind}, {size} process(es): ")
            run_dir = newest(mill)
            if size == 1:
                for _ in range(options.rounds):
                    done = subprocess.run(
                        [sys.executable, __file__, "--inside", str(run_dir)],
                        capture_output=True,
                        text=True,
                        check=True,
                        env=mill.environment(),
                    )
                    for name, (wall, cpu) in json.loads(done.stdout.splitlines()[-1]).items():
                        add(rows, f"inside the training process: {name}", wall, cpu)
    print(f"| what | wall, s | processor, s |  medians of {options.rounds}, {os.cpu_count()} cores,")
    print(f"|---|---|---|  load {os.getloadavg()[0]:.1f}")
    for name, values in rows.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |" if cpu >= 0 else f"| {name} | {wall:.2f} | |")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--inside", type=Path, help="time what a training process does in this run directory")
    return parser.parse_args()


def add(rows: dict, name: str, wall: float, cpu: float = -1.0) -> None:
    sys.stderr.write(f"{name}: {wall:.2f} s, {cpu:.2f} s of processors\n")
    rows.setdefault(name, []).append((wall, cpu))


def process(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command and of all that it starts and waits for."""
    begin, before = time.perf_counter(), children_seconds()
    subprocess.run(command, check=True)
    return time.perf_counter() - begin, children_seconds() - before


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_recipe(mill: Mill, size: int, seed: int) -> None:
    recipe = tiny_recipe(mill.corpus)
    recipe["train"] |= {"steps": STEPS, "seed": seed, "checkpoint_every": 0, "validate_every": 0}
    recipe["train"]["parallel"] = {"dp_replicate": size}
    mill.recipe.write_text(yaml.safe_dump(recipe))


def newest(mill: Mill) -> Path | None:
    return max((mill.home / "runs").glob("train-*"), key=lambda path: path.stat().st_ctime, default=None)


def measure(rows: dict, mill: Mill, label: str) -> None:
    """Start a run, wait for its first new step, stop it; the moments in between."""
    before = children_seconds()
    began = time.time()
    running = mill.start("run", str(mill.recipe))
    events: list[dict] = []
    while not any(row["kind"] == "step" for row in events):
        if running.poll() is not None:
            raise SystemExit(running.communicate()[1])
        time.sleep(0.05)  # how far the moment may be off that is looked for
        paths = (mill.home / "runs").glob("train-*/events.jsonl")
        events = [row for path in paths for row in rows_of(path) if row["time"] > began]
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=120)
    run_dir = newest(mill)
    first = {row["kind"]: row["time"] for row in reversed(events)}
    opened = first.get("start", first.get("resume", 0.0))
    job = (run_dir / "config.json").stat().st_mtime
    add(rows, label + "to the first step", first["step"] - began, children_seconds() - before)
    add(rows, label + "command, Prefect, data stages found", job - began)
    add(rows, label + "processes, imports, model, checkpoint", opened - job)
    add(rows, label + "the first step", first["step"] - opened)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def inside(run_dir: Path) -> dict[str, tuple[float, float]]:
    """Do what ``python -m lmcore.train`` does up to its first step, each part timed."""
    found: dict[str, tuple[float, float]] = {}
    begin = time.perf_counter(), time.process_time()

    def lap(name: str) -> None:
        nonlocal begin
        now = time.perf_counter(), time.process_time()
        found[name] = now[0] - begin[0], now[1] - begin[1]
        begin = now

    import torch  # noqa: F401

    lap("import torch")
    from lmcore.parallel.mesh import join_world
    from lmcore.train.job import TrainJob
    from lmcore.train.trainer import Trainer

    lap("import the rest")
    job = TrainJob.read(run_dir)
    with join_world(job.train.launch) as world:
        lap("process group")
        trainer = Trainer(job, run_dir, world, lambda: False)
        lap("open tokens, build model and optimizer")
        trainer._resume()
        lap("verify and read the checkpoint")
        trainer.checkpoints.require_room(trainer._tensors())
        lap("room for a checkpoint")
        trainer._train_step()
        lap("first step")
        trainer._train_step()
        lap("second step")
        trainer.batches.close()
    return found


if __name__ == "__main__":
    main()
