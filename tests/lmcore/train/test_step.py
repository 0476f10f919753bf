"""A step waits for nothing, and what it found is reported all the same."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmcore.errors import TrainingDiverged
from lmcore.parallel.mesh import World
from lmcore.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))


class Waits(TorchDispatchMode):
    """Counts the times that a number goes from a tensor to Python, for which a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.number += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(named or {}))


@pytest.fixture
def make_trainer(make_run):
    """Return a function that makes a trainer that is ``behind`` with its reports, as on a GPU."""

    def make(name="run", behind=1, stop=lambda: False, **settings):
        run = make_run(name, **settings)
        trainer = Trainer(run.job, run.directory, ALONE, stop)
        trainer.behind = behind
        return run, trainer

    return make


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adam", "adafactor"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_nothing_in_a_step_is_waited_for(make_trainer, optimizer, document_mask):
    _, trainer = make_trainer(
        optimizer={"name": optimizer, "max_grad_norm": 0.1, "weight_decay": 0.1},
        document_mask=document_mask,
        packing="best_fit" if document_mask else "chunk",
        z_loss=1e-3,
        ema_decay=0.5,
        global_batch_tokens=512,
        model={"dropout": 0.1},
    )
    trainer.steps.launch(0)
    with Waits() as waits:
        reading = trainer.steps.launch(1)
        assert waits.number == 0
        reading.numbers[0].item()  # what is counted
        assert waits.number == 1


def test_only_fp16_waits_and_only_once(make_trainer):
    _, trainer = make_trainer(precision="fp16", optimizer={"name": "adamw"})
    trainer.steps.launch(0)
    with Waits() as waits:
        trainer.steps.launch(1)
    assert waits.number == 1


@pytest.mark.parametrize("every", [0, 3])
def test_reports_that_come_late_are_the_same_and_in_order(make_trainer, every):
    settings = {"steps": 7, "validate_every": every, "checkpoint_every": every}
    kinds, values = [], []
    for behind in (0, 1):
        run, trainer = make_trainer(f"run-{behind}", behind, **settings)
        trainer.run()
        rows = [json.loads(line) for line in Path(run.directory / "events.jsonl").read_text().splitlines()]
        kinds.append([(row["kind"], row["step"]) for row in rows])
        values.append([run.values(name) for name in ("train/loss", "train/grad_norm", "train/learning_rate")])
    assert kinds[0] == kinds[1]
    assert values[0] == values[1]
    steps = [step for kind, step in kinds[1] if kind == "step"]
    assert steps == list(range(1, 8))


def test_a_request_to_stop_is_heard_a_step_later(make_trainer):
    asked = iter([False, False, True])
    run, trainer = make_trainer(stop=lambda: next(asked, True), steps=9)
    assert trainer.run()["status"] == "preempted"
    assert [row["step"] for row in run.rows("checkpoint")] == [4]
    assert list(run.values("train/loss")) == [1, 2, 3, 4]


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("saved_at", [3, 4])
def test_weights_that_diverged_are_never_saved(make_trainer, behind, saved_at):
    run, trainer = make_trainer(behind=behind, steps=8, checkpoint_every=saved_at)
    launch = trainer.steps.launch

    def spoil(step):
        if step == 3:
            next(iter(trainer.model.named_parameters()))[1].data.fill_(torch.nan)
        return launch(step)

    trainer.steps.launch = spoil
    with pytest.raises(TrainingDiverged, match="diverged at step 4"):
        trainer.run()
    assert [row["step"] for row in run.rows("checkpoint")] == ([3] if saved_at == 3 else [])
    assert list(run.values("train/loss")) == [1, 2, 3]
