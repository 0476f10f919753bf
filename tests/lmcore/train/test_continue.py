"""Training that goes on from a Hugging Face model."""

import json
import shutil

import pytest
import torch
from parity.corpus import VOCAB

from lmcore.config import ModelConfig
from lmcore.errors import CheckpointError, ConfigError
from lmcore.model.hf.export import export
from lmcore.model.hf.weights import HFWeights
from lmcore.model.io import load_model
from lmcore.model.transformer import Transformer
from lmcore.parallel.mesh import World, make_layout
from lmcore.train.inputs import open_inputs
from tests.lmcore.train.conftest import MODEL

LLAMA = {"activation": "swiglu", "qk_norm": False, "num_kv_heads": 1, "tie_embeddings": False}
PADDED = VOCAB + 20


@pytest.fixture
def pretrained(tmp_path, corpus):
    """A Hugging Face directory with more rows of embeddings than its tokenizer has entries."""
    config = ModelConfig(**MODEL, **LLAMA, zero_init_projections=False, init_std=0.1)
    model = Transformer(config, PADDED)
    model.init_weights(5)
    export(tmp_path / "pretrained", model.named_parameters(), config, PADDED, corpus / "tokenizer")
    return tmp_path / "pretrained"


def theirs(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.mark.long
def test_the_first_loss_is_that_of_the_model(make_run, train_here, run_together, pretrained):
    alone, together = (
        make_run(name, LLAMA, steps=2, initial_weights=str(pretrained), dp_shard=size)
        for name, size in (("alone", 1), ("together", 2))
    )
    seen = []
    train_here(alone)
    run_together([together])
    layout = make_layout(alone.job.train.parallel, World(0, 1, torch.device("cpu")))
    for batch in open_inputs(alone.job, layout).loader.micro_batches(0):
        with torch.no_grad():
            logits = theirs(pretrained)(batch.tokens).logits
        seen.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).item())
    expected = sum(seen) / len(seen)
    assert alone.values("train/loss")[1] == pytest.approx(expected, rel=1e-5)
    assert together.values("train/loss")[1] == pytest.approx(expected, rel=1e-5)
    assert alone.values("train/loss")[2] < expected
    trained = load_model(alone.directory / "model")
    assert trained.vocab_size == PADDED
    assert not torch.equal(trained.norm.weight, HFWeights(pretrained)["norm.weight"])


def test_a_checkpoint_belongs_to_the_weights_it_began_with(make_run, train_here, pretrained, tmp_path):
    run = make_run("first", LLAMA, steps=2, initial_weights=str(pretrained))
    train_here(run)
    moved = shutil.copytree(pretrained, tmp_path / "moved")
    same = make_run("same", LLAMA, steps=4, initial_weights=str(moved))
    other = make_run("other", LLAMA, steps=4, initial_weights=str(moved))
    drawn = make_run("drawn", LLAMA, steps=4)
    for again in (same, other, drawn):
        shutil.copytree(run.directory / "checkpoints", again.directory / "checkpoints")
    train_here(same)
    assert same.rows("resume")[0]["step"] == 2
    described = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**described, "eos_token_id": 1}))
    with pytest.raises(CheckpointError, match="is of another run: expected initial_weights"):
        train_here(other)
    with pytest.raises(
        CheckpointError, match="is of another run: expected initial_weights none, vocab_size 300"
    ):
        train_here(drawn)


def test_what_does_not_fit_the_model_is_refused(make_run, train_here, pretrained, corpus):
    def refused(kind, told, model=LLAMA, **train):
        run = make_run("refused", model, initial_weights=str(pretrained), **train)
        with pytest.raises(kind) as caught:
            train_here(run)
        assert told in str(caught.value)
        assert not run.rows()

    refused(
        ConfigError, "expected model.num_kv_heads 1, found model.num_kv_heads 2", {**LLAMA, "num_kv_heads": 2}
    )
    described = json.loads((pretrained / "tokenizer.json").read_text())
    vocab = dict(zip(described["model"]["vocab"], reversed(range(VOCAB)), strict=True))
    (pretrained / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    refused(ConfigError, f"the tokenizer is not that of the model in {pretrained}")
    (pretrained / "tokenizer.json").unlink()
    small = Transformer(ModelConfig(**MODEL, **LLAMA), VOCAB - 1)
    shutil.rmtree(pretrained)
    export(pretrained, small.named_parameters(), small.config, VOCAB - 1)
    refused(ConfigError, f"of at most {VOCAB - 1} entries, found another, of {VOCAB}")
    (pretrained / "model.safetensors").unlink()
    refused(CheckpointError, "holds no weights that can be read")
