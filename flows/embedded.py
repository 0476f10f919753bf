"""Prefect's server for one command, where none is up: it ends when the command does, however that ends.

Prefect would start one of its own, which lives on when the command is killed. This one watches a pipe from
the command, and starts while the command still imports.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from lmcore.errors import ServiceError
from lmcore.home import Home

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 10.0


class EmbeddedServer:
    """A running server.

    Args:
        process: Ends at the end of its standard input.
        url: Its address.
        log: What it says.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self._process, self._url, self._log = process, url, log

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
            ServiceError: it does not start.
        """
        deadline = time.monotonic() + START_SECONDS
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while self._process.poll() is None and time.monotonic() < deadline:
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                direct.open(f"{self._url}/api/health", timeout=START_SECONDS),
            ):
                return
            time.sleep(0.1)
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ServiceError(
            "the embedded Prefect server did not start",
            expected=f"an answer within {START_SECONDS:.0f} s",
            found=lines[-1] if lines else "no output",
            remedy=f"Its log is {self._log}.",
        )

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(home: Home) -> EmbeddedServer | None:
    """Start a server on ``home``'s database and point Prefect at it; None if ``PREFECT_API_URL`` names one.

    To be called before prefect is imported: it reads the address then, and what it still has to say at the
    end of the process is said before this server stops.
    """
    if os.environ.get("PREFECT_API_URL"):
        return None
    log = home.prefect / "server.log"
    own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    # The port is ours from the start, so that nobody else can take it before the server listens.
    with socket.socket() as listener, log.open("wb") as output:
        listener.bind((HOST, 0))
        listener.listen(128)
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.embedded", str(listener.fileno())],
            env={**os.environ, **own},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[listener.fileno()],
        )
    os.environ["PREFECT_API_URL"] = f"{url}/api"
    server = EmbeddedServer(process, url, log)
    atexit.register(server.stop)
    return server


def main() -> None:
    """Serve on the socket of the command line until standard input ends."""
    import uvicorn

    listener = socket.socket(fileno=int(sys.argv[1]))
    server = uvicorn.Server(
        uvicorn.Config(
            "flows.loopback:prefect_app",
            factory=True,
            log_level="error",
            lifespan="on",
            timeout_graceful_shutdown=2,
        )
    )
    threading.Thread(target=_stop_with_the_command, args=(server,), daemon=True).start()
    server.run(sockets=[listener])


def _stop_with_the_command(server: object) -> None:
    sys.stdin.buffer.read()
    server.should_exit = True  # type: ignore[attr-defined]
    time.sleep(STOP_SECONDS)
    os._exit(1)  # it would not end by itself


if __name__ == "__main__":
    main()
