"""What a step on a CPU is made of, each choice of ours beside torch's own, in turn; medians (decision 0018).

python tests/benchmarks/cpu_kernels.py [--threads 2] [--rounds 60]

Linear layers by oneDNN beside MKL (whether ``lmcore.model.linear`` takes oneDNN here is printed first; the
gradient by weight it leaves to MKL), attention of short sequences by products beside torch's kernel, and GELU
beside torch's two; an MLP and attention as one operation to autograd beside the same as several. The numbers
are microseconds by the clock, of work that is in the caches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from training.measuring import alternate, machine, say

from lmcore.config import ModelConfig
from lmcore.model.attention import Attention, Context
from lmcore.model.linear import _onednn, onednn_is_faster
from lmcore.model.mlp import MLP, activate
from lmcore.model.products import attend_by_products
from lmcore.parallel.mesh import keep_freed_memory

LINEAR = ((768, 128, 384), (768, 128, 512), (768, 512, 128), (3072, 384, 1536), (3072, 1536, 384))
ATTENTION = ((12, 4, 64, 32), (8, 3, 128, 64), (4, 4, 256, 64))
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    say(f"torch {torch.__version__}, {options.threads} threads, {machine()}; oneDNN: {onednn_is_faster()}")
    for shape in LINEAR:
        linear(*shape, options.rounds)
    for shape in ATTENTION:
        attention(*shape, options.rounds)
    gelu(768, 512, options.rounds)
    for activation in ("relu2", "gelu", "gelu_erf", "swiglu"):
        config = ModelConfig(hidden_size=128, num_heads=4, activation=activation)
        merged(f"MLP, {activation}", MLP(config), options.rounds)
    config = ModelConfig(hidden_size=128, num_heads=4, position="learned", qk_norm=False)
    context = Context(None, None, causal=True, products=True)
    merged("attention", Attention(config, 0), options.rounds, context)


def compare(what: str, rounds: int, ours: tuple[str, Work], theirs: tuple[str, Work]) -> None:
    """Print the medians of both, and their ratio."""
    alternate(3, 1, ours[1], theirs[1])  # kernels are made
    mine, other = (times.seconds * 1e6 for times in alternate(rounds, 1, ours[1], theirs[1]))
    say(f"  {what:<46} {ours[0]} {mine:8.0f}   {theirs[0]} {other:8.0f}   {mine / other:.2f}")


def linear(rows: int, inputs: int, outputs: int, rounds: int) -> None:
    """Three products of a layer, by oneDNN and by MKL."""
    x, weight, above = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    name = f"[{rows}, {inputs}] by {outputs}"
    products = {
        "forward": (lambda: _onednn(x, weight), lambda: x @ weight.t()),
        "by input": (lambda: _onednn(above, weight.t()), lambda: above @ weight),
        "by weight": (lambda: _onednn(above.t(), x.t()), lambda: above.t() @ x),
    }
    for part, (onednn, mkl) in products.items():
        compare(f"{name}, {part}", rounds, ("oneDNN", onednn), ("MKL", mkl))


def attention(batch: int, heads: int, length: int, size: int, rounds: int) -> None:
    """Forward and back."""
    leaves = [torch.randn(batch, length, heads, size, requires_grad=True) for _ in range(3)]
    above = torch.randn(batch, length, heads * size)

    def through(attend: Callable[..., Tensor]) -> Work:
        return lambda: torch.autograd.grad(attend(*leaves), leaves, above)

    def by_torch(*parts: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts), is_causal=True)
        return y.transpose(1, 2).flatten(2)

    name = f"attention [{batch}, {heads}, {length}, {size}]"
    compare(name, rounds, ("products", through(attend_by_products)), ("torch", through(by_torch)))


def gelu(rows: int, size: int, rounds: int) -> None:
    """Forward and back."""
    x, above = torch.randn(rows, size, requires_grad=True), torch.randn(rows, size)

    def through(function: Callable[[Tensor], Tensor]) -> Work:
        return lambda: torch.autograd.grad(function(x), x, above)

    ours = ("ours", through(lambda x: activate(x, "gelu", 1)))
    compare(f"GELU by tanh [{rows}, {size}]", rounds, ours, ("torch", through(_by_tanh)))
    compare(f"GELU by tanh beside erf's [{rows}, {size}]", rounds, ours, ("erf", through(F.gelu)))


def merged(name: str, module: MLP | Attention, rounds: int, *context: Context) -> None:
    """Forward and back of 12 windows of 64 tokens, as one operation and as several."""
    x, above = torch.randn(12, 64, 128, requires_grad=True), torch.randn(12, 64, 128)
    leaves = [x, *module.parameters()]

    def through(*, merged: bool) -> Work:
        def work() -> object:
            module.merged = merged
            return torch.autograd.grad(module(x, *context), leaves, above)

        return work

    one, several = through(merged=True), through(merged=False)
    compare(f"{name} [12, 64, 128]", rounds, ("one", one), ("several", several))


def _by_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


if __name__ == "__main__":
    main()
