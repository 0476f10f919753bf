"""Losses that jump are told, with the step and its samples; losses that only wander are not."""

import json
import math
import random
import re

import pytest

from lmcore.errors import TrainingDiverged
from lmcore.train.spikes import LEAST, Spikes, score
from lmcore.train.step import TrainingStep
from lmcore.train.trainer import Trainer


def curve(steps, noise, seed=0):
    """A loss that falls as a power of the steps, with the noise of small batches."""
    draw = random.Random(seed)
    return [(2.0 + 4.0 / (1 + step / 20)) * (1 + draw.gauss(0, noise)) for step in range(steps)]


def spikes_of(losses, least_z=8.0):
    known = []
    found = []
    for step, loss in enumerate(losses, 1):
        if score(loss, known[-128:])[0] >= least_z:
            found.append(step)
        known.append(loss)
    return found


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.02, 0.05])
def test_a_loss_that_falls_with_noise_has_no_spikes(noise):
    for seed in range(5):
        assert spikes_of(curve(1000, noise, seed)) == []


@pytest.mark.parametrize(("step", "factor"), [(7, 25.0), (40, 2.0), (200, 1.5), (999, 3.0)])
def test_a_jump_is_found_wherever_it_is(step, factor):
    losses = curve(1000, 0.01)
    losses[step - 1] *= factor
    assert spikes_of(losses) == [step]


def test_a_new_level_is_told_until_it_is_the_usual_one():
    losses = curve(400, 0.01)
    losses[200:] = [loss * 3 for loss in losses[200:]]
    found = spikes_of(losses)
    assert found[0] == 201
    assert found == list(range(201, 201 + len(found)))
    assert 4 < len(found) < 16
    # Down is no spike, and neither is what is not known well enough.
    assert score(0.1, curve(100, 0.01))[0] < 0
    assert score(1e9, [1.0] * (LEAST - 1)) == pytest.approx((0.0, math.nan), nan_ok=True)


@pytest.fixture
def spoilt(monkeypatch):
    """Multiply the loss of a step, as it is reported, by a factor."""

    def spoil(at, factor):
        real = TrainingStep.forward_backward
        monkeypatch.setattr(
            TrainingStep,
            "forward_backward",
            lambda self, data: real(self, data) * (factor if data.step + 1 == at else 1.0),
        )

    return spoil


def test_a_run_tells_of_a_spike_in_row_log_and_result(make_run, train_here, spoilt, capsys):
    spoilt(9, 25.0)
    run = make_run(steps=12)
    result = train_here(run)
    assert result["loss_spikes"] == 1
    (row,) = run.rows("loss_spike")
    assert row["step"] == 9
    assert row["values"]["train/loss_spike"] > 8
    loader = Trainer(run.job, run.directory, *_alone()).inputs.loader
    assert row["samples"] == loader.samples_of_step(8).tolist()
    line = re.search("warning: loss spike at step 9: .*", capsys.readouterr().out).group()
    assert f"samples {row['samples'][0]}, {row['samples'][1]}" in line
    assert loader.documents_of_step(8)[0] in line


def test_a_resumed_run_knows_the_losses_before(make_run, train_here, spoilt):
    run = make_run(steps=9, checkpoint_every=8)
    asked = iter(range(100))
    assert train_here(run, lambda: next(asked) >= 7)["status"] == "preempted"
    spoilt(9, 25.0)
    assert train_here(run)["loss_spikes"] == 1


def test_a_loss_that_is_no_number_names_its_samples(make_run, train_here, spoilt):
    spoilt(3, math.nan)
    run = make_run(steps=4)
    with pytest.raises(TrainingDiverged, match=r"step 3: .*samples \d+, .* of documents train-\d+"):
        train_here(run)


def test_spikes_are_told_of_finite_losses_alone():
    class NoLoader:
        def samples_of_step(self, step):
            raise AssertionError

    spikes = Spikes(8.0, NoLoader())
    for loss in [1.0] * 10 + [math.nan, math.inf]:
        assert spikes.look(1, loss) is None
    assert Spikes(0.0, NoLoader()).look(1, 1e9) is None


def _alone():
    import torch

    from lmcore.parallel.mesh import World

    return World(0, 1, torch.device("cpu")), lambda: False


def test_rows_of_spikes_are_json(make_run, train_here, spoilt):
    spoilt(9, 25.0)
    run = make_run(steps=9)
    train_here(run)
    for line in (run.directory / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
