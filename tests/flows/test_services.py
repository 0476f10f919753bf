import os
import socket
import subprocess
import sys
import threading

import psutil


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
