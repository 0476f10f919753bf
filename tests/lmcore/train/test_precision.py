import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmcore.errors import ConfigError, TrainingDiverged
from lmcore.model.io import WEIGHTS
from lmcore.train.precision import GROW_EVERY, LossScale

OPTIMIZER = {"name": "adamw", "learning_rate": 0.003}
GPT2 = {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}


@dataclass(frozen=True)
class Tolerance:
    """How far ten steps may be from those of fp32, relatively.

    Two to seven times what was measured. Rounding is by at most 2^-9 in bf16, 2^-11 in fp16, 2^-4 in e4m3.
    """

    loss: float
    grad_norm: float
    weights: float


TOLERANCES = {
    "bf16": Tolerance(loss=2e-4, grad_norm=1e-2, weights=1.5e-2),
    "fp16": Tolerance(loss=1e-4, grad_norm=5e-3, weights=5e-3),
    "fp8": Tolerance(loss=1e-3, grad_norm=5e-2, weights=5e-2),
}


def weights(run):
    tensors = load_file(run.directory / "model" / WEIGHTS)
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize(
    "model", [pytest.param({}, id="llama"), pytest.param(GPT2, id="gpt2", marks=pytest.mark.long)]
)
def test_smaller_types_stay_within_their_tolerance_of_fp32(make_run, train_here, model):
    runs = {
        precision: make_run(precision, model, steps=10, optimizer=OPTIMIZER, precision=precision)
        for precision in ("fp32", *TOLERANCES)
    }
    for run in runs.values():
        train_here(run)
    full = runs.pop("fp32")
    for precision, run in runs.items():
        tolerance = TOLERANCES[precision]
        assert run.values("train/loss") != full.values("train/loss")
        assert run.values("train/loss") == pytest.approx(full.values("train/loss"), rel=tolerance.loss)
        assert run.values("train/grad_norm") == pytest.approx(
            full.values("train/grad_norm"), rel=tolerance.grad_norm
        )
        distance = (weights(run) - weights(full)).norm() / weights(full).norm()
        assert 0 < distance < tolerance.weights


@pytest.mark.long
def test_layouts_in_fp8_stay_within_its_tolerance_of_one_process(make_run, run_together):
    layouts = {
        "one": {},
        "again": {"activation_checkpointing": "full"},
        "replicas": {"dp_replicate": 2},
        "shards": {"dp_shard": 2, "activation_checkpointing": "full"},
        "stages": {"parallel": {"dp_replicate": 1, "pp": 2}, "micro_batch_size": 4},
        "parts": {"parallel": {"dp_replicate": 1, "cp": 2}},
    }
    runs = [
        make_run(name, steps=6, optimizer=OPTIMIZER, precision="fp8", **layout)
        for name, layout in layouts.items()
    ]
    run_together(runs)
    one, again, *others = runs
    assert again.values("train/loss") == one.values("train/loss")
    for run in others:
        assert run.values("train/loss") == pytest.approx(one.values("train/loss"), rel=TOLERANCES["fp8"].loss)


@pytest.mark.long
def test_shared_experts_multiply_in_fp8_and_routed_ones_do_not(make_run, train_here, capfd):
    moe = {"num_experts": 4, "num_shared_experts": 1}
    losses = {}
    for precision in ("fp32", "fp8"):
        run = make_run(precision, {"moe": moe}, steps=6, optimizer=OPTIMIZER, precision=precision)
        train_here(run)
        losses[precision] = run.values("train/loss")
    assert losses["fp8"] == pytest.approx(losses["fp32"], rel=2e-2)  # a token may visit another expert
    assert "fp8: 8 layers" in "".join(capfd.readouterr())  # qkv, out, shared up and down, of two blocks


def test_fp8_says_which_layers_stay_in_bf16(make_run, train_here, capfd):
    train_here(make_run(model={"intermediate_size": 72}, steps=2, precision="fp8"))
    shown = "".join(capfd.readouterr())
    assert shown.count("0.mlp.up, 0.mlp.down, 1.mlp.up, 1.mlp.down") == 1


def test_fp8_is_refused_before_training_where_it_cannot_be(make_run, train_here):
    run = make_run(model={"hidden_size": 24}, precision="fp8")
    with pytest.raises(ConfigError, match=r"multiple of 16, found 24.*train\.precision=bf16"):
        train_here(run)
    assert run.rows() == []


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
    assert result["skipped_share"] == skipped[40] / 40
    assert run.values("train/loss_scale")[40] == 2.0 ** (40 - result["skipped_steps"])
    # The steps that were skipped are the first ones, and left the weights alone.
    assert "train/grad_norm" not in run.rows()[0]["values"]
    assert run.values("train/loss")[1] == pytest.approx(math.log(300), rel=0.01)
    assert run.values("train/loss")[40] < run.values("train/loss")[1] - 0.1


@pytest.mark.parametrize("layout", ["dp_replicate", "dp_shard"])
def test_an_overflow_on_one_process_is_skipped_by_all(make_run, layout):
    run = make_run(precision="fp16", initial_loss_scale=1024.0, steps=6, optimizer=OPTIMIZER, **{layout: 2})
    script = [str(Path(__file__).with_name("overflow.py")), str(run.directory), "2", "4"]
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *agent, *script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((run.directory / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["skipped_steps"] == run.values("train/skipped_steps")[6] == 2
    assert first["scale"] == 1024 / 4
    # A step that was skipped left the weights as they were, and no other did.
    kept = [before == after for before, after in zip(first["weights"], first["weights"][1:], strict=False)]
    assert kept == [False, False, True, False, True, False]


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


@pytest.mark.parametrize("steps", [2, 20])
def test_a_run_in_which_every_step_is_skipped_has_learned_nothing(make_run, train_here, steps):
    run = make_run(precision="fp16", initial_loss_scale=2.0**60, steps=steps, optimizer=OPTIMIZER)
    with pytest.raises(TrainingDiverged, match=rf"nothing was learned.*{steps} of {steps} steps skipped"):
        train_here(run)
    assert not (run.directory / "model").exists()
    with pytest.raises(TrainingDiverged, match="nothing was learned"):  # and so it does from its checkpoint
        train_here(run)
