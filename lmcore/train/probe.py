"""Prints what torch would compute on: ``python -m lmcore.train.probe``."""

from __future__ import annotations

import sys

import torch
import torch.distributed


def describe() -> str:
    """Torch's version, its devices and the backends that its processes can talk through."""
    backends = [name for name in ("gloo", "nccl") if torch.distributed.is_backend_available(name)]
    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
        devices = f"{torch.cuda.device_count()} GPU(s): {', '.join(names)}"
    else:
        devices = "CPU"
    return f"{torch.__version__}, {devices}, {' and '.join(backends)}"


if __name__ == "__main__":
    sys.stdout.write(describe() + "\n")
