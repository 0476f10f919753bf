"""Settings of Prefect, MLflow and Arrow that must be in the environment before they are imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from lmcore.home import VARIABLE, Home
from tasks.relocation import settle

LOOPBACK = ("127.0.0.1", "localhost")


def set_environment(home: Home, *, quiet: bool) -> None:
    """Point Prefect and MLflow at ``home``, with safe defaults, and Arrow at its memory; what is set stays.

    A home that was moved or copied is mended first.

    Args:
        home: Where their databases are.
        quiet: Only errors reach the terminal; everything still reaches the run's log.
    """
    if told := settle(home):
        sys.stderr.write(f"{told}\n")
    os.environ[VARIABLE] = str(home.root)
    home.prefect.mkdir(parents=True, exist_ok=True)  # its embedded server does not make it
    for name, value in variables(home).items():
        os.environ.setdefault(name, value)
    os.environ.update(no_proxy(os.environ))
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def no_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """What keeps requests to this machine's own servers away from a proxy that ``environment`` names."""
    hosts = [host for host in environment.get("NO_PROXY", "").split(",") if host]
    wanted = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
    return {"NO_PROXY": wanted, "no_proxy": wanted}


def variables(home: Home) -> dict[str, str]:
    """The settings: see infra/decisions/0004 for why each is not its default."""
    return {
        "PREFECT_HOME": str(home.prefect),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # A restart of the server must not crash long runs that hold a concurrency slot.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        # What Arrow's Parquet takes from another allocator is given back, and then cleared anew, which took a
        # tenth of the time to make tokens (``lmcore.data.arrow.keep_memory``). Workers inherit it.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
