import pytest
import torch

from lmcore.config import ModelConfig, TrainConfig
from lmcore.errors import ConfigError
from lmcore.model.transformer import Transformer, initial_weight
from lmcore.parallel.apply import wrap
from lmcore.parallel.compile import check_cuda_graphs, choose_compile
from lmcore.parallel.mesh import World, make_layout
from lmcore.parallel.stage import Stage

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LONG = {"steps": 1_000}


def make(config, *, compiled, checkpointing):
    with torch.device("meta"):
        stage = Stage(Transformer(config, 50), range(config.num_layers))
    layout = make_layout(TrainConfig(parallel={"dp_replicate": 1}).parallel, World(0, 1, CPU))
    return wrap(
        stage,
        layout,
        "fp32",
        lambda name, shape: initial_weight(name, shape, config, 0) + (0.02 if shape.numel() > 64 else 0),
        checkpointing=checkpointing,
        compiled=compiled,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_compiled_blocks_compute_the_same_under_the_same_names(checkpointing):
    config = ModelConfig(
        num_layers=3, hidden_size=16, num_heads=2, max_seq_len=16, zero_init_projections=False
    )
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(16) // 6).expand(2, 16)
    found = []
    for compiled in (False, True):
        model = make(config, compiled=compiled, checkpointing=checkpointing)
        logits = model(tokens, None, documents)
        logits.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        found.append({"logits": logits.detach(), **gradients})
    assert list(found[0]) == list(found[1])
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_blocks_that_are_alike_share_a_graph_with_dropout_too(monkeypatch, checkpointing):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        "lmcore.parallel.apply.compile_block",
        lambda forward, **_: torch.compile(forward, dynamic=False, backend=count),
    )
    torch._dynamo.reset()
    config = ModelConfig(num_layers=3, hidden_size=16, num_heads=2, max_seq_len=16, dropout=0.1)
    tokens, found = torch.zeros(2, 16, dtype=torch.int64), []
    for compiled in (False, True):
        model = make(config, compiled=compiled, checkpointing=checkpointing)
        assert not any("dropout" in name for name in model.state_dict())
        found.append(model(tokens, None, None, torch.arange(2)))
    torch.testing.assert_close(*found)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("model", "train", "device", "reason"),
    [
        ({}, LONG, CPU, "CPU"),
        ({"moe": {"num_experts": 4}}, LONG, CUDA, "experts"),
        ({}, {**LONG, "parallel": {"dp_replicate": 1, "tp": 2}}, CUDA, "tp"),
        ({}, {"steps": 30}, CUDA, "too few"),
        ({}, {**LONG, "compile": "off"}, CUDA, "asked"),
    ],
)
def test_it_is_left_where_it_does_not_pay(model, train, device, reason):
    chosen, why = choose_compile(ModelConfig(**model), TrainConfig(**train), device)
    assert not chosen
    assert reason in why


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    train = TrainConfig(compile="blocks")
    with pytest.raises(ConfigError, match=r"g\+\+ or clang\+\+.*train\.compile=off"):
        choose_compile(ModelConfig(), train, CPU)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(ConfigError, match="my-compiler"):
        choose_compile(ModelConfig(), train, CPU)


@pytest.mark.parametrize(
    ("model", "train", "device", "found"),
    [
        ({}, {}, CPU, "device cpu"),
        ({}, {"parallel": {"pp": 2, "dp_replicate": 1}}, CUDA, "train.parallel.pp 2"),
        ({}, {"parallel": {"dp_shard": 2, "dp_replicate": 1}}, CUDA, "sharded"),
        ({"moe": {"num_experts": 4}}, {}, CUDA, "experts"),
        ({}, {"activation_checkpointing": "full"}, CUDA, "activation_checkpointing"),
    ],
)
def test_graphs_are_refused_where_something_changes(model, train, device, found):
    train = TrainConfig(cuda_graphs=True, **train)
    with pytest.raises(ConfigError, match=found):
        check_cuda_graphs(ModelConfig(**model), train, device, True)
    check_cuda_graphs(ModelConfig(), TrainConfig(cuda_graphs=True, parallel={"dp_replicate": 1}), CUDA, True)
    with pytest.raises(ConfigError, match="not compiled"):
        check_cuda_graphs(ModelConfig(), TrainConfig(cuda_graphs=True), CUDA, False)
