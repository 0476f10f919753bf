"""Optimizer state on the host: the same bits, wherever the state lies between steps."""

import pytest
import torch

from lmcore.config import ModelConfig, OptimizerConfig
from lmcore.model.transformer import Transformer
from lmcore.train.optim import Optimizers

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    max_seq_len=16,
    activation="swiglu",
    moe={"num_experts": 3, "intermediate_size": 20, "num_dense_layers": 1},
)


def run(name, *, offload, steps=3):
    model = Transformer(MODEL, 50)
    model.init_weights(0)
    config = OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.1, offload=offload)
    optimizers = Optimizers(model.named_parameters(), config, torch.float32)
    generator = torch.Generator().manual_seed(0)
    places = []
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.step(1 / (step + 1))
        places.append({key: value.data_ptr() for key, value in optimizers.state().items()})
    return model, optimizers, places


@pytest.mark.parametrize("elements", [1, 3_000, 1 << 26])
@pytest.mark.parametrize("name", ["adamw", "muon", "adam", "adafactor", "sgd"])
def test_the_numbers_are_the_same_bits_and_the_state_stays_where_it_is(monkeypatch, name, elements):
    monkeypatch.setattr("lmcore.train.offload.RUN_ELEMENTS", elements)
    (expected, here, _), (model, there, places) = (run(name, offload=offload) for offload in (False, True))
    for one, other in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    theirs = there.state()
    assert here.state().keys() == theirs.keys()
    for key, value in here.state().items():
        assert torch.equal(value, theirs[key]), key
    assert places[0] == places[-1]
    assert there.learning_rates() == here.learning_rates()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_a_run_of_it_visits_the_device_at_a_time(monkeypatch, name):
    monkeypatch.setattr("lmcore.train.offload.RUN_ELEMENTS", 3_000)
    model, optimizers, places = run(name, offload=True, steps=1)
    on_host, seen = set(places[0].values()), []

    def look(optimizer, args, kwargs):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        visiting = [slot for p in parameters for slot in optimizer.state[p].values() if slot.ndim]
        assert not on_host & {slot.data_ptr() for slot in visiting}
        assert len(parameters) == 1 or sum(p.numel() for p in parameters) <= 3_000
        seen.extend(parameters)

    for optimizer in optimizers._all:
        optimizer.register_step_pre_hook(look)
    optimizers.step(1.0)
    assert len(seen) == len(set(seen)) == len(list(model.parameters()))


def test_a_run_comes_in_when_all_but_the_last_before_it_have_left():
    class Left:
        def __init__(self):
            self.waited = False

        def synchronize(self):
            self.waited = True

    _, optimizers, _ = run("adamw", offload=True, steps=1)
    host, (optimizer,) = optimizers._host, optimizers._all
    runs = [Left() for _ in range(3)]
    host._leaving.extend(runs)
    assert host._bring(optimizer, optimizer.param_groups[0]["params"])
    assert [left.waited for left in runs] == [True, True, False]


def test_a_run_goes_on_with_its_state_elsewhere(make_run, train_here):
    settings = {"steps": 6, "schedule": {"warmup_steps": 1}, "optimizer": {"name": "muon"}}
    straight, other = make_run("straight", **settings), make_run("other", **settings)
    train_here(straight)
    asked = iter([False, False, True])
    train_here(other, lambda: next(asked))
    assert other.rows()[-1]["step"] < 6
    moved = other.job.train.model_copy(
        update={"optimizer": other.job.train.optimizer.model_copy(update={"offload": True})}
    )
    other.job = other.job.model_copy(update={"train": moved})
    train_here(other)
    assert other.weights == straight.weights
