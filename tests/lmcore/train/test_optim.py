import pytest
import torch

from lmcore.config import ModelConfig, OptimizerConfig
from lmcore.model import linear
from lmcore.model.transformer import Transformer
from lmcore.train.optim import Muon, Optimizers, newton_schulz, parameter_groups

BASE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_seq_len": 16, "init_std": 0.1}
MODELS = {
    "llama": ModelConfig(**BASE, activation="swiglu"),
    "gpt2": ModelConfig(
        **BASE, position="learned", norm="layernorm", activation="gelu", bias=True, tie_embeddings=True
    ),
    "mixture": ModelConfig(
        **BASE, activation="swiglu", moe={"num_experts": 3, "intermediate_size": 20, "num_shared_experts": 1}
    ),
}


def make(style):
    model = Transformer(MODELS[style], 50)
    model.init_weights(0)
    return model


@pytest.mark.parametrize("style", MODELS)
@pytest.mark.parametrize("name", ["adamw", "muon", "adam", "adafactor", "sgd"])
def test_every_parameter_is_in_exactly_one_group(style, name):
    model = make(style)
    roles = ("matrix", "head")
    config = OptimizerConfig(
        name=name,
        weight_decay=0.1,
        decayed_roles=roles,
        embedding_learning_rate_ratio=3,
        head_learning_rate_ratio=2,
    )
    groups = parameter_groups(model.named_parameters(), config)
    grouped = [parameter for group in groups for parameter in group.parameters.values()]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    for group in groups:
        assert group.weight_decay == (0.1 if group.role in roles else 0)
        assert group.optimizer == (name if name != "muon" or group.role == "matrix" else "adamw")
        ratio = {"embedding": 3, "head": 2}.get(group.role, 1)
        rate = config.muon_learning_rate if group.optimizer == "muon" else config.learning_rate * ratio
        assert group.learning_rate == pytest.approx(rate)
        if group.role == "matrix":
            assert all(name.startswith("blocks.") and p.ndim >= 2 for name, p in group.parameters.items())


@pytest.mark.parametrize("style", MODELS)
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-6}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "nesterov": True}),
        ("adafactor", torch.optim.Adafactor, {}),
    ],
)
def test_each_is_the_one_of_torch_begun_anew_or_gone_on_with(style, name, kind, options):
    ours, torchs = make(style), make(style)
    config = OptimizerConfig(
        name=name, learning_rate=0.01, weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-6, sgd_momentum=0.7
    )
    named = dict(torchs.named_parameters())
    decayed = [p for n, p in named.items() if p.ndim > 1 and "router" not in n]
    others = [p for n, p in named.items() if p.ndim < 2 or "router" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    reference = kind(groups, lr=0.01, **options)
    generator = torch.Generator().manual_seed(0)
    optimizers = Optimizers(ours.named_parameters(), config, torch.float32)
    optimizers.state()  # what a run that is resumed loads into, before the first step
    for _ in range(3):
        for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        optimizers.step(1.0)
        reference.step()
        # As if loaded from a checkpoint.
        kept = {key: value.clone() for key, value in optimizers.state().items()}
        optimizers = Optimizers(ours.named_parameters(), config, torch.float32)
        for key, value in optimizers.state().items():
            value.copy_(kept[key])
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_our_muon_is_the_one_of_torch():
    ours, torchs = make("llama"), make("llama")
    config = OptimizerConfig(muon_learning_rate=0.02, muon_momentum=0.9, weight_decay=0.1)
    optimizers = Optimizers(ours.named_parameters(), config, torch.bfloat16)
    names = [name for name, p in torchs.blocks.named_parameters() if p.ndim == 2]
    matrices = dict(torchs.blocks.named_parameters())
    reference = torch.optim.Muon([matrices[name] for name in names], lr=0.02, momentum=0.9, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=generator)
        optimizers.step(1.0)
        reference.step()
    moved = dict(ours.blocks.named_parameters())
    start = dict(make("llama").blocks.named_parameters())
    for name in names:
        difference = (moved[name] - matrices[name]).norm() / (matrices[name] - start[name]).norm()
        assert difference < 0.05, name  # both compute in bf16, in another order


def test_muon_moves_each_expert_as_a_matrix_of_its_own():
    stacked = make("mixture")
    single = {
        f"{name}.{e}": torch.nn.Parameter(p[e].detach().clone())
        for name, p in stacked.named_parameters()
        if p.ndim == 3
        for e in range(3)
    }
    config = OptimizerConfig(muon_learning_rate=0.02, weight_decay=0.1)
    optimizers = Optimizers(stacked.named_parameters(), config, torch.float32)
    groups = [{"params": list(single.values()), "lr": 0.02, "weight_decay": 0.1}]
    reference = Muon(groups, config.muon_momentum, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for name, p in stacked.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            for e in range(3 if p.ndim == 3 else 0):
                p.grad[e] *= e  # one without any
                single[f"{name}.{e}"].grad = p.grad[e].clone()
        optimizers.step(1.0)
        reference.step()
    parameters = dict(stacked.named_parameters())
    for name, matrix in single.items():
        stack, _, e = name.rpartition(".")
        torch.testing.assert_close(parameters[stack][int(e)], matrix, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("chunk", [1, 3_000])
def test_how_many_matrices_are_moved_at_a_time_does_not_matter(monkeypatch, chunk):
    moved = []
    for size in (1 << 26, chunk):
        monkeypatch.setattr("lmcore.train.optim.CHUNK_ELEMENTS", size)
        model = make("llama")
        optimizers = Optimizers(model.named_parameters(), OptimizerConfig(name="muon"), torch.float32)
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizers.step(1.0)
        moved.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, other in zip(*moved, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_newton_schulz_keeps_directions_and_evens_out_their_sizes(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u @ torch.diag(s.clamp(min=0.1)) @ v
    pushed = u.mT @ newton_schulz(matrix) @ v.mT
    sizes = pushed.diagonal()
    assert sizes.min() > 0.5
    assert sizes.max() < 1.4
    torch.testing.assert_close(pushed, torch.diag(sizes), atol=1e-3, rtol=0)


# Torch for macOS comes without it.
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("shape", [(200, 200), (200, 640), (640, 200), (3, 200, 256)])
def test_newton_schulz_is_the_same_by_onednn(monkeypatch, shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found, calls = [], []
    for onednn in (False, True):
        monkeypatch.setattr(linear, "onednn_is_faster", lambda onednn=onednn: onednn)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            found.append(newton_schulz(matrix))
        calls.append(any(event.name == "mkldnn::_linear_pointwise" for event in profiled.events()))
    assert calls == [False, len(shape) == 2]
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)
