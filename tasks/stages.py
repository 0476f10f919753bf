"""How a task makes a stage: the store does the work, people see it happen."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from lmcore.disk import BROKEN
from lmcore.errors import GristmillError, ProcessDied, StorageError
from lmcore.home import Home
from lmcore.progress import Progress
from lmcore.store import Artifact, Stage, Store
from tasks import progress

# A file that is not there or not ours to read will not be in 20 seconds either.
_LASTING = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR)

BuildWithProgress = Callable[[Path, Progress], Mapping[str, Any]]


def ensure(stage: Stage, build: BuildWithProgress, *, why: str = "") -> Artifact:
    """Return the artifact of ``stage``, built if needed, and say which and why.

    ``why`` is said of one that is built, instead of how it differs from earlier ones, where it was not to be
    like them.

    Raises:
        GristmillError: what was wrong; also logged in one line.
    """
    logger = get_run_logger()
    progress.started(stage.name)
    try:
        with progress.reporter(stage.name) as report:
            waiting = f"{stage.name} is being built by another run: waiting for it"
            store = Store(Home.here().store, on_wait=lambda: progress.note(logger, waiting))
            artifact = store.ensure(stage, lambda directory: build(directory, report), why=why or True)
    except GristmillError as error:
        logger.error("%s failed: %s", stage.name, error)
        raise
    logger.info("%s", describe(artifact))
    progress.finished(artifact)
    return artifact


def describe(artifact: Artifact) -> str:
    """One line: which stage, built or reused, why, how long."""
    why = f" ({artifact.reason})" if artifact.reason else ""
    return f"{artifact.stage} {artifact.key[:12]} {artifact.status}{why} in {artifact.seconds:.1f} s"


def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Whether another try may help: a died process or a failed read, not a wrong setting or bad data."""
    try:
        state.result()
    except ProcessDied:
        return True
    except GristmillError as error:
        cause = error.__cause__
        # A disk that failed once may not fail again; a full one stays full.
        broken = isinstance(error, StorageError) and isinstance(cause, OSError) and cause.errno in BROKEN
        return broken or isinstance(cause, (ConnectionError, TimeoutError))
    except OSError as error:
        return error.errno not in _LASTING
    except Exception:
        return False
    return False


# Prefect's own result cache stays off: the store is content-addressed and verified (decision 0001).
STAGE_OPTIONS: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 2,
    "retry_delay_seconds": [2, 20],
    "retry_condition_fn": is_transient,
}
