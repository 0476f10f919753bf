"""A run that goes on in another layout ends as if a single process had done it all."""

import json

import pytest
import torch
from parity.layouts import MODELS
from parity.pool import Pool, Task
from safetensors.torch import load_file

from lmcore.config import ModelConfig, TrainConfig
from lmcore.train.job import TrainJob

SEQUENCES, SEQ_LEN, MIDDLE, STEPS = 8, 32, 3, 6
TOLERANCE = 1e-5  # relative
ADAMW = {"name": "adamw", "learning_rate": 0.01, "eps": 1e-3, "weight_decay": 0.1}
BIASED = {
    **MODELS["moe"],
    "moe": {"num_experts": 4, "num_experts_per_token": 2, "intermediate_size": 64, "bias_update_rate": 0.05},
}
# Layouts of the first half and of the second, the model, how it is trained.
CASES = {
    "one to fsdp x tp": (
        {},
        {"dp_shard": 2, "tp": 2},
        MODELS["dense"],
        {"optimizer": {**ADAMW, "name": "muon", "muon_learning_rate": 0.02}, "ema_decay": 0.9},
    ),
    "fsdp x pp, tied, to one": (
        {"dp_shard": 2, "pp": 2},
        {},
        MODELS["tied"],
        {"optimizer": ADAMW, "ema_decay": 0.9},
    ),
    "cp to fsdp x ep": ({"cp": 2}, {"dp_shard": 2, "ep": 2}, BIASED, {"optimizer": ADAMW}),
    "pp zbv, tied, to tp x pp": (
        {"pp": 2, "pipeline_schedule": "zbv"},
        {"tp": 2, "pp": 2},
        MODELS["tied"],
        {"optimizer": ADAMW, "document_mask": True, "packing": "best_fit"},
    ),
}


def write_job(corpus, run_dir, steps, parallel, model, ways):
    dp = parallel.get("dp_shard", 1)
    pieces = SEQUENCES // dp if parallel.get("pp", 1) > 1 else 1
    train = TrainConfig(
        steps=steps,
        seq_len=SEQ_LEN,
        global_batch_tokens=SEQUENCES * SEQ_LEN,
        micro_batch_size=SEQUENCES // dp // pieces,
        validate_every=0,
        validation_tokens=500,
        checkpoint_every=0,
        # Of all schedules the one that does not ask where a run is to end.
        schedule={"name": "inverse_sqrt", "warmup_steps": 1},
        parallel={"dp_replicate": 1, **parallel},
        launch={"device": "cpu", "threads_per_process": 1},
        **ways,
    )
    job = TrainJob(
        model=ModelConfig(**model),
        train=train,
        tokens=str(corpus / "tokens"),
        tokenizer=str(corpus / "tokenizer"),
        tokens_digest="digest",
    )
    job.write(run_dir)
    return Task(run_dir, train.parallel.num_processes)


def values_of(run_dir, name):
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [row["values"][name] for row in rows if row["kind"] == "step"]


@pytest.fixture
def pool(tmp_path):
    workers = Pool(tmp_path, 4)
    yield workers
    workers.close()


@pytest.mark.long
def test_a_run_goes_on_in_another_layout(corpus, pool, tmp_path):
    wholes = {
        name: write_job(corpus, tmp_path / "whole" / name, STEPS, {}, model, ways)
        for name, (_, _, model, ways) in CASES.items()
    }
    halves = {
        name: write_job(corpus, tmp_path / "run" / name, MIDDLE, first, model, ways)
        for name, (first, _, model, ways) in CASES.items()
    }
    finish(pool, [*wholes.values(), *halves.values()])
    rests = {
        name: write_job(corpus, tmp_path / "run" / name, STEPS, second, model, ways)
        for name, (_, second, model, ways) in CASES.items()
    }
    finish(pool, list(rests.values()))
    for name, task in rests.items():
        check_same(name, task.run_dir, wholes[name].run_dir)
    biases = [
        tensor
        for name, tensor in load_file(
            rests["cp to fsdp x ep"].run_dir / "model" / "model.safetensors"
        ).items()
        if name.endswith("expert_bias")
    ]
    assert biases
    assert all(bias.any() for bias in biases)


def finish(pool, tasks):
    pool.run(tasks)
    assert [task.error for task in tasks if task.error] == []


def check_same(name, run_dir, whole):
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "resume"] == [MIDDLE], name
    for value in ("train/loss", "train/grad_norm"):
        found, expected = values_of(run_dir, value), values_of(whole, value)
        assert len(found) == len(expected) == STEPS
        assert found == pytest.approx(expected, rel=TOLERANCE), f"{name}: {value}"
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run_dir, whole))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        apart = torch.linalg.vector_norm(ours[key] - tensor)
        assert apart <= TOLERANCE * torch.linalg.vector_norm(tensor), f"{name}: {key}"
