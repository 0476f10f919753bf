import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from lmcore.config import ModelConfig
from lmcore.model.attention import KVCache
from lmcore.model.grouped import grouped_linear
from lmcore.model.io import load_model, save_model
from lmcore.model.mlp import MLP
from lmcore.model.moe import MoE, routers, set_auxiliary_scale, update_expert_bias
from lmcore.model.transformer import Transformer

BASE = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "max_seq_len": 32,
    "zero_init_projections": False,
    "init_std": 0.2,
}
VOCAB = 40


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for one another on a busy machine take far longer than such small products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(activation="swiglu", **moe):
    moe = {"num_experts": 6, "intermediate_size": 24, **moe}
    return ModelConfig(**BASE, activation=activation, intermediate_size=24, moe=moe)


def make(config, seed=0):
    model = Transformer(config, VOCAB)
    model.init_weights(seed)
    return model.eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_by_one(moe, x):
    """What a mixture is meant to compute, token by token."""
    choice, settings = moe.router(x), moe.moe
    logits = x @ moe.router.weight.T
    scores = logits.sigmoid() if settings.score == "sigmoid" else logits.softmax(-1)
    result = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            ranked = scores[b, t] if moe.router.expert_bias is None else scores[b, t] + moe.router.expert_bias
            chosen = sorted(range(settings.num_experts), key=lambda e: -ranked[e].item())
            chosen = chosen[: settings.num_experts_per_token]
            assert set(chosen) == set(choice.experts[b, t].tolist())
            total = scores[b, t, chosen].sum() if settings.normalize_top_k else 1.0
            for e in chosen:
                gate, up = (moe.experts.up[e] @ x[b, t]).view(-1, 2, moe.experts.block).unbind(1)
                out = moe.experts.down[e] @ (F.silu(gate) * up).flatten()
                result[b, t] += scores[b, t, e] / total * out
    return result + (moe.shared(x) if moe.shared else 0)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "moe",
    [
        {"num_experts_per_token": 1, "balance": "none", "normalize_top_k": False},
        {"num_experts_per_token": 2, "balance": "bias"},
        {"num_experts_per_token": 3, "balance": "auxiliary", "num_shared_experts": 2},
        {"num_experts_per_token": 6, "balance": "none", "normalize_top_k": False},
    ],
)
def test_each_token_visits_its_highest_experts_and_no_other(score, moe):
    moe = make(config_of(score=score, **moe)).blocks[1].mlp
    if moe.router.expert_bias is not None:
        moe.router.expert_bias.copy_(torch.linspace(-0.3, 0.3, 6))
    x = torch.randn(2, 9, 16, generator=generator(), requires_grad=True)
    found, expected = moe(x), one_by_one(moe, x)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(2, 9, 16, generator=generator(1))
    weights = [x, *moe.parameters()]
    gradients = [torch.autograd.grad((y * direction).sum(), weights) for y in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("activation", ["swiglu", "relu2", "gelu", "gelu_erf"])
def test_equal_experts_are_one_mlp(activation):
    config = config_of(activation, num_experts_per_token=3)
    moe, mlp = make(config).blocks[0].mlp, MLP(config)
    with torch.no_grad():
        moe.experts.up.copy_(mlp.up.weight.expand_as(moe.experts.up))
        moe.experts.down.copy_(mlp.down.weight.expand_as(moe.experts.down))
        x = torch.randn(2, 7, 16, generator=generator())
        torch.testing.assert_close(moe(x), mlp(x))


def test_logits_depend_on_no_later_token_and_on_no_other_sequence():
    model = make(config_of())
    tokens = torch.randint(0, VOCAB, (3, 12), generator=generator())
    embedded = model.embedding(tokens).detach().requires_grad_()
    model.embedding.forward = lambda _: embedded
    for place in (0, 5, 11):
        (gradient,) = torch.autograd.grad(model(tokens)[1, place].square().sum(), embedded)
        seen = gradient.abs().sum(-1) > 0
        assert seen[1, : place + 1].all()
        assert not seen[1, place + 1 :].any()
        assert not seen[[0, 2]].any()


def test_what_pads_a_row_changes_nothing_before_it_and_no_token_is_dropped():
    model = make(config_of(num_experts_per_token=1, normalize_top_k=False))
    tokens = torch.randint(1, VOCAB, (1, 9), generator=generator())
    padded = torch.cat([F.pad(tokens, (0, 23)), torch.zeros(5, 32, dtype=torch.long)])
    with torch.no_grad():
        # The pads, all alike, crowd into a few experts.
        torch.testing.assert_close(model(padded)[:1, :9], model(tokens), atol=1e-5, rtol=1e-4)


def test_decoding_with_a_cache_equals_the_full_forward_pass():
    config = config_of(num_shared_experts=1)
    model, tokens = make(config), torch.randint(0, VOCAB, (2, 10), generator=generator())
    cache = KVCache(config, 2, 10)
    with torch.no_grad():
        parts = [model(tokens[:, :6], cache=cache)]
        parts += [model(tokens[:, i : i + 1], cache=cache) for i in range(6, 10)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=2e-5, rtol=1e-4)


def test_a_saved_mixture_computes_the_same(tmp_path):
    config = config_of()
    model, tokens = make(config), torch.arange(32)[None]
    for router in routers(model):
        router.expert_bias.copy_(torch.randn(6, generator=generator()))
    save_model(tmp_path, model, config, VOCAB)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))
    loaded.train()(tokens)
    assert update_expert_bias(loaded, lambda counts: counts) >= 1
    small = load_model(tmp_path, dtype=torch.bfloat16)
    assert small(tokens).dtype == torch.bfloat16
    for router, original in zip(routers(small), routers(model), strict=True):
        assert torch.equal(router.expert_bias, original.expert_bias)


@pytest.mark.parametrize("counts", [[4, 0, 7, 0], [0, 0, 0, 0], [0, 11, 0, 0]])
def test_groups_without_rows(counts):
    x = torch.randn(sum(counts), 5, generator=generator(), requires_grad=True)
    weight = torch.randn(4, 3, 5, generator=generator(), requires_grad=True)
    found = grouped_linear(x, weight, torch.tensor(counts))
    expected = torch.cat([rows @ w.T for rows, w in zip(x.split(counts), weight, strict=True)])
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        *(torch.autograd.grad(y.square().sum(), (x, weight)) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_which_blocks_have_experts():
    base = {**BASE, "num_layers": 6}
    for moe, expected in (
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"num_dense_layers": 3}, [3, 4, 5]),
        ({"layer_interval": 2}, [1, 3, 5]),
    ):
        model = Transformer(ModelConfig(**base, moe={"num_experts": 2, **moe}), VOCAB)
        assert [i for i, block in enumerate(model.blocks) if isinstance(block.mlp, MoE)] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"moe": {"num_experts": 4, "num_experts_per_token": 5}}, "at most 4"),
        ({"moe": {"num_experts": 4, "num_experts_per_token": 1}}, "normalize_top_k: false"),
        ({"moe": {"num_experts": 4}, "bias": True}, "bias: false"),
        ({"moe": {"num_experts": 4, "num_dense_layers": 2}}, "none of the 2 layers"),
        ({"moe": {"num_experts": 4, "layer_interval": 3}}, "none of the 2 layers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{**BASE, **settings})


def test_flops_count_the_experts_that_a_token_visits():
    config = config_of(num_experts_per_token=2, num_shared_experts=1)
    dense = config.model_copy(update={"moe": config.moe.model_copy(update={"num_experts": 0})})
    more = Transformer(config, VOCAB).flops_per_token(8) - Transformer(dense, VOCAB).flops_per_token(8)
    # Three matrices of 16 x 24 for each visit; the plain MLP has one of three; a row of the router each.
    assert more == 6 * 2 * (2 * 3 * 16 * 24 + 6 * 16)


def test_the_auxiliary_loss_is_the_one_that_is_meant_and_adds_up_over_micro_batches():
    weight, tokens = 0.5, torch.randint(0, VOCAB, (4, 8), generator=generator())
    gradients = []
    for parts in (1, 4):
        model = make(config_of(balance="auxiliary", auxiliary_loss_weight=weight)).train()
        set_auxiliary_scale(model, 1 / tokens.numel())
        for part in tokens.chunk(parts):
            (model(part).sum() * 0).backward()  # no other loss
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model = make(config_of(balance="none"))
    choices = []
    for router in routers(model):
        router.register_forward_hook(lambda module, args, choice: choices.append(choice))
    model(tokens)
    loss = torch.zeros(())
    for choice in choices:  # equations 17 to 20 of DeepSeek-V3, as they are written
        for experts, probabilities in zip(choice.experts, choice.probabilities, strict=True):
            for e in range(6):
                frequency = 6 / (2 * 8) * (experts == e).sum()
                loss = loss + weight / 4 * frequency * probabilities[:, e].mean()
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    expected |= {name: g for name, g in zip(names, found, strict=True) if g is not None}
    for name, gradient in expected.items():
        for mine in gradients:
            torch.testing.assert_close(mine[name], gradient, atol=1e-7, rtol=1e-4, msg=name)
    assert gradients[0]["blocks.0.mlp.router.weight"].any()


def test_only_shares_of_counts_move_the_bias():
    model, tokens = make(config_of()).train(), torch.randint(0, VOCAB, (2, 16), generator=generator())
    biases = []
    for times in (1, 2):
        for _ in range(times):  # twice, as where blocks are computed again in the backward pass
            model(tokens)
        counts = [router.counts.clone() for router in routers(model)]
        imbalance = update_expert_bias(model, lambda counts: counts)
        biases.append([router.expert_bias.clone() for router in routers(model)])
        for router, before in zip(routers(model), counts, strict=True):
            assert before.sum() == times * 2 * 16 * 2
            mean = before.double().mean()
            assert torch.equal(router.expert_bias, 1e-3 * (mean - before).sign().float())
            assert not router.counts.any()
            router.expert_bias.zero_()
        assert imbalance == pytest.approx(max((c.max() / c.double().mean()).item() for c in counts))
    assert all(torch.equal(a, b) for a, b in zip(*biases, strict=True))
    model.eval()(tokens)
    assert not any(router.counts.any() for router in routers(model))


def learn(balance, seed):
    """Train a mixture on pairs of tokens; the losses and the imbalance of each step."""
    shape = {"num_experts": 8, "num_experts_per_token": 1, "normalize_top_k": False}
    rates = {"bias_update_rate": 0.02, "auxiliary_loss_weight": 0.1}
    model = make(config_of(**shape, **rates, balance=balance), seed).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    draws, losses, loads = generator(seed), [], []
    for _ in range(80):
        tokens = torch.randint(0, VOCAB, (16, 25), generator=draws)
        tokens[:, 1::2] = (3 * tokens[:, :-1:2] + 1) % VOCAB  # every other one follows from the one before
        set_auxiliary_scale(model, 1 / (16 * 24))
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        loads.append(update_expert_bias(model, lambda counts: counts))
    return losses, loads


def test_a_mixture_learns_and_its_load_is_evened_out():
    def mean(values):
        return sum(values) / len(values)

    trained = {balance: learn(balance, seed=3) for balance in ("none", "bias", "auxiliary")}
    for losses, _ in trained.values():
        # Half of the tokens follow from the one before, half from nothing: log(40) / 2 = 1.84 at best.
        assert losses[0] > 3.7
        assert mean(losses[-10:]) < 2.75
    last = {balance: mean(loads[-10:]) for balance, (_, loads) in trained.items()}
    for balance in ("bias", "auxiliary"):
        assert last[balance] < mean(trained[balance][1][:10]) - 0.1
        assert last[balance] < last["none"] - 0.1
