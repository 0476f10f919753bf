"""The embedded Prefect server lives as long as its command, and not longer."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

COMMAND = """
import os, pathlib, sys, urllib.error, urllib.request
from flows import embedded
from flows.environment import set_environment
from lmcore.home import Home

home = Home(pathlib.Path(sys.argv[1]))
set_environment(home, quiet=True)
server = embedded.start(home)
server.wait_until_ready()
with urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/health") as answer:
    print(answer.read().decode(), flush=True)
for header in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
    request = urllib.request.Request(os.environ["PREFECT_API_URL"] + "/csrf-token?client=x", headers=header)
    try:
        urllib.request.urlopen(request)
        print("answered", header)
    except urllib.error.HTTPError as error:
        print(error.code)
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    def start(what):
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(tmp_path / "home"), what],
            env=own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def test_it_ends_with_its_command(start):
    done = start("end")
    told = done.communicate(timeout=120)[0].split("\n")
    assert told[:4] == ["true", "403", "403", "403"]  # a foreign page's requests are refused
    assert done.returncode == 0


@pytest.mark.long
def test_it_ends_even_when_its_command_is_killed(start):
    command = start("wait")
    assert command.stdout.readline().strip() == "true"
    (server,) = psutil.Process(command.pid).children()
    command.send_signal(signal.SIGKILL)
    command.wait()
    deadline = time.monotonic() + 60
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.1)


def test_an_address_in_the_environment_is_used(monkeypatch, tmp_path):
    from flows import embedded
    from lmcore.home import Home

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert embedded.start(Home(tmp_path)) is None
    assert not list(tmp_path.iterdir())
