import math

import pytest

from lmcore.errors import TrainingDiverged
from lmcore.train.precision import GROW_EVERY, LossScale

OPTIMIZER = {"name": "adamw", "learning_rate": 0.003}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_types_train_like_fp32(make_run, train_here, precision):
    settings = {"steps": 20, "optimizer": OPTIMIZER}
    full, half = make_run("full", **settings), make_run("half", **settings, precision=precision)
    train_here(full)
    train_here(half)
    expected, found = (list(run.values("train/loss").values()) for run in (full, half))
    assert found[-1] < found[0] - 0.1
    assert found != expected
    assert found == pytest.approx(expected, rel=0.01)


def test_fp16_recovers_from_an_overflow(make_run, train_here):
    run = make_run(precision="fp16", initial_loss_scale=2.0**40, steps=40, optimizer=OPTIMIZER)
    result = train_here(run)
    skipped = run.values("train/skipped_steps")
    assert 5 < result["skipped_steps"] == skipped[40] < 35
    assert run.values("train/loss_scale")[40] == 2.0 ** (40 - result["skipped_steps"])
    # The steps that were skipped are the first ones, and left the weights alone.
    assert "train/grad_norm" not in run.rows()[0]["values"]
    assert run.values("train/loss")[1] == pytest.approx(math.log(300), rel=0.01)
    assert run.values("train/loss")[40] < run.values("train/loss")[1] - 0.1


def test_the_loss_scale_moves():
    scale = LossScale.of("fp16", 1024.0)
    for _ in range(GROW_EVERY):
        scale.keep()
    assert scale.scale == 2048
    scale.skip(1)
    assert (scale.scale, scale.skipped_steps) == (1024, 1)
    with pytest.raises(TrainingDiverged, match="bf16"):
        list(map(scale.skip, range(40)))
    assert LossScale.of("fp32", 1024.0).scale == 1
