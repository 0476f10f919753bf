"""How functions that look at every byte are compiled: by numba, with a cache that is never stale."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numba
import numba.core.config
from numba import uint32

from lmcore.home import Home

__all__ = ["compiled", "uint32"]


def compiled(function: Any) -> Any:
    """Compile ``function`` at its first call, or load what was compiled of these sources before."""
    # Nothing compiled here makes an array, and counting references took three quarters of the time.
    options: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "error_model": "numpy"}
    return numba.njit(**options)(function)


def _cache_folder() -> Path:
    """A folder for exactly these sources: numba itself does not notice that a called function changed."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))).hexdigest()
    base = here / "__pycache__" if os.access(here, os.W_OK) else Home.here().root / "compiled"
    return base / f"compiled-{digest[:16]}"


numba.core.config.CACHE_DIR = str(_cache_folder())  # pyright: ignore[reportAttributeAccessIssue]
