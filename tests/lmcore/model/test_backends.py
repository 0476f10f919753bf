from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lmcore.config import ModelConfig
from lmcore.errors import ConfigError
from lmcore.model import linear
from lmcore.model.attention import Attention, Context, attention_mask
from lmcore.model.backends import Backend, Task, attend_by_blocks, choose_backend, document_blocks
from lmcore.model.products import _Attention, attend_by_products
from lmcore.model.transformer import Transformer
from lmcore.parallel.stage import Stage

CPU = torch.device("cpu")
TASK = Task(device=CPU, dtype=torch.float32, heads=4, kv_heads=2, head_dim=8, seq_len=200)
MASKED = replace(TASK, documents=True)
DOCUMENTS = torch.tensor([[1] * 70 + [2] * 130, [1] * 199 + [2]])


def queries_keys_values():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, 200, 8, generator=generator) for heads in (4, 2, 2)]


@pytest.mark.parametrize("name", ["math", "flash"])
@pytest.mark.parametrize("task", [TASK, MASKED])
def test_backends_agree(name, task):
    mask = attention_mask(200, 0, DOCUMENTS, CPU) if task.masked else None
    found = []
    for backend in (Backend(), choose_backend(name, task)):
        leaves = [x.requires_grad_() for x in queries_keys_values()]
        with backend.chosen():
            y = F.scaled_dot_product_attention(*leaves, mask, is_causal=mask is None, enable_gqa=True)
            y.square().sum().backward()
        found.append([y, *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_documents_by_blocks_are_those_of_the_mask():
    q, k, v = queries_keys_values()
    expected = F.scaled_dot_product_attention(
        q, k, v, attention_mask(200, 0, DOCUMENTS, CPU), enable_gqa=True
    )
    torch.testing.assert_close(attend_by_blocks(q, k, v, document_blocks(DOCUMENTS)), expected)


@torch.no_grad()
def test_a_stage_with_blocks_is_one_with_a_mask():
    config = ModelConfig(hidden_size=32, num_heads=4, num_kv_heads=2, max_seq_len=200)
    found = []
    for backend in (Backend(), Backend("flex", flex=True)):
        model = Transformer(config, 50)
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        stage = Stage(model, range(config.num_layers), attention=backend)
        tokens = torch.randint(0, 50, (2, 200), generator=torch.Generator().manual_seed(1))
        found.append(stage(tokens, None, DOCUMENTS))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_a_cpu_is_left_to_torch_but_for_short_sequences():
    assert choose_backend("auto", MASKED) == Backend()
    assert choose_backend("sdpa", TASK) == Backend()
    short = replace(TASK, kv_heads=4, seq_len=64)
    assert choose_backend("auto", short).products
    for other in (
        replace(short, seq_len=65),
        replace(short, kv_heads=2),
        replace(short, dtype=torch.bfloat16),
        replace(short, documents=True),
        replace(short, in_parts=True),
        replace(short, selective=True),
    ):
        assert choose_backend("auto", other) == Backend()


@pytest.mark.parametrize("length", [1, 2, 64, 130])
def test_products_attend_as_torch_does(length):
    generator = torch.Generator().manual_seed(0)
    # As a block makes them: heads side by side in memory.
    whole = torch.randn(2, length, 4, 3, 8, generator=generator)
    above = torch.randn(2, length, 4 * 8, generator=generator)

    def fused(*parts: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts), is_causal=True)
        return y.transpose(1, 2).flatten(2)

    found = []
    for attend in (attend_by_products, fused):
        leaf = whole.clone().requires_grad_()
        y = attend(*leaf.unbind(3))
        y.backward(above)
        found.append((y, leaf.grad))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


BY_PRODUCTS = Context(None, None, causal=True, products=True)


def bare_attention(*, bias=False):
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=160, num_heads=4, position="learned", qk_norm=False, bias=bias)
    return Attention(config, 0), torch.randn(3, 50, 160, requires_grad=True)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_one_operation_is_as_several(monkeypatch, turned, bias, onednn):
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: onednn and torch.backends.mkldnn.is_available())
    attention, x = bare_attention(bias=bias)
    above = torch.randn(50, 3, 160).transpose(0, 1) if turned else torch.randn(3, 50, 160)
    found = []
    for merged in (True, False):
        attention.merged = merged
        result = attention(x, BY_PRODUCTS)
        assert (type(result.grad_fn).__name__ == "_AttentionBackward") == merged
        result.backward(above)
        found.append([result.detach(), *(p.grad for p in (x, *attention.parameters()))])
        for p in (x, *attention.parameters()):
            p.grad = None
    for one, several in zip(*found, strict=True):
        torch.testing.assert_close(one, several, rtol=0, atol=0)  # bit by bit


@pytest.mark.parametrize("without", ["input", "qkv.weight", "qkv.bias", "out.weight", "out.bias"])
def test_gradients_of_attention_that_nobody_needs_are_not_computed(without):
    attention, x = bare_attention(bias=True)
    for name, tensor in (("input", x), *attention.named_parameters()):
        tensor.requires_grad_(name != without)
    attention(x, BY_PRODUCTS).sum().backward()
    for name, tensor in (("input", x), *attention.named_parameters()):
        assert (tensor.grad is None) == (name == without), name


@pytest.mark.parametrize("settings", [{"qk_norm": True}, {"position": "rope"}])
def test_attention_with_norms_or_rotations_is_several_operations(monkeypatch, settings):
    monkeypatch.setattr(_Attention, "apply", lambda *arguments: pytest.fail("taken"))
    config = ModelConfig(hidden_size=32, num_heads=4, **{"position": "learned", "qk_norm": False} | settings)
    rotary = torch.ones(8, 1, 4, 2) if config.position == "rope" else None
    context = replace(BY_PRODUCTS, rotary=rotary)
    assert Attention(config, 0)(torch.randn(2, 8, 32), context).shape == (2, 8, 32)
    bare, x = bare_attention()
    with torch.no_grad():
        bare(x, BY_PRODUCTS)
    with torch.autocast("cpu", torch.bfloat16):
        result = bare(x, BY_PRODUCTS)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize("shape", [(0, 50, 160), (3, 0, 160)])
def test_attention_over_nothing_is_nothing(shape):
    attention, _ = bare_attention()
    x = torch.empty(shape, requires_grad=True)
    attention(x, BY_PRODUCTS).sum().backward()
    assert x.grad.shape == shape
    assert not attention.qkv.weight.grad.any()


def test_a_stage_attends_by_products_where_there_are_no_documents():
    config = ModelConfig(hidden_size=32, num_heads=4, max_seq_len=64, zero_init_projections=False)
    model = Transformer(config, 50)
    model.init_weights(0)
    tokens = torch.randint(0, 50, (2, 64), generator=torch.Generator().manual_seed(1))
    for documents in (None, torch.arange(64).expand(2, 64) // 20):
        found = []
        for backend in (Backend(), Backend("products", products=True)):
            stage = Stage(model, range(config.num_layers), attention=backend)
            with Names() as names:
                found.append(stage(tokens, None, documents))
            fused = any(name.startswith("aten._scaled_dot_product") for name in names.seen)
            assert fused == (not backend.products or documents is not None)
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


class Names(TorchDispatchMode):
    """Keeps the names of what is done."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


def test_blocks_are_for_checkpoints_that_are_full_or_compiled(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "triton" or None)
    task = replace(MASKED, device=torch.device("cuda"))
    assert choose_backend("auto", task).flex
    assert choose_backend("flex", task).flex
    repeated = replace(task, selective=True)
    assert not choose_backend("auto", repeated).flex
    assert choose_backend("auto", replace(repeated, compiled=True)).flex
    with pytest.raises(ConfigError, match=r"flex .*activation_checkpointing.*train\.attention=auto"):
        choose_backend("flex", repeated)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cudnn", "kernel"),
        ("efficient", "kernel"),
        ("flash3", "FlashAttention 3"),
        ("flex", "GPU"),
        ("products", "as many key as query heads"),
    ],
)
def test_what_is_not_there_is_refused(name, found):
    with pytest.raises(ConfigError, match=rf"train\.attention {name} .*{found}.*train\.attention=auto"):
        choose_backend(name, TASK)
