"""How much memory tensors take while something is computed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmcore.parallel.parts import local


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside of it on a device, by what they are views of.

    What is made and gone within one operation is not seen, such as the buffers of a kernel.

    Args:
        device: Of which kind.
        before: Tensors that are there already, counted from the start.

    Attributes:
        now: Bytes there at this moment.
        peak: The most that were there at a time.
    """

    def __init__(self, device: torch.device, before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.device_type = device.type
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in before:
            self._count(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do ``func`` and count what it makes."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def __enter__(self) -> Self:
        return super().__enter__()

    def _count(self, tensor: Tensor) -> None:
        tensor = local(tensor.detach())
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
