"""The micro-batch that fits: found without being told, agreed on, and without a trace in the result."""

import math

import pytest
import torch

from lmcore.errors import OutOfMemory
from lmcore.layout import find_misfit
from lmcore.train import fitting
from lmcore.train.fitting import Trial, find_largest, free_memory

SIZES = [1, 2, 3, 4, 6, 8, 12, 24]


@pytest.mark.parametrize("sequence", [0.01, 0.04, 0.1, 0.3])
@pytest.mark.parametrize("held", [0.05, 0.6])
@pytest.mark.parametrize("bend", [1.0, 0.8])  # less than a line: logits by chunks
def test_the_largest_that_fits_is_found_and_none_that_does_not_is_tried(sequence, held, bend):
    def peak(size):
        return held + sequence * size**bend

    best, trials = find_largest(SIZES, lambda size: Trial(peak(size), held))
    assert best == max(size for size in SIZES if peak(size) <= 1)
    assert all(trial.peak <= 1 for trial in trials.values())
    assert len(trials) <= 6


def test_what_does_not_fit_after_all_is_not_taken():
    best, trials = find_largest(SIZES, lambda size: Trial(0.1 * size if size < 8 else math.inf, 0.0))
    assert best == 6
    assert trials[8].peak == math.inf


def test_a_model_that_does_not_fit_at_all_is_an_error_with_a_remedy():
    with pytest.raises(OutOfMemory, match=r"130%.*activation_checkpointing=selective"):
        find_largest(SIZES, lambda size: Trial(1.3, 0.9))


def test_the_memory_of_this_machine_is_some():
    assert 1e8 < free_memory(torch.device("cpu")) < 1e15


@pytest.mark.filterwarnings("ignore")
def test_sizes_that_are_tried_are_not_compiled(make_run, train_here, monkeypatch):
    shapes = set()

    def look(graph, inputs):
        shapes.update(x.shape[0] for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 3)
        return graph.forward

    monkeypatch.setattr(
        "lmcore.parallel.apply.compile_block",
        lambda forward, **_: torch.compile(forward, dynamic=False, backend=look),
    )
    monkeypatch.setattr("lmcore.train.trainer.choose_compile", lambda *_: (True, "asked to"))
    monkeypatch.setattr(fitting, "free_memory", lambda device: 1e9)
    torch._dynamo.reset()
    run = make_run("compiled", micro_batch_size=0, steps=2, activation_checkpointing="selective")
    train_here(run)
    (event,) = run.rows("micro_batch")
    assert event["size"] == 8
    assert len(event["memory_shares"]) > 1
    assert shapes
    assert not shapes & ({int(size) for size in event["memory_shares"]} - {8})


MODEL = {"moe": {"num_experts": 3, "balance": "bias"}, "activation": "swiglu", "zero_init_projections": False}


def test_a_run_finds_it_and_learns_the_same(make_run, train_here, monkeypatch):
    told = make_run("told", MODEL, micro_batch_size=4, steps=3)
    train_here(told)
    monkeypatch.setattr(fitting, "free_memory", lambda device: 2_300_000.0)
    found = make_run("found", MODEL, micro_batch_size=0, steps=3)
    train_here(found)
    (event,) = found.rows("micro_batch")
    assert event["size"] in (2, 4)  # of 8
    assert event["memory_shares"][str(event["size"])] <= 1
    assert event["grad_accum_steps"] == 8 // event["size"]
    size = event["size"]
    if size != 4:
        told = make_run("again", MODEL, micro_batch_size=size, steps=3)
        train_here(told)
    assert found.weights == told.weights
    assert found.values("train/expert_imbalance") == told.values("train/expert_imbalance")


@pytest.mark.long
def test_processes_agree_and_pipelines_find_theirs(make_run, run_together):
    layouts = {"replicas": {"dp_replicate": 2}, "shards": {"dp_shard": 2}, "stages": {"pp": 2}}
    runs = {
        name: make_run(name, micro_batch_size=0, parallel={"dp_replicate": 1, **layout})
        for name, layout in layouts.items()
    }
    whole = make_run("whole")
    run_together([*runs.values(), whole])
    for name, run in runs.items():
        (event,) = run.rows("micro_batch")
        assert event["size"] == 4, name  # all of a process's share, or half of it for a pipeline of two
        expected = list(whole.values("train/loss").values())
        assert list(run.values("train/loss").values()) == pytest.approx(expected, rel=1e-5), name


def test_a_step_that_runs_out_of_memory_says_what_was_set(make_run, train_here, monkeypatch):
    run = make_run()

    def fails(self, batches, criterion):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("lmcore.parallel.divided.DividedModel.forward_backward", fails)
    with pytest.raises(OutOfMemory, match=r"train\.micro_batch_size 8 of 32 tokens.*optimizer\.offload"):
        train_here(run)


def test_a_pipeline_that_no_micro_batch_fills_is_refused(make_run):
    job = make_run(micro_batch_size=0, global_batch_tokens=32, parallel={"dp_replicate": 1, "pp": 2}).job
    assert "use global_batch_tokens 64" in find_misfit(job.model, job.train)
