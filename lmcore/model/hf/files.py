"""The files of a Hugging Face model: which hold its weights, and what decides what they are."""

from __future__ import annotations

import json
from pathlib import Path

from lmcore.errors import CheckpointError
from lmcore.model.hf.config import CONFIG
from lmcore.store import sha256_file, sha256_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model: those its index names, or the only one.

    Raises:
        CheckpointError: there are none, one is missing, or the weights are a pickle, which is never read.
    """
    index = directory / INDEX
    if index.is_file():
        names = _names(index)
    elif (directory / SINGLE).is_file():
        names = [SINGLE]
    else:
        pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
        raise CheckpointError(
            f"{directory} holds no weights that can be read",
            expected=f"{SINGLE}, or {INDEX} and the files it names",
            found=f"{', '.join(pickles[:3])}: a pickle, which may run anything" if pickles else "neither",
            remedy="Load it with transformers where you trust it, and `save_pretrained` it anew."
            if pickles
            else "",
        )
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise CheckpointError(
            f"{directory} does not hold all of its weights",
            expected=f"{', '.join(missing[:3])} ({len(missing)} of {len(names)} files)",
            found="none",
            remedy="Copy or download the directory again.",
        )
    return [directory / name for name in names]


def _names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read", found=" ".join(str(error).split())[:200]) from None
    if outside:
        raise CheckpointError(f"{index} names files elsewhere", found=", ".join(outside[:3]))
    return names


def weights_digest(directory: str | Path) -> str:
    """SHA-256 of what a model in ``directory`` is: its weights and its config, in hexadecimal.

    Raises:
        CheckpointError: there is no whole model.
    """
    directory = Path(directory).expanduser()
    files = [directory / CONFIG, *weight_files(directory)]
    try:
        return sha256_json([[path.name, sha256_file(path)] for path in files])
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read", found=str(error)) from None
