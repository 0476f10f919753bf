"""Runs cases of the matrix and compares each with one process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from parity.layouts import ADAFACTOR, MODELS, MUON, PACKED, PLAIN, SAVING, SGD
from parity.pool import Pool, Task
from safetensors.torch import load_file

from lmcore.config import ModelConfig, TrainConfig
from lmcore.train.job import TrainJob

SEQUENCES, SEQ_LEN, STEPS = 8, 32, 3
WAYS = {"plain": PLAIN, "packed": PACKED, "saving": SAVING, "muon": MUON, "adafactor": ADAFACTOR, "sgd": SGD}
ADAMW = {"name": "adamw", "learning_rate": 0.01, "eps": 1e-3, "weight_decay": 0.1}
# Relative, in fp32: of the loss and the norm of each step, of each tensor of the weights after the last.
TOLERANCE = 1e-5


@dataclass
class Row:
    """A case and how far it is from one process."""

    layout: str
    model: str
    way: str
    task: Task
    loss: float = 0.0
    grad_norm: float = 0.0
    weights: float = 0.0
    evaluation: float = 0.0

    @property
    def worst(self) -> float:
        return max(self.loss, self.grad_norm, self.weights, self.evaluation)

    def __str__(self) -> str:
        what = f"| {self.layout} | {self.model}, {self.way} | {self.task.world_size} "
        return (
            what + f"| {self.loss:.0e} | {self.grad_norm:.0e} | {self.weights:.0e} | {self.evaluation:.0e} |"
        )


HEAD = "| layout | model | processes | loss | gradient norm | weights | evaluation |\n" + 7 * "|---" + "|"


def write_job(root: Path, corpus: Path, name: str, parallel: dict, model: str, way: str) -> Task:
    dp = parallel.get("dp_shard", 1) * parallel.get("dp_replicate", 1)
    # Whole batches where a layout bears it, else and packed ones in pieces.
    pieces = SEQUENCES // dp if way in ("packed", "saving") or parallel.get("pp", 1) > 1 else 1
    train = TrainConfig(
        steps=STEPS,
        seq_len=SEQ_LEN,
        global_batch_tokens=SEQUENCES * SEQ_LEN,
        micro_batch_size=SEQUENCES // dp // pieces,
        validate_every=0,
        validation_tokens=500,
        checkpoint_every=0,
        schedule={"warmup_steps": 1},
        parallel={"dp_replicate": 1, **parallel},
        launch={"device": "cpu", "threads_per_process": 1},
        costs={"sample_communication": False},  # it decides nothing that is compared
        **{"optimizer": ADAMW, **WAYS[way]},
    )
    job = TrainJob(
        model=ModelConfig(**MODELS[model]),
        train=train,
        tokens=str(corpus / "tokens"),
        tokenizer=str(corpus / "tokenizer"),
        tokens_digest="digest",
    )
    run_dir = root / name.replace(" ", "-")
    job.write(run_dir)
    return Task(run_dir, train.parallel.num_processes)


def compare(
    pool: Pool, root: Path, corpus: Path, cases: list, plants: dict[int, str] | None = None
) -> list[Row]:
    """Train every case, ``plants`` by number with a mistake, and what it is to be compared with."""
    wholes = {
        (model, way): write_job(root, corpus, f"whole-{model}-{way}", {}, model, way)
        for model, way in sorted({case[2:] for case in cases})
    }
    rows = []
    for number, (layout, parallel, model, way) in enumerate(cases):
        task = write_job(root, corpus, f"{number}-{layout}-{model}-{way}", parallel, model, way)
        task.plant = (plants or {}).get(number, "")
        rows.append(Row(layout, model, way, task))
    pool.run([*wholes.values(), *(row.task for row in rows)])
    for task in wholes.values():
        assert not task.error, task.error
    for row in rows:
        if not row.task.error:
            _measure(row, wholes[row.model, row.way].run_dir)
    return rows


def _measure(row: Row, whole: Path) -> None:
    mine = row.task.run_dir
    row.loss = _apart(_values(mine, "train/loss"), _values(whole, "train/loss"))
    row.grad_norm = _apart(_values(mine, "train/grad_norm"), _values(whole, "train/grad_norm"))
    results = [
        json.loads((folder / "result.json").read_text())["validation_loss"] for folder in (mine, whole)
    ]
    row.evaluation = abs(results[0] - results[1]) / results[1]
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (mine, whole))
    assert ours.keys() == theirs.keys()
    row.weights = max(
        (torch.linalg.vector_norm(ours[name] - theirs[name]) / torch.linalg.vector_norm(theirs[name])).item()
        for name in theirs
        if theirs[name].any()
    )


def _values(run_dir: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [row["values"][name] for row in rows if row["kind"] == "step"]


def _apart(found: list[float], expected: list[float]) -> float:
    assert len(found) == len(expected) == STEPS
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
