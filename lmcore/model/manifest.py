"""What the files of a model directory were when they were written, so that it can be used by its path alone.

``manifest.json`` lists size and SHA-256 of each file beside it, and vouches for itself. Directories of others
and of earlier versions have none: they are read, and it is said that nothing vouches for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmcore.errors import CheckpointError
from lmcore.store import MANIFEST, hash_file, sha256_json, write_atomically

KIND = "gristmill model"


def write_manifest(directory: Path, names: Iterable[str]) -> None:
    """Write the manifest of the files ``names`` of ``directory``."""
    files = {name: hash_file(directory / name) for name in sorted(names)}
    write_atomically(directory / MANIFEST, _render({"kind": KIND, "files": files}))


def _render(manifest: dict[str, Any]) -> str:
    return json.dumps({**manifest, "sha256": sha256_json(manifest)}, indent=1) + "\n"


def verify_model(directory: Path) -> bool:
    """Compare the files of a model directory with its manifest; return whether it has one.

    Raises:
        CheckpointError: a file is missing, or is not what was written.
    """
    path = directory / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise _damaged(directory, MANIFEST, str(error)) from None
    # Two of its keys tell ours, of which one may be damaged, from somebody else's file of that name.
    if not isinstance(manifest, dict) or len(manifest.keys() & {"kind", "files", "sha256"}) < 2:
        return False
    manifest.pop("sha256", None)
    if _render(manifest) != text:
        raise _damaged(directory, MANIFEST, "another content")
    for name, expected in manifest["files"].items():
        try:
            found = hash_file(directory / name)
        except OSError as error:
            raise _damaged(directory, name, error.strerror or str(error)) from None
        if found != expected:
            raise _damaged(directory, name, f"{found['bytes']:,} bytes with another SHA-256")
    return True


def unverified(directory: Path) -> str:
    """Say of a model directory that nothing vouches for it."""
    return f"{directory} has no {MANIFEST} of gristmill: its files are read as they are, unverified"


def _damaged(directory: Path, name: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{directory} does not hold a whole model",
        expected=f"{name} as it was written, by {MANIFEST}",
        found=" ".join(found.split())[:200],
        remedy="Copy the directory again, or export it anew. If you changed it yourself, remove its "
        f"{MANIFEST}.",
    )
