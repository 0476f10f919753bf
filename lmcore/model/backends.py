"""Which kernel computes attention: torch's own choice, one by name, or flex_attention over blocks."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.attention
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lmcore.errors import ConfigError

Name = Literal["auto", "sdpa", "math", "efficient", "flash", "cudnn", "flash3", "flex", "products"]
FLASH_3 = "flash_attn_interface"  # the module that FlashAttention 3 is installed as
HOPPER = (9, 0)
SHORT = 64  # tokens, up to which products are at least as fast as torch's kernel for CPUs (decision 0018)
_KERNELS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "flash3": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class Backend:
    """How attention is computed.

    Attributes:
        name: For people.
        kernels: Those that torch may take, the first that can; empty: torch's own order.
        flex: Whether documents are kept apart by flex_attention, not by a mask of all pairs.
        products: Whether plain causal attention is computed by products of matrices.
    """

    name: str = "sdpa"
    kernels: tuple[SDPBackend, ...] = ()
    flex: bool = False
    products: bool = False

    def chosen(self) -> contextlib.AbstractContextManager[Any]:
        """Have torch take these kernels inside, on the way forward and back."""
        if not self.kernels:
            return contextlib.nullcontext()
        return sdpa_kernel(list(self.kernels), set_priority=True)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What attention has to compute.

    Attributes:
        device, dtype: Where, and of which type.
        heads, kv_heads, head_dim: Of a layer.
        seq_len: Tokens of a sequence.
        documents: Whether attention stays within documents.
        in_parts: Whether sequences are divided over processes, whose mask is always one of pairs.
        selective: Whether blocks are checkpointed selectively, which keeps what a fused kernel made.
        compiled: Whether blocks are.
    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    seq_len: int
    documents: bool = False
    in_parts: bool = False
    selective: bool = False
    compiled: bool = False

    @property
    def masked(self) -> bool:
        """Whether there is a mask besides the causal one."""
        return self.documents or self.in_parts

    @property
    def repeated(self) -> bool:
        """Whether what looks on in selective checkpoints has no rule for flex_attention."""
        return self.selective and not self.compiled

    @property
    def by_products(self) -> bool:
        """Whether products of matrices can do it."""
        fp32_on_cpu = self.device.type == "cpu" and self.dtype == torch.float32
        return fp32_on_cpu and self.heads == self.kv_heads and not self.masked and not self.selective


def choose_backend(name: Name, task: Task) -> Backend:
    """Return the backend of that name, or with ``auto`` the fastest that is there.

    Raises:
        ConfigError: it is not there, or cannot do what it has to.
    """
    if name == "auto":
        return _fastest(task)
    if name == "sdpa":
        return Backend()
    if name == "flex":
        if task.device.type != "cuda" or importlib.util.find_spec("triton") is None:
            raise _refusal(name, "a GPU and the package triton", f"{task.device.type}")
        if task.in_parts:
            raise _refusal(name, "whole sequences (train.parallel.cp 1)", "parts of them")
        if task.repeated:
            expected = "compiled blocks (train.compile), or train.activation_checkpointing none or full"
            raise _refusal(name, expected, "activation_checkpointing selective, and blocks not compiled")
        return Backend("flex", flex=True)
    if name == "products":
        if not task.by_products:
            expected = "fp32 on a CPU, as many key as query heads, no documents, parts of sequences or "
            expected += "selective checkpoints"
            found = f"{task.dtype}, {task.device.type}".removeprefix("torch.")
            found += f", {task.heads} query and {task.kv_heads} key heads"
            found += ", documents" * task.documents + ", parts" * task.in_parts
            found += ", selective checkpoints" * task.selective
            raise _refusal(name, expected, found)
        return Backend("products", products=True)
    if name == "flash3":
        _use_flash_3(task.device)
    backend = Backend(name, (_KERNELS[name],))
    _try(backend, task)
    return backend


def _fastest(task: Task) -> Backend:
    if task.device.type != "cuda":
        if task.by_products and task.seq_len <= SHORT:
            return Backend("products", products=True)
        return Backend()
    hopper = torch.cuda.get_device_capability(task.device) >= HOPPER
    order = ["cudnn", "flash"] if hopper else ["flash", "cudnn"]
    by_blocks = task.documents and not task.in_parts and not task.repeated
    if by_blocks and importlib.util.find_spec("triton") is not None:
        return Backend("flex", flex=True)
    if hopper and task.dtype != torch.float32 and not task.masked:
        with contextlib.suppress(ConfigError):
            _use_flash_3(task.device)
            order = ["flash3", "cudnn"]
    names = (*order, "efficient", "math")
    return Backend(", else ".join(names), tuple(_KERNELS[name] for name in names))


def _use_flash_3(device: torch.device) -> None:
    """Have torch's flash kernel be FlashAttention 3 (Shah et al. 2024) from here on."""
    if importlib.util.find_spec(FLASH_3) is None:
        raise _refusal("flash3", f"FlashAttention 3 (the module {FLASH_3})", "none")
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None:
        raise _refusal("flash3", "a torch that can use it (2.11 or newer)", torch.__version__)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        raise _refusal("flash3", "a GPU of compute capability 9.0 or newer", device.type)
    try:
        activate("FA3")
    except (RuntimeError, ImportError) as error:
        raise _refusal("flash3", "kernels that torch can use", str(error)) from error


def _try(backend: Backend, task: Task) -> None:
    """Do the smallest task of its kind: torch knows best what a kernel cannot."""
    length = 128
    make = functools.partial(torch.zeros, device=task.device, dtype=task.dtype, requires_grad=True)
    q = make(1, task.heads, length, task.head_dim)
    heads = task.heads if task.masked and task.device.type == "cuda" else task.kv_heads
    k, v = (make(1, heads, length, task.head_dim) for _ in range(2))
    mask = torch.ones(length, length, dtype=torch.bool, device=task.device) if task.masked else None
    try:
        with backend.chosen():
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=heads != task.heads
            ).sum().backward()
    except RuntimeError as error:
        kind = f"{task.dtype}".removeprefix("torch.") + (" with a mask" if task.masked else "")
        found = f"{' '.join(str(error).split())[:200]} ({kind} on {task.device.type})"
        raise _refusal(backend.name, "a kernel that can do this", found) from error


def _refusal(name: str, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"train.attention {name} is not to be had here",
        expected=expected,
        found=found,
        remedy="Set train.attention=auto.",
    )


# --- documents by blocks ---------------------------------------------------------------------------


def document_blocks(document_ids: Tensor) -> BlockMask:
    """Which blocks of pairs have any to attend to: causal, and within ``document_ids`` [B, T]."""

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        return (query >= key) & (document_ids[batch, query] == document_ids[batch, key])

    batch, length = document_ids.shape
    make = _compiled(create_block_mask) if document_ids.is_cuda else create_block_mask
    return make(visible, batch, None, length, length, device=document_ids.device)


def attend_by_blocks(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask) -> Tensor:
    """Attention [B, H, T, head_dim] over ``blocks``; what they leave out costs nothing (Dong et al. 2024)."""
    attend = _compiled(flex_attention) if q.is_cuda else flex_attention
    return attend(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=False)
