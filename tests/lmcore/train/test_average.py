import pytest
import torch
from safetensors.torch import load

from lmcore.train.step import TrainingStep
from lmcore.train.trainer import Trainer


def test_the_model_of_a_run_is_the_average_of_what_its_steps_left(make_run, train_here, monkeypatch):
    settings = {"steps": 6, "validate_every": 2}
    expected, update = {}, TrainingStep._update

    def watched(steps, grad_norm, step):
        update(steps, grad_norm, step)
        decay = min(0.4, (1 + step) / (10 + step))
        for name, weights in steps.model.named_parameters():
            before = expected.get(name, start[name])
            expected[name] = decay * before + (1 - decay) * weights.detach().double()

    start = {}
    plain = make_run("plain", **settings)
    build = Trainer._build_model

    def built(trainer):
        build(trainer)
        start.update({name: p.detach().double().clone() for name, p in trainer.model.named_parameters()})

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStep, "_update", watched)
        patched.setattr(Trainer, "_build_model", built)
        averaged = make_run("averaged", **settings, ema_decay=0.4)
        found = train_here(averaged)
    for name, weights in load(averaged.weights).items():
        torch.testing.assert_close(weights.double(), expected[name], rtol=1e-5, atol=1e-7)
    # Averaging changes what is validated, not how the run goes.
    last = train_here(plain)
    assert averaged.values("train/loss") == plain.values("train/loss")
    assert found["validation_loss"] != last["validation_loss"]
    assert found["validation_loss"] == pytest.approx(last["validation_loss"], rel=0.1)
