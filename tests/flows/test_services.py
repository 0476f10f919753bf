import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import psutil

from flows.services import Service, _stop, wait_until_ready
from lmcore.home import Home


def test_a_server_that_does_not_answer_is_stopped_all_the_same(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as deaf:
        # Nobody else takes its exit code, and until then it looks alive.
        threading.Thread(target=deaf.wait, daemon=True).start()
        script = f"""
from pathlib import Path
from dataclasses import asdict
import json, psutil
from flows.services import Service, down
from lmcore.home import Home
home = Home(Path({str(tmp_path)!r}))
home.services.mkdir(parents=True)
service = Service("prefect", {deaf.pid}, {psutil.Process(deaf.pid).create_time()!r}, {port}, "log")
(home.services / "prefect.json").write_text(json.dumps(asdict(service)))
print(down(home, print))
"""
        environment = {**os.environ, "GRISTMILL_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Prefect does not answer" in done.stdout
        assert done.stdout.splitlines()[-1] == "['prefect']"
        assert deaf.wait(10) is not None


ANSWERS_LATE = """
import http.server, pathlib, sys, time
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        pathlib.Path(sys.argv[2], "asked").touch()
        self.send_response(200)
        self.end_headers()
time.sleep(2)  # longer than a command that does not wait takes to ask
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


def test_a_command_waits_for_servers_that_still_start(tmp_path):
    home = Home(tmp_path)
    wait_until_ready(home)  # none is up
    home.services.mkdir(parents=True)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", ANSWERS_LATE, str(port), str(tmp_path)]) as server:
        try:
            created = psutil.Process(server.pid).create_time()
            service = Service("prefect", server.pid, created, port, str(tmp_path / "log"))
            (home.services / "prefect.json").write_text(json.dumps(asdict(service)))
            wait_until_ready(home)
            assert (tmp_path / "asked").exists()
        finally:
            server.kill()


SAVES_FOR_3_SECONDS = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(3)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(600)
"""


def test_a_run_has_its_grace_to_save(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.services.STOP_SECONDS", 0.5)
    supervisor = [sys.executable, "-m", "lmcore.launch.supervisor", "20"]
    command = [*supervisor, sys.executable, "-c", SAVES_FOR_3_SECONDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        threading.Thread(target=process.wait, daemon=True).start()
        wait_for(tmp_path / "begun")
        created = psutil.Process(process.pid).create_time()
        _stop(Service("worker", process.pid, created, 0, "log"))
        assert (tmp_path / "saved").exists()


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


RUN_OF_A_KILLED_WORKER = """
import pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
def save(*_):
    child.kill()
    child.wait()
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(600)
"""


@contextlib.contextmanager
def run_left_by_a_worker(home):
    home.mkdir()
    environment = {**os.environ, "GRISTMILL_HOME": str(home), "PREFECT__FLOW_RUN_ID": "a-run"}
    command = [sys.executable, "-c", RUN_OF_A_KILLED_WORKER, str(home)]
    with subprocess.Popen(command, env=environment) as process:
        threading.Thread(target=process.wait, daemon=True).start()
        wait_for(home / "begun")
        try:
            yield process
        finally:
            process.terminate()


def test_what_a_killed_worker_left_is_asked_to_stop(tmp_path):
    with run_left_by_a_worker(tmp_path / "a") as ours, run_left_by_a_worker(tmp_path / "b") as other:
        family = [*psutil.Process(ours.pid).children(), psutil.Process(ours.pid)]
        script = f"""
from pathlib import Path
from flows.services import down
from lmcore.home import Home
print(down(Home(Path({str(tmp_path / "a")!r})), print))
"""
        environment = {**os.environ, "GRISTMILL_HOME": str(tmp_path / "a")}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "a worker that was killed" in done.stdout
        assert len(family) == 2
        assert not any(process.is_running() for process in family)
        assert (tmp_path / "a" / "saved").exists()
        assert psutil.Process(other.pid).is_running()
        assert not (tmp_path / "b" / "saved").exists()
