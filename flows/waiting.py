"""Runs that wait behind another one say so, and for which: Prefect would call them late, like a fault."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from typing import Any

POOL = "gristmill"
EVERY_SECONDS = 4.0
AFTER_SECONDS = 3.0  # a worker asks for work about that often; Prefect calls a run late after 15 s
MAX_NAME_CHARS = 60
PREFIX = "Waiting for "


def watch(url: str) -> None:
    """Keep the states of waiting runs at the Prefect of ``url`` true, from a thread of this process."""
    threading.Thread(target=_follow, args=(url,), name="waiting-runs", daemon=True).start()


def _follow(url: str) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    told = ""
    while True:
        time.sleep(EVERY_SECONDS)
        try:
            with SyncPrefectClient(api=f"{url}/api") as client:
                tell(client)
        except Exception as error:  # the server may still start, or be busy: next time
            if str(error) != told:
                logging.getLogger(__name__).info("waiting runs cannot be told of: %s", error)
            told = str(error)


def tell(client: Any) -> int:
    """Name the state of each run that waits behind the one that runs; return how many were changed.

    Where nothing runs nothing is changed: a run that no worker takes is late.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.states import Scheduled

    busy = _runs(client, [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    if not busy:
        return 0
    first = min(busy, key=lambda run: run.start_time or run.created)
    name = f"{PREFIX}{first.name}"[:MAX_NAME_CHARS]
    due = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=AFTER_SECONDS)
    changed = 0
    for run in _runs(client, [StateType.SCHEDULED]):
        at = run.next_scheduled_start_time
        if at is None or at > due or run.state_name == name:
            continue
        message = f"One run at a time: it starts when {first.name!r} has ended."
        client.set_flow_run_state(
            run.id, Scheduled(scheduled_time=at, name=name, message=message), force=True
        )
        changed += 1
    return changed


def _runs(client: Any, types: list[Any]) -> list[Any]:
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )

    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=types))
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state), work_pool_filter=pool)
