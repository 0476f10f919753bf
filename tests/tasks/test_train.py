"""What decides a training, and what is told of it."""

import json

import pytest

from lmcore.config import ModelConfig, Recipe, identify, parse
from lmcore.errors import CheckpointError
from lmcore.model.hf.config import to_config
from lmcore.store import Artifact
from tasks.prepare import Prepared
from tasks.tracked import tracked
from tasks.train import MAX_URGENT_LINES, last_loss, rate_limited, train_stage


def key(tmp_path, **changes):
    data = Artifact("data", "0" * 64, tmp_path, "built", "", 0.0, digest="d")
    recipe = parse(Recipe, changes, where="test")
    return train_stage(recipe, Prepared(data, data, data, data)).key


def test_the_layout_does_not_decide(tmp_path):
    alone = {"parallel": {"dp_replicate": 1}, "micro_batch_size": 8}
    assert key(tmp_path, train=alone) == key(tmp_path)
    dropout = {"dropout": 0.1}
    assert key(tmp_path, model=dropout, train=alone) == key(tmp_path, model=dropout)


def test_sharding_decides_what_half_types_make(tmp_path):
    sharded = {"parallel": {"dp_replicate": 1, "dp_shard": 2}}
    assert key(tmp_path, train=sharded) == key(tmp_path)
    bf16 = {"precision": "bf16"}
    assert key(tmp_path, train={**bf16, **sharded}) != key(tmp_path, train=bf16)
    assert key(tmp_path, train={**bf16, "parallel": {"dp_replicate": 1}}) == key(tmp_path, train=bf16)


def test_a_first_loss_scale_decides_what_fp16_makes(tmp_path):
    fp16 = {"precision": "fp16"}
    assert key(tmp_path, train=fp16) != key(tmp_path, train={**fp16, "initial_loss_scale": 1024.0})


def test_the_plan_decides_the_training_and_no_stage_before(tmp_path):
    base = key(tmp_path)
    for changed in (
        {"seq_len": 64},
        {"packing": "best_fit"},
        {"mixture": [{"source": "python-stdlib"}]},
        {"mixture": [{"source": "python-stdlib", "max_epochs": 2}]},
    ):
        assert key(tmp_path, train=changed) != base
        data = parse(Recipe, {"train": changed}, where="test").data
        assert identify(data=data) == identify(data=Recipe().data)


def test_weights_to_go_on_from_decide_by_what_they_hold(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"c" if name == "c" else b"ab")
    keys = {
        name: key(
            tmp_path,
            train={"initial_weights": str(tmp_path / name)},
            data={"tokenizer": {"path": str(tmp_path)}},
        )
        for name in ("a", "b", "c")
    }
    assert keys["a"] == keys["b"]
    assert len({*keys.values(), key(tmp_path)}) == 3


def test_the_last_loss_is_of_all_attempts(tmp_path):
    events = tmp_path / "events.jsonl"
    steps = [(1, 9.0), (2, 8.0), (2, 7.0), (3, 6.0)]
    rows = [{"kind": "step", "step": n, "values": {"train/loss": loss}} for n, loss in steps]
    rows += [{"kind": "resume", "step": 3}, {"kind": "end", "step": 3}]
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert last_loss(events) == 6.0


def test_steps_that_were_all_skipped_have_no_loss(tmp_path):
    events = tmp_path / "events.jsonl"
    events.write_text(json.dumps({"kind": "step", "step": 1, "values": {"perf/step_seconds": 0.5}}) + "\n")
    assert last_loss(events) is None


def test_a_flood_of_errors_does_not_flood_the_log():
    told = []
    pass_on = rate_limited(told.append, every_seconds=3600)
    for number in range(10_000):
        pass_on(f"line {number}")
        pass_on(f"ERROR {number}")
    assert told[:2] == ["line 0", "ERROR 0"]
    assert len(told) == MAX_URGENT_LINES + 1


def test_a_pickle_to_go_on_from_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_HOME", str(tmp_path / "home"))
    model = {"activation": "swiglu", "qk_norm": False}
    described = to_config(ModelConfig(**model), 300, "float32", None)
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    here = str(tmp_path)
    changes = {
        "model": model,
        "train": {"initial_weights": here, "parallel": {"dp_replicate": 1}},
        "data": {"tokenizer": {"path": here}},
    }
    recipe = parse(Recipe, changes, where="test")
    with pytest.raises(CheckpointError, match="pickle"), tracked(recipe, "train-flow"):
        pass
    assert not (tmp_path / "home").exists()
