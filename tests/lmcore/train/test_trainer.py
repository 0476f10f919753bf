import json
import math

import numpy as np
import pytest
import torch

from lmcore.data.loader import Windows
from lmcore.data.tokens import TokenDataset
from lmcore.errors import ConfigError, DataError, TrainingDiverged
from lmcore.model.io import load_model
from lmcore.parallel.mesh import World
from lmcore.train.trainer import Trainer


def test_a_run_learns_and_leaves_everything_behind(make_run, corpus):
    run = make_run(steps=40, validate_every=15, checkpoint_every=20).finish()
    losses = list(run.values("train/loss").values())
    assert losses[0] == pytest.approx(math.log(300), rel=0.01)  # zero head: uniform
    assert losses[-1] < losses[0] - 0.3
    assert [row["step"] for row in run.rows("validation")] == [15, 30, 40]
    assert [row["step"] for row in run.rows("checkpoint")] == [20, 40]
    row = run.rows()[11]
    assert (row["step"], row["tokens"]) == (12, 12 * 256)
    expected = {
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "train/muon_learning_rate",
        "train/tokens",
        "perf/tokens_per_second",
        "perf/step_seconds",
        "perf/mfu",
    }
    assert expected == set(row["values"])
    assert run.result["status"] == "completed"
    assert run.result["step"] == 40
    assert "step 40/40 loss" in run.log

    # What is reported is what the model of the run does.
    model = load_model(run.directory / "model")
    held_out = TokenDataset(corpus / "tokens" / "validation")
    batch = Windows(held_out, 32, document_mask=False).batch(np.arange(16))  # 500 tokens, rounded up
    with torch.no_grad():
        logits = model(batch.tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).item()
    assert run.result["validation_loss"] == pytest.approx(loss, rel=1e-5)
    expected_bits = loss / math.log(2) * held_out.num_tokens / held_out.num_bytes
    assert run.result["validation_bits_per_byte"] == pytest.approx(expected_bits, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run(make_run, train_here):
    run = make_run(optimizer={"name": "adamw", "learning_rate": 1e30, "max_grad_norm": 0}, steps=10)
    with pytest.raises(TrainingDiverged, match="step"):
        train_here(run)


def test_a_failed_run_says_why_in_one_line(make_run):
    run = make_run(global_batch_tokens=32 * 5000, micro_batch_size=1).finish(code=1)
    assert run.result["status"] == "failed"
    assert "global_batch_tokens" in run.result["error"]
    assert run.log.startswith("error: the training split is smaller than one batch")
    assert "Traceback" not in run.log


def test_what_does_not_fit_is_refused(make_run, tmp_path):
    alone = World(0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match="max_seq_len"):
        Trainer(make_run("a", seq_len=64, micro_batch_size=4).job, tmp_path, alone, lambda: False)
    with pytest.raises(ConfigError, match="number of processes"):
        Trainer(make_run("b", dp_shard=2).job, tmp_path, alone, lambda: False)
    job = make_run("c").job
    missing = job.model_copy(update={"tokenizer": str(tmp_path)})
    with pytest.raises(DataError, match="tokenizer"):
        Trainer(missing, tmp_path, alone, lambda: False)
    description = {"model": {"vocab": {"a": 0, "b": 1}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="not made by this tokenizer"):
        Trainer(missing, tmp_path, alone, lambda: False)
