"""Rows that are added to the vocabulary change nothing but the shape of two matrices."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lmcore.config import ModelConfig
from lmcore.model.transformer import Transformer

ADDED = {"vocab_multiple": 128}  # 300 entries, 384 rows
SETTINGS = {"steps": 4, "z_loss": 1e-2, "ema_decay": 0.5, "checkpoint_every": 2, "validate_every": 2}
UNTIED = {"tie_embeddings": False, "zero_init_projections": False}


def check_same(run, plain):
    for name in ("train/loss", "train/grad_norm", "train/z_loss"):
        expected = list(plain.values(name).values())
        assert list(run.values(name).values()) == pytest.approx(expected, rel=1e-5)
    assert run.rows("validation")[-1]["values"] == pytest.approx(
        plain.rows("validation")[-1]["values"], rel=1e-5
    )
    found, expected = (load_file(r.directory / "model" / "model.safetensors") for r in (run, plain))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    about = [json.loads((r.directory / "model" / "config.json").read_text()) for r in (run, plain)]
    assert about[0] == about[1]  # so nothing that is made of the model knows of them


@pytest.mark.parametrize("model", [{}, UNTIED])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_is_the_same_with_and_without_them(make_run, train_here, model, optimizer):
    settings = {**SETTINGS, "optimizer": {"name": optimizer, "weight_decay": 0.1, "eps": 1e-4}}
    plain = make_run("plain", model=model, **settings)
    run = make_run("added", model={**model, **ADDED}, **settings)
    results = [train_here(plain), train_here(run)]
    assert results[0]["num_parameters"] == results[1]["num_parameters"]
    check_same(run, plain)


@pytest.mark.long
def test_processes_that_share_the_vocabulary_share_them_too(make_run, run_together, train_here):
    settings = {**SETTINGS, "optimizer": {"name": "adamw", "eps": 1e-4}}
    plain = make_run("plain", model=UNTIED, **settings)
    parallel = {"dp_replicate": 1, "tp": 2}
    runs = [
        make_run(f"added-{multiple}", model={**UNTIED, "vocab_multiple": multiple}, **settings)
        for multiple in (128, 600)  # with 600 the second process has none but these
    ]
    for run in runs:
        train = run.job.train.model_copy(update={"parallel": type(run.job.train.parallel)(**parallel)})
        run.job = run.job.model_copy(update={"train": train})
        run.job.write(run.directory)
    train_here(plain)
    run_together(runs)
    for run in runs:
        check_same(run, plain)


def test_they_are_never_predicted_and_learn_nothing():
    config = ModelConfig(hidden_size=32, num_heads=2, zero_init_projections=False, **ADDED)
    model = Transformer(config, 300)
    model.init_weights(0)
    tokens = torch.randint(0, 300, (2, 9))
    logits = model(tokens)
    assert logits.shape == (2, 9, 384)
    probabilities = logits.softmax(-1)
    assert not probabilities[..., 300:].any()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    assert not model.embedding.weight.grad[300:].any()
    assert model.embedding.weight.grad[:300].isfinite().all()
    plain = Transformer(config.unpadded, 300)
    plain.init_weights(0)
    torch.testing.assert_close(plain(tokens), logits[..., :300])
    assert plain.num_parameters == model.num_parameters
    assert plain.flops_per_token(9) == model.flops_per_token(9)
