import pytest
import torch

from lmcore.config import ModelConfig
from lmcore.errors import CheckpointError
from lmcore.model.io import load_model, save_model
from lmcore.model.transformer import Transformer

BASE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_seq_len": 16}
CONFIGS = [
    ModelConfig(**BASE, zero_init_projections=False),
    ModelConfig(**BASE, position="learned", norm="layernorm", bias=True, tie_embeddings=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["llama", "tied"])
def test_a_saved_model_computes_the_same(config, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    model = Transformer(config, 40).eval()
    model.init_weights(0)
    save_model(tmp_path / "model", model, config, 40, tmp_path / "tokenizer")
    loaded = load_model(tmp_path / "model")
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))
        assert load_model(tmp_path / "model", dtype=torch.bfloat16)(tokens).dtype == torch.bfloat16
    assert (loaded.head.weight is loaded.embedding.weight) == config.tie_embeddings
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


def test_a_damaged_model_is_refused(tmp_path):
    config = CONFIGS[0]
    save_model(tmp_path, Transformer(config, 40), config, 40)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="whole model"):
            load_model(tmp_path)
    save_model(tmp_path, Transformer(config, 41), config, 40)
    with pytest.raises(CheckpointError, match="fit each other"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError):
        load_model(tmp_path)
