import math

import pytest
import torch

from lmcore.config import ModelConfig
from lmcore.errors import ConfigError
from lmcore.model.attention import KVCache
from lmcore.model.transformer import Transformer, parameter_role

LLAMA = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    max_seq_len=32,
    activation="swiglu",
    zero_init_projections=False,
    init_std=0.2,
)
RELU2 = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    max_seq_len=32,
    activation="relu2",
    zero_init_projections=False,
    init_std=0.2,
)
GPT2 = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    max_seq_len=32,
    position="learned",
    norm="layernorm",
    activation="gelu",
    qk_norm=False,
    bias=True,
    tie_embeddings=True,
    zero_init_projections=False,
    init_std=0.2,
)
VOCAB = 50
styles = pytest.mark.parametrize("config", [LLAMA, RELU2, GPT2], ids=["llama", "relu2", "gpt2"])


def make(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config, VOCAB)
    model.init_weights(seed)
    return model.eval()


def tokens_of(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@styles
def test_logits_depend_on_no_later_token(config):
    model = make(config)
    embedded = model.embedding(tokens_of(1, 12)).detach().requires_grad_()
    model.embedding.forward = lambda _: embedded
    for place in (0, 5, 11):
        (gradient,) = torch.autograd.grad(model(tokens_of(1, 12))[0, place].square().sum(), embedded)
        seen = gradient[0].abs().sum(-1) > 0
        assert seen[: place + 1].all()
        assert not seen[place + 1 :].any()


@styles
def test_decoding_with_a_cache_equals_the_full_forward_pass(config):
    model, tokens = make(config), tokens_of(3, 20)
    with torch.no_grad():
        full = model(tokens)
        cache = KVCache(config, 3, 20)
        # The first part at once, then two together, then one by one.
        parts = [model(tokens[:, a:b], cache=cache) for a, b in [(0, 9), (9, 11)]]
        parts += [model(tokens[:, i : i + 1], cache=cache) for i in range(11, 20)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="full"):
        model(tokens[:, :1], cache=cache)


@styles
def test_a_document_does_not_see_its_neighbours(config):
    model = make(config)
    documents = torch.tensor([[0] * 7 + [1] * 8 + [2] * 5])
    positions = torch.tensor([[*range(7), *range(8), *range(5)]])
    tokens = tokens_of(1, 20)
    changed = tokens.clone()
    changed[:, :7] = (changed[:, :7] + 1) % VOCAB
    with torch.no_grad():
        before, after = (model(t, positions, documents) for t in (tokens, changed))
        alone = model(tokens[:, 7:15])
    assert not torch.equal(before[:, :7], after[:, :7])
    assert torch.equal(before[:, 7:], after[:, 7:])
    torch.testing.assert_close(before[:, 7:15], alone, atol=2e-5, rtol=1e-4)


@styles
def test_one_document_equals_no_document_mask(config):
    model, tokens = make(config), tokens_of(2, 16)
    positions = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        masked = model(tokens, positions, torch.zeros(2, 16, dtype=torch.long))
        torch.testing.assert_close(masked, model(tokens), atol=2e-5, rtol=1e-4)


def test_rotary_attention_depends_on_distance_alone():
    model, tokens = make(LLAMA), tokens_of(1, 10)
    with torch.no_grad():
        shifted = model(tokens, torch.arange(10)[None] + 17)
        torch.testing.assert_close(shifted, model(tokens), atol=1e-4, rtol=1e-4)


@styles
def test_initial_weights_are_a_function_of_seed_and_name(config):
    first, again, other = make(config, 1), make(config, 1), make(config, 2)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if parameter_role(name) not in ("norm", "bias"):
            assert not torch.equal(a, c), name
    torch.manual_seed(123)  # the global generator has no say
    assert torch.equal(make(config, 1).embedding.weight, first.embedding.weight)


def test_scale_of_initial_weights():
    config = LLAMA.model_copy(update={"hidden_size": 256, "init_std": 0.02})
    model = make(config)
    block = model.blocks[0]
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(4), rel=0.05)
    zeroed = make(config.model_copy(update={"zero_init_projections": True, "tie_embeddings": False}))
    assert not zeroed.blocks[0].mlp.down.weight.any()
    assert not zeroed.blocks[0].attention.out.weight.any()
    assert not zeroed.head.weight.any()


def test_roles_and_counts():
    model = make(GPT2)
    roles = {name: parameter_role(name) for name, _ in model.named_parameters()}
    assert roles["embedding.weight"] == roles["position_embedding.weight"] == "embedding"
    assert roles["blocks.0.attention.qkv.weight"] == roles["blocks.1.mlp.down.weight"] == "matrix"
    assert roles["blocks.0.attention_norm.weight"] == "norm"
    assert roles["blocks.0.attention.qkv.bias"] == roles["norm.bias"] == "bias"
    assert "head.weight" not in roles
    assert parameter_role("head.weight") == "head"
    # 2 blocks of 12 D^2 and the head; attention 12 L D T.
    assert model.flops_per_token(16) == 6 * (2 * 12 * 32 * 32 + VOCAB * 32) + 12 * 2 * 32 * 16
    assert model.num_parameters == sum(p.numel() for p in model.parameters())


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(ConfigError, match="max_seq_len"):
        make(LLAMA)(tokens_of(1, 33))
