"""What works on this machine, and what to do about what does not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "warning", "failed"]
MIN_FREE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it is, and what to do if it is not well."""

    name: str
    state: State
    found: str
    remedy: str = ""


def check_python() -> Check:
    """Python 3.11 to 3.13."""
    found = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check(
        "python", "ok" if good else "failed", found, "" if good else "Use Python 3.11, 3.12 or 3.13."
    )


def check_packages() -> Check:
    """The packages that a run needs, in versions that work together."""
    names = ("prefect", "mlflow", "torch", "pyarrow", "tokenizers", "fastapi")
    versions, missing = [], []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", "failed", f"missing: {', '.join(missing)}", "Run `make quickstart`.")
    fastapi = tuple(int(part) for part in importlib.metadata.version("fastapi").split(".")[:2])
    if fastapi >= (0, 151):
        return Check(
            "packages",
            "failed",
            ", ".join(versions),
            "Prefect 3.8 needs fastapi below 0.151: use the constraints.",
        )
    return Check("packages", "ok", ", ".join(versions))


def check_cores() -> Check:
    """Processors that this process may use."""
    cores = len(os.sched_getaffinity(0))
    remedy = "" if cores > 1 else "With one core set train.parallel.dp_replicate=1."
    return Check("cores", "ok" if cores > 1 else "warning", str(cores), remedy)


def check_disk(folder: Path) -> Check:
    """Room for a run, and permission to write."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 1e9:.1f} GB free at {folder}"
    if not os.access(existing, os.W_OK):
        return Check(
            "disk", "failed", f"{existing} is not writable", "Set GRISTMILL_HOME to a folder of yours."
        )
    if free < MIN_FREE_BYTES:
        return Check("disk", "warning", found, "Free some, or set GRISTMILL_HOME to another disk.")
    return Check("disk", "ok", found)


def check_loopback() -> Check:
    """Processes of one run find each other over loopback."""
    try:
        with socket.socket() as server, socket.socket() as client:
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            client.connect(server.getsockname())
    except OSError as error:
        return Check("loopback", "failed", str(error), "Allow connections to 127.0.0.1.")
    return Check("loopback", "ok", "127.0.0.1 answers")


def check_gigatoken() -> Check:
    """The fast tokenizer is optional: `tokenizers` does the same, slower."""
    try:
        version = importlib.metadata.version("gigatoken")
    except importlib.metadata.PackageNotFoundError:
        return Check(
            "gigatoken", "warning", "not installed", "Encoding is slower without: pip install gigatoken."
        )
    return Check("gigatoken", "ok", version)


def check_torch() -> Check:
    """Torch imports, and says what it would compute on; asked in a process of its own."""
    command = [sys.executable, "-m", "lmcore.train.probe"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        found = (done.stderr.strip() or "no output").splitlines()[-1]
        return Check("torch", "failed", found, "Run `make quickstart`.")
    return Check("torch", "ok", done.stdout.strip())


def machine_checks(home: Path) -> list[Callable[[], Check]]:
    """Every check of the machine itself."""
    return [
        check_python,
        check_packages,
        check_cores,
        lambda: check_disk(home),
        check_loopback,
        check_gigatoken,
        check_torch,
    ]
