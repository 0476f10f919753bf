"""``gristmill doctor``: the machine, the services, and the sources of a recipe."""

from __future__ import annotations

import http.client
import os
import urllib.request
from typing import TYPE_CHECKING

from flows.services import client_environment, running
from lmcore.config import Recipe, userinfo
from lmcore.doctor import Check, machine_checks
from lmcore.errors import GristmillError
from lmcore.home import Home

if TYPE_CHECKING:
    from lmcore.data.survey import Survey


def survey_sources(recipe: Recipe) -> list[Survey]:
    """Read a sample of each source of ``recipe``, and say what looks wrong."""
    from lmcore.data.survey import survey  # numba and pyarrow take a second

    return survey(recipe.preparation)


def examine(home: Home) -> list[Check]:
    """Run every check."""
    machine = [check() for check in machine_checks(home.root)]
    return [*machine, check_home(home), check_services(home), check_tracking(home)]


def check_home(home: Home) -> Check:
    """The folder of all that is made can be written."""
    try:
        home.require_writable()
    except GristmillError as error:
        return Check("home", "failed", f"{error.problem}: {error.found}", error.remedy)
    return Check("home", "ok", str(home.root))


def check_services(home: Home) -> Check:
    """Servers started by `gristmill up`."""
    found = running(home)
    if not found:
        return Check("services", "ok", "not up: runs use an embedded Prefect and an SQLite MLflow")
    missing = [name for name in ("prefect", "mlflow", "worker") if name not in found]
    urls = ", ".join(f"{name} {service.url}" for name, service in found.items() if service.port)
    if missing:
        return Check("services", "failed", f"{', '.join(missing)} died; {urls}", "Run `gristmill up` again.")
    return Check("services", "ok", urls)


def check_tracking(home: Home) -> Check:
    """The MLflow server that a run would report to answers."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or client_environment(home).get("MLFLOW_TRACKING_URI", "")
    if userinfo(uri):
        return Check(
            "mlflow",
            "failed",
            "MLFLOW_TRACKING_URI holds a user name or password",
            "Leave it out; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
        )
    if not uri.startswith("http"):
        return Check("mlflow", "ok", uri or f"no server set: {home.mlflow_database}")
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5):  # noqa: S310 - the user's own setting
            return Check("mlflow", "ok", f"{uri} answers")
    except (ValueError, OSError, http.client.HTTPException) as error:
        return Check(
            "mlflow",
            "warning",
            f"{uri}: {error}",
            "Runs go on without it and catch up; `gristmill sync` later.",
        )
