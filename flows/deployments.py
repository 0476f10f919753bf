"""The flows on a running Prefect server: deployed, and no run left behind by a worker that is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lmcore.errors import ServiceError

POOL = "gristmill"
CHECKOUT = Path(__file__).resolve().parents[1]


def deploy(url: str, environment: Mapping[str, str]) -> None:
    """Deploy every flow of ``infra/prefect.yaml`` at ``url``; a schedule that was paused stays paused.

    Raises:
        ServiceError: Prefect refuses.
    """
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(api=f"{url}/api") as client:
        paused = {
            deployment.id
            for deployment in client.read_deployments()
            if not any(schedule.active for schedule in deployment.schedules)
        }
        if POOL not in {pool.name for pool in client.read_work_pools()}:
            _prefect(environment, "work-pool", "create", POOL, "--type", "process")
            # Runs of different flows would share the machine's processors: one at a time.
            _prefect(environment, "work-pool", "set-concurrency-limit", POOL, "1")
        _prefect(environment, "deploy", "--all", "--prefect-file", str(CHECKOUT / "infra" / "prefect.yaml"))
        for deployment in client.read_deployments():
            for schedule in deployment.schedules if deployment.id in paused else ():
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)


def release_runs(url: str) -> list[str]:
    """Mark runs that no worker runs any more as crashed, so that they hold no slot; return their names.

    To be called when the worker is known to be gone: a run that its process could not end itself would
    stay "Running" for ever and keep every later one waiting.
    """
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    with SyncPrefectClient(api=f"{url}/api") as client:
        left = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active))),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        )
        for run in left:
            message = "Its worker was stopped. The same run again goes on from what was finished."
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    return [run.name for run in left]


def _prefect(environment: Mapping[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(
        command, env=dict(environment), cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServiceError(
            f"prefect {arguments[0]} failed",
            found=(done.stdout + done.stderr).strip()[-800:],
            remedy="Mend infra/prefect.yaml if it is at fault, then `gristmill up` again.",
        )
