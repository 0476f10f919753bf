"""A run that was stopped, killed or damaged ends as if nothing had happened."""

import random
import shutil
import signal

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lmcore.errors import CheckpointError

SETTINGS = {
    "steps": 60,
    "checkpoint_every": 15,
    "validate_every": 25,
    "keep_checkpoints": 2,
    "global_batch_tokens": 128,
    "micro_batch_size": 2,
    "document_mask": True,
    "z_loss": 1e-3,
    "ema_decay": 0.95,
    "model": {"dropout": 0.1},
}


TORN = '{"kind": "step", "st'  # as a killed process may leave it


def wait_for_step(run, process, step):
    """Watch the events until ``step`` has been written."""
    while process.poll() is None:
        if max((row["step"] for row in run.rows()), default=0) >= step:
            return
    raise AssertionError(run.log)


def kill_all(process):
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family)
    process.wait()


def test_stopped_and_killed_equals_uninterrupted(make_run, train_here):
    straight, run = make_run("straight", **SETTINGS), make_run("run", **SETTINGS)
    train_here(straight)
    stops = iter(range(random.randint(3, 20)))
    result = train_here(run, stop=lambda: next(stops, None) is None)
    assert result["status"] == "preempted"
    stopped_at = result["step"]
    assert 3 < stopped_at < 30
    kill_on_the_way(run, stopped_at)
    with (run.directory / "events.jsonl").open("a") as events:
        events.write(TORN)
    train_here(run)
    check_same(run, straight)


def test_biases_of_experts_go_on_where_they_were(make_run, train_here):
    moe = {"num_experts": 4, "balance": "bias", "bias_update_rate": 0.05}
    settings = {"steps": 8, "model": {"moe": moe}}
    straight, run = make_run("straight", **settings), make_run("run", **settings)
    train_here(straight)
    stops = iter(range(4))
    assert train_here(run, stop=lambda: next(stops, None) is None)["step"] < 8
    train_here(run)
    assert run.weights == straight.weights
    biases = [
        t for name, t in load_file(run.directory / "model" / "model.safetensors").items() if "bias" in name
    ]
    assert len(biases) == 2
    assert all(bias.any() for bias in biases)


@pytest.mark.long
def test_stopped_and_killed_equals_uninterrupted_in_two_processes(make_run, run_together, train_here):
    straight, run = (make_run(name, **SETTINGS, dp_shard=2) for name in ("straight", "run"))
    run_together([straight])
    process = run.start()
    wait_for_step(run, process, random.randint(3, 12))
    process.send_signal(signal.SIGTERM)
    process.wait(60)  # torchrun's agent exits with 1 all the same
    assert run.result["status"] == "preempted", run.log
    assert run.rows("end")[-1]["status"] == "preempted"
    kill_on_the_way(run, run.result["step"])
    with (run.directory / "events.jsonl").open("a") as events:
        events.write(TORN)
    run.finish()
    assert run.result["status"] == "completed"
    check_same(run, straight)
    goes_on_alone(run, make_run("alone", **SETTINGS), train_here)


@pytest.mark.long
def test_a_packed_mixture_goes_on_where_it_stopped_in_two_processes(make_run, run_together, train_here):
    settings = {
        "steps": 40,
        "checkpoint_every": 10,
        "document_mask": True,
        "packing": "best_fit",
        "mixture": [{"source": "made", "weight": 0.4}, {"source": "found", "weight": 0.6, "max_epochs": 1}],
    }
    straight, run = (make_run(name, **settings, dp_shard=2) for name in ("straight", "run"))
    run_together([straight])
    (plan,) = straight.rows("plan")
    assert plan["values"]["data/epochs/found"] == 1.0  # and then the other one is on its own
    assert 0.5 < plan["values"]["data/share/made"] < 0.7
    assert "source found: " in run_to_its_end_in_two_parts(run)
    for name in ("train/loss", "train/grad_norm"):
        assert run.values(name) == straight.values(name)
    assert run.weights == straight.weights
    alone = make_run("alone", **settings)
    train_here(alone)
    assert list(alone.values("train/loss").values()) == pytest.approx(
        list(run.values("train/loss").values()), rel=1e-3
    )


def run_to_its_end_in_two_parts(run):
    process = run.start()
    wait_for_step(run, process, random.randint(3, 12))
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert run.result["status"] == "preempted", run.log
    run.finish()
    assert run.rows("resume")[0]["step"] > 0
    return run.log


@pytest.mark.long
def test_a_validation_leaves_the_weights_of_shards_as_they_are(make_run, run_together, train_here):
    settings = {"steps": 4, "precision": "bf16", "validate_every": 2, "checkpoint_every": 2, "dp_shard": 2}
    straight, run = (make_run(name, **settings, keep_checkpoints=3) for name in ("straight", "run"))
    run_together([straight])
    tensors = load_file(straight.directory / "model" / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in tensors)
    shutil.copytree(straight.directory / "checkpoints", run.directory / "checkpoints")
    shutil.rmtree(run.directory / "checkpoints" / "step-00000004")
    run_together([run])
    assert run.rows("resume")[0]["step"] == 2
    losses = straight.values("train/loss")
    assert run.values("train/loss") == {step: losses[step] for step in (3, 4)}
    assert run.weights == straight.weights
    alone = make_run("alone", **{**settings, "dp_shard": 1})
    shutil.copytree(straight.directory / "checkpoints", alone.directory / "checkpoints")
    assert train_here(alone)["validation_loss"] == pytest.approx(straight.result["validation_loss"], rel=1e-2)


def test_a_request_to_stop_is_no_failure(make_run):
    run = make_run(**SETTINGS)
    process = run.start()
    wait_for_step(run, process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, run.log
    assert run.result["status"] == "preempted"


def kill_on_the_way(run, stopped_at):
    process = run.start()
    wait_for_step(run, process, max(stopped_at + 1, random.randint(31, 40)))
    kill_all(process)
    assert run.rows("resume")[0]["step"] == stopped_at


def check_same(run, straight):
    torn = (run.directory / "events.jsonl").read_text().replace(TORN + "\n", "")
    (run.directory / "events.jsonl").write_text(torn)
    assert len(run.rows("resume")) == 2
    for name in ("train/loss", "train/grad_norm", "train/learning_rate"):
        assert run.values(name) == straight.values(name)
    assert run.weights == straight.weights
    assert run.rows("validation")[-1]["values"] == straight.rows("validation")[-1]["values"]
    kept = sorted(path.name for path in (run.directory / "checkpoints").iterdir())
    assert kept == ["step-00000045", "step-00000060"]


def goes_on_alone(run, alone, train_here):
    """A checkpoint of several processes is one of a single process too."""
    shutil.copytree(run.directory / "checkpoints", alone.directory / "checkpoints")
    shutil.rmtree(alone.directory / "checkpoints" / "step-00000060")
    train_here(alone)
    assert alone.rows("resume")[0]["step"] == 45
    losses = run.values("train/loss")
    # Dropout draws differ between layouts; everything else is the same.
    for step, loss in alone.values("train/loss").items():
        assert loss == pytest.approx(losses[step], rel=0.05)


def test_a_damaged_checkpoint_is_passed_over(make_run, train_here):
    straight = make_run("straight", **SETTINGS)
    train_here(straight)
    newest = straight.directory / "checkpoints" / "step-00000060"
    names = sorted(path.name for path in newest.iterdir())
    assert {"COMMIT", "manifest.json", "state.json", ".metadata"} < set(names)
    for name in names:
        run = make_run(f"damaged-{name}", **SETTINGS)
        shutil.copytree(straight.directory / "checkpoints", run.directory / "checkpoints")
        damaged = run.directory / "checkpoints" / newest.name / name
        content = bytearray(damaged.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        damaged.write_bytes(content)
        result = train_here(run)
        (row,) = run.rows("resume")
        assert row["step"] == 45
        assert newest.name in row["passed_over"][0]
        assert result["status"] == "completed"
        assert run.weights == straight.weights
    # A save that was cut off before its end is no checkpoint at all.
    run = make_run("cut-off", **SETTINGS)
    shutil.copytree(straight.directory / "checkpoints", run.directory / "checkpoints")
    (run.directory / "checkpoints" / newest.name / "COMMIT").unlink()
    train_here(run)
    assert run.rows("resume")[0]["step"] == 45


def test_a_checkpoint_of_another_model_is_refused(make_run, train_here):
    first = make_run("first", steps=2)
    train_here(first)
    for changed in ({"model": {"num_layers": 1}}, {"seed": 1}, {"global_batch_tokens": 512}):
        other = make_run("other", steps=4, **changed)
        shutil.copytree(first.directory / "checkpoints", other.directory / "checkpoints", dirs_exist_ok=True)
        with pytest.raises(CheckpointError, match="another run"):
            train_here(other)
    longer = make_run("longer", steps=4)  # but a run may be made longer
    shutil.copytree(first.directory / "checkpoints", longer.directory / "checkpoints")
    assert train_here(longer)["step"] == 4
