"""``gristmill up`` and ``down``: Prefect's server, MLflow's and a worker, on loopback.

Each service is a process in a session of its own with its output in a log file. What was started is kept in
``services/<name>.json`` with the process's start time, so that a reused process id is never mistaken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.deployments import POOL, deploy, release_runs
from flows.environment import no_proxy, set_environment, variables
from lmcore.errors import ConfigError, ServiceError
from lmcore.home import VARIABLE, Home
from lmcore.store import write_atomically
from tasks.relocation import use_files, use_server

HOST = "127.0.0.1"
HEALTH = {"prefect": "/api/health", "mlflow": "/health"}  # where a server says that it is ready
START_SECONDS = 120.0
TELL_EVERY_SECONDS = 10.0
STOP_SECONDS = 75.0  # a training run that is asked to stop saves first: longer than the default grace
SPARE_SECONDS = 15.0  # beyond the grace of a run that has a longer one


@dataclass(frozen=True)
class Service:
    """A process that ``up`` started."""

    name: str
    pid: int
    created: float
    port: int
    log: str

    @property
    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
            return process if alive else None
        except psutil.NoSuchProcess:
            return None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"


def running(home: Home) -> dict[str, Service]:
    """Services of ``home`` that are alive, by name; not those that the home it is a copy of started."""
    services = {}
    for path in sorted(home.services.glob("*.json")):
        service = Service(**json.loads(path.read_text(encoding="utf-8")))
        if service.process and _home_of(service.process) in ("", str(home.root)):
            services[service.name] = service
    return services


def _home_of(process: psutil.Process) -> str:
    """The home that a process was started for; empty if that cannot be told."""
    try:
        return process.environ().get(VARIABLE, "")
    except psutil.Error:
        return ""


def client_environment(home: Home) -> dict[str, str]:
    """Where clients of ``home`` find the running servers; empty when they are not up."""
    services = running(home)
    found = {}
    if "prefect" in services:
        found["PREFECT_API_URL"] = f"{services['prefect'].url}/api"
    if "mlflow" in services:
        found["MLFLOW_TRACKING_URI"] = services["mlflow"].url
        found["GRISTMILL_MLFLOW_SERVER"] = services["mlflow"].url
    return found


def wait_until_ready(home: Home) -> None:
    """Wait until the servers of ``home`` answer that are still starting; nothing to do where none is up.

    Raises:
        ServiceError: one does not start.
    """
    services = running(home)
    for name, path in HEALTH.items():
        if name in services:
            _wait(services[name], path)


def up(home: Home, prefect_port: int, mlflow_port: int, say: Callable[[str], object]) -> dict[str, Service]:
    """Start what is not running yet, deploy every flow, and return the services. Safe to call twice.

    Raises:
        ServiceError: a port is taken by another program, or a service does not start.
    """
    if prefect_port == mlflow_port:
        raise ConfigError(
            "Prefect and MLflow cannot share a port",
            found=f"{mlflow_port} for both",
            remedy="Choose another.",
        )
    home.services.mkdir(parents=True, exist_ok=True)
    set_environment(home, quiet=True)
    found, started = running(home), dict[str, Service]()
    for name, port in (("prefect", prefect_port), ("mlflow", mlflow_port)):
        if name not in found:
            _require_free(port, name)
    try:
        if "prefect" not in found:
            if not (home.prefect / "prefect.db").exists():
                say("the first start of a home makes the databases of Prefect and MLflow: one to two minutes")
            say(f"starting Prefect on port {prefect_port}")
            found["prefect"] = started["prefect"] = _start_prefect(home, prefect_port)
        if "mlflow" not in found:
            say(f"starting MLflow on port {mlflow_port}")
            found["mlflow"] = started["mlflow"] = _start_mlflow(home, mlflow_port)
        for name, path in HEALTH.items():
            _wait(found[name], path, say)
        environment = {**_environment(home), **client_environment(home)}
        say("deploying four flows, with their forms and the nightly schedule: some 15 s")
        deploy(found["prefect"].url, environment)
        if "worker" not in found:
            _stop_runs(home, say)  # of one that was killed
            release_runs(found["prefect"].url)
            say("starting a worker")
            found["worker"] = started["worker"] = _start_worker(home, environment)
    except BaseException:
        for service in started.values():  # what ran before goes on
            _stop(service)
        raise
    return found


def down(home: Home, say: Callable[[str], object]) -> list[str]:
    """Stop the services and everything they started; return the names of those that ran."""
    set_environment(home, quiet=True)
    stopped = []
    services = running(home)
    for name in ("worker", "mlflow", "prefect"):  # the worker first: its runs still report to Prefect
        if name in services:
            say(f"stopping {name}")
            _stop(services[name])
            stopped.append(name)
            if name == "mlflow":
                use_files(home)
        if name == "worker":
            _stop_runs(home, say)
            if "prefect" in services:
                _release(services["prefect"].url, say)
        (home.services / f"{name}.json").unlink(missing_ok=True)
    return stopped


def _release(url: str, say: Callable[[str], object]) -> None:
    try:
        for run in release_runs(url):
            say(f"run {run} was stopped; the same run again goes on from what was finished")
    except Exception as error:  # a server that does not answer must be stopped all the same
        say(f"Prefect does not answer ({error}): the next `up` tells it of runs that were stopped")


# --- starting --------------------------------------------------------------------------------------


def _start_prefect(home: Home, port: int) -> Service:
    environment = {
        **_environment(home),
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        # Without this the pages in the browser would call port 4200 whatever port is served.
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
        # Any page in the same browser could start runs otherwise.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }
    command = [sys.executable, "-m", "flows.prefect_server", HOST, str(port)]
    return _spawn(home, "prefect", port, command, environment)


def _start_mlflow(home: Home, port: int) -> Service:
    home.mlflow_artifacts.mkdir(parents=True, exist_ok=True)
    use_server(home)
    environment = {**_environment(home), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{home.mlflow_database}"),
        *("--artifacts-destination", home.mlflow_artifacts.as_uri(), "--serve-artifacts"),
        *("--allowed-hosts", ",".join(f"{name},{name}:*" for name in (HOST, "localhost"))),
        *("--cors-allowed-origins", f"http://{HOST}:{port},http://localhost:{port}"),
    ]
    return _spawn(home, "mlflow", port, command, environment)


def _start_worker(home: Home, environment: Mapping[str, str]) -> Service:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    service = _spawn(home, "worker", 0, command, environment)
    deadline = time.monotonic() + START_SECONDS
    while "started!" not in Path(service.log).read_text(encoding="utf-8", errors="replace"):
        _require_alive(service, deadline)
        time.sleep(0.2)
    return service


def _environment(home: Home) -> dict[str, str]:
    own = {**variables(home), **os.environ, VARIABLE: str(home.root), "PYTHONUNBUFFERED": "1"}
    own |= no_proxy(own)
    own.pop("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", None)
    own.pop("PREFECT_API_URL", None)
    return own


def _spawn(home: Home, name: str, port: int, command: list[str], environment: Mapping[str, str]) -> Service:
    log = home.services / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=home.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(name, process.pid, psutil.Process(process.pid).create_time(), port, str(log))
    write_atomically(home.services / f"{name}.json", json.dumps(asdict(service)))
    return service


def _require_free(port: int, name: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServiceError(
                f"port {port}, wanted for {name}, cannot be used",
                expected="a free port",
                found=error.strerror or str(error),
                remedy=f"Stop the program that uses it, or choose another with --{name}-port.",
            ) from None


def _wait(service: Service, path: str, say: Callable[[str], object] = lambda text: None) -> None:
    begun = time.monotonic()
    deadline, say_at = begun + START_SECONDS, begun + TELL_EVERY_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(service.url + path, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        _require_alive(service, deadline)
        if time.monotonic() >= say_at:
            say(f"{service.name} still starts, {time.monotonic() - begun:.0f} s so far")
            say_at += TELL_EVERY_SECONDS
        time.sleep(0.2)


def _require_alive(service: Service, deadline: float) -> None:
    if service.process and time.monotonic() < deadline:
        return
    lines = Path(service.log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise ServiceError(
        f"{service.name} did not start",
        expected=f"an answer within {START_SECONDS:.0f} s",
        found=lines[-1] if lines else "no output",
        remedy=f"Its log is {service.log}.",
    )


# --- stopping --------------------------------------------------------------------------------------


def _stop(service: Service) -> None:
    process = service.process
    if process is None:
        return
    # Flow runs of the worker, and what they started, live in sessions of their own.
    family, first = [process], [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        first += process.children()
        family += process.children(recursive=True)
    _stop_family(family, first)


def _stop_runs(home: Home, say: Callable[[str], object]) -> None:
    """Stop flow runs that outlived their worker, which was killed."""
    family = {process.pid: process for process in psutil.process_iter() if _is_of_a_run(process, home)}
    if family:
        say("stopping what a worker that was killed had begun")
    first = []
    for process in family.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() not in family:
                first.append(process)
    _stop_family(list(family.values()), first)


def _is_of_a_run(process: psutil.Process, home: Home) -> bool:
    try:
        own = process.environ()
    except psutil.Error:
        return False
    ours = own.get(VARIABLE) == str(home.root) and "PREFECT__FLOW_RUN_ID" in own
    return ours and process.pid != os.getpid()


def _grace_seconds(process: psutil.Process) -> float:
    """How long ``process`` lets a run save after a request to stop: what its supervisor was started with."""
    with contextlib.suppress(psutil.Error, ValueError, IndexError):
        command = process.cmdline()
        return float(command[command.index("lmcore.launch.supervisor") + 1])
    return 0.0


def _stop_family(family: list[psutil.Process], first: list[psutil.Process]) -> None:
    """Ask ``first`` to stop, wait for all of ``family``, and kill what is left of it."""
    graces = [_grace_seconds(member) + SPARE_SECONDS for member in family]
    for member in first:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=max([STOP_SECONDS, *graces]))
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(alive, timeout=5)
