"""A step waits for nothing, and what it found is reported all the same."""

import json
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lmcore.errors import TrainingDiverged
from lmcore.parallel.experts import _by_expert
from lmcore.parallel.mesh import World
from lmcore.train.trainer import Trainer

aten = torch.ops.aten
ALONE = World(0, 1, torch.device("cpu"))


class Waits(TorchDispatchMode):
    """Lists what a GPU would be waited for, as far as it shows where everything is on a CPU.

    That is: a number or a list that goes from a tensor to Python, a result whose size is that of what is in
    a tensor, and a tensor made of numbers, whose memory is not pinned. A copy from one device to another
    does not show itself, ``x.to(device)``: ``tests/gpu`` sees it.
    """

    SIZED_BY_NUMBERS = (
        aten.nonzero.default,
        aten.masked_select.default,
        aten._unique2.default,
        aten.unique_consecutive.default,
        aten.unique_dim.default,
        aten.bincount.default,
    )

    def __init__(self):
        super().__init__()
        self.found = []
        self.calls = _Calls(self.found)

    def __enter__(self):
        self.calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.calls.__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        waits = function in (aten._local_scalar_dense.default, *self.SIZED_BY_NUMBERS)
        if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            waits = any(index is not None and index.dtype == torch.bool for index in arguments[1])
        if function is aten.repeat_interleave.Tensor:
            waits = named.get("output_size") is None
        self.found += [str(function)] * waits
        return function(*arguments, **named)


class _Calls(TorchFunctionMode):
    """What no operation shows where a tensor is on the CPU already."""

    NAMES = ("tolist", "numpy", "__array__", "cpu", "tensor", "as_tensor", "from_numpy")

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, arguments=(), named=None):
        name = getattr(function, "__name__", "")
        self.found += [name] * (name in self.NAMES)
        return function(*arguments, **(named or {}))


NUMBERS, MASK = torch.arange(4), torch.tensor([True, False, True, False])


@pytest.mark.parametrize(
    "wait",
    [
        lambda: NUMBERS[0].item(),
        lambda: bool(MASK.any()),
        lambda: NUMBERS.tolist(),
        lambda: NUMBERS.numpy(),
        lambda: NUMBERS.cpu(),
        lambda: torch.tensor([1, 2]),
        lambda: torch.as_tensor([1, 2]),
        lambda: NUMBERS.nonzero(),
        lambda: NUMBERS[MASK],
        lambda: NUMBERS.clone().index_put_((MASK,), NUMBERS[:2]),
        lambda: NUMBERS.masked_select(MASK),
        lambda: NUMBERS.unique(),
        lambda: NUMBERS.bincount(),
        lambda: NUMBERS.repeat_interleave(NUMBERS),
        lambda: torch.where(MASK),
    ],
)
def test_what_waits_is_seen(wait):
    with Waits() as waits:
        wait()
    assert len(waits.found) >= 1
    with Waits() as waits:
        NUMBERS[NUMBERS].cumsum(0).where(MASK, 0)
        NUMBERS.repeat_interleave(NUMBERS, output_size=6)
        NUMBERS.masked_fill(MASK, 1)
        torch.full((2,), 1.5)
    assert waits.found == []


@pytest.fixture
def make_trainer(make_run):
    """Return a function that makes a trainer that is ``behind`` with its reports, as on a GPU."""

    def make(name="run", behind=1, stop=lambda: False, **settings):
        run = make_run(name, **settings)
        trainer = Trainer(run.job, run.directory, ALONE, stop)
        trainer.behind = behind
        trainer.steps.numbers_are_here = False
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
        assert waits.found == []
        reading.numbers[0].item()  # what is counted
        assert len(waits.found) == 1


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_a_step_is_the_same_whether_the_host_looks_at_its_norm_or_not(make_trainer, limit):
    weights, scaled = [], []
    for looks in (False, True):
        _, trainer = make_trainer(f"looks-{looks}", optimizer={"name": "adamw", "max_grad_norm": limit})
        trainer.steps.numbers_are_here = looks
        scale = trainer.optimizers.scale_gradients
        trainer.optimizers.scale_gradients = lambda factor, scale=scale: (
            scaled.append(factor) or scale(factor)
        )
        for step in range(2):
            trainer.steps.launch(step)
        weights.append([parameter.detach() for _, parameter in trainer.model.named_parameters()])
    assert len(scaled) == (4 if limit < 1 else 2)
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_rows_for_divided_experts_are_put_in_order_without_another_wait():
    coming = torch.tensor([[2, 0, 1], [1, 1, 0]])  # by process and expert
    with Waits() as waits:
        order, place = _by_expert(coming, 5)
    assert waits.found == []
    assert order.tolist() == [0, 1, 3, 4, 2]
    assert order[place].tolist() == [0, 1, 2, 3, 4]


def test_a_dense_model_waits_in_fp16_alone_and_only_once(make_trainer):
    _, trainer = make_trainer(precision="fp16", optimizer={"name": "adamw"})
    trainer.steps.launch(0)
    with Waits() as waits:
        trainer.steps.launch(1)
    assert waits.found == ["aten._local_scalar_dense.default"]


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
