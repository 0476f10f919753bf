import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lmcore.config import ModelConfig
from lmcore.errors import CheckpointError
from lmcore.model.attention import Context
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


@pytest.mark.parametrize("size", [None, 33])
def test_a_model_of_the_first_format_computes_what_it_did(size, tmp_path):
    shape = {**BASE, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": size, "position": "learned"}
    config = ModelConfig(**shape, activation="swiglu", bias=True, qk_norm=False)
    model = Transformer(config, 40)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_model(tmp_path, model, config, 40)
    description = json.loads((tmp_path / "config.json").read_text())
    del description["format"]
    (tmp_path / "config.json").write_text(json.dumps(description))
    (tmp_path / "manifest.json").unlink()  # which the first format had not
    weights = load_file(tmp_path / "model.safetensors")  # read as the first format has them
    save_file(weights, tmp_path / "model.safetensors")
    x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(0))
    block = load_model(tmp_path).blocks[0]
    of = {name.removeprefix("blocks.0."): tensor for name, tensor in weights.items()}

    def linear(name, x):
        return F.linear(x, of[f"{name}.weight"], of[f"{name}.bias"])

    gate, up = linear("mlp.up", x).chunk(2, dim=-1)
    torch.testing.assert_close(block.mlp(x), linear("mlp.down", F.silu(gate) * up))
    q, k, v = (
        part.unflatten(-1, (-1, 8)).transpose(1, 2)
        for part in linear("attention.qkv", x).split([32, 16, 16], -1)
    )
    k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
    scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf)
    attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    found = block.attention(x, Context(rotary=None, mask=None, causal=True))
    torch.testing.assert_close(found, linear("attention.out", attended))
