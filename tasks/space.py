"""Room on the disk, asked for before work begins."""

from __future__ import annotations

import shutil
from pathlib import Path

from lmcore.errors import StorageError

SPARE_BYTES = 500_000_000


def require_space(folder: Path, needed_bytes: int) -> None:
    """Check that ``folder``'s disk has room for ``needed_bytes`` and some to spare.

    Raises:
        StorageError: it has not.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = needed_bytes + SPARE_BYTES
    if free < needed:
        raise StorageError(
            f"not enough room below {folder}",
            expected=f"{needed / 1e9:.1f} GB free",
            found=f"{free / 1e9:.1f} GB",
            remedy="Free room there, or set GRISTMILL_HOME to another disk.",
        )
