"""One small corpus, one recipe and one home for the tests that turn the whole mill."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core: with threads for all of them, those of one would wait for the others'.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import psutil
import pytest
import yaml

# How long a first call compiles says nothing of what is tested.
hypothesis.settings.register_profile("mill", deadline=None)
hypothesis.settings.load_profile("mill")

WORDS = (
    "mill stone grain flour water wheel sack miller river bread oven field wind sail gear shaft hopper sieve "
    "the a of and that turns grinds pours carries under over with from into slowly again before after"
)


def write_corpus(folder: Path, num_documents: int = 240, seed: int = 7) -> Path:
    """Write documents that a tiny model can learn something from, some of them twice."""
    draw, words = random.Random(seed), WORDS.split()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_documents):
            sentences = [" ".join(draw.choices(words, k=draw.randint(6, 12))) + "." for _ in range(20)]
            row = json.dumps({"id": f"d{number}", "text": "\n".join(sentences)}) + "\n"
            file.write(row)
            if number % 40 == 0:
                file.write(row)
    return path


def tiny_recipe(corpus: Path, **changes) -> dict:
    """A recipe that a run takes seconds for."""
    recipe = {
        "name": "tiny",
        "data": {
            "sources": [{"name": "demo", "kind": "files", "path": str(corpus), "id_field": "id"}],
            "quality": {"profile": "code"},
            "validation_fraction": 0.1,
            "tokenizer": {"vocab_size": 300},
            "workers": 1,
        },
        "model": {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "max_seq_len": 64},
        "train": {
            "steps": 12,
            "seq_len": 32,
            "global_batch_tokens": 512,
            "micro_batch_size": 4,
            "schedule": {"warmup_steps": 2},
            "validate_every": 6,
            "checkpoint_every": 4,
            "launch": {"device": "cpu"},
        },
        "evaluation": {"stride_tokens": 16, "prompts": ["the mill "], "sampling": {"max_new_tokens": 8}},
    }
    return recipe | changes


class Mill:
    """Runs the command line on a home and a recipe file of its own."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.recipe = root / "tiny.yaml"
        self.corpus = write_corpus(root / "data")
        self.recipe.write_text(yaml.safe_dump(tiny_recipe(self.corpus)))
        self._root = root

    def environment(self, **extra: str) -> dict[str, str]:
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))
        }
        return own | {"GRISTMILL_HOME": str(self.home), "OMP_NUM_THREADS": "1"} | extra

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.Popen(
            command,
            env=self.environment(**extra),
            cwd=self._root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what it puts in the background deaf to Ctrl-C; a person does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def call(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **extra)
        out, err = process.communicate(timeout=280)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *arguments: str, name: str = "run", **extra: str) -> dict:
        summary = self._root / f"{name}.json"
        done = self.call("run", str(self.recipe), "--json", str(summary), *arguments, **extra)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(summary.read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Servers:
    """`gristmill up` on a home and ports of its own."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        ports = free_port(), free_port()
        self.prefect, self.mlflow = (f"http://127.0.0.1:{port}" for port in ports)
        self.ports = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
        self._csrf: dict[str, str] = {}

    def gristmill(self, *arguments: str) -> str:
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))
        }
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=own | {"GRISTMILL_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(self, url: str, body: Any = None, method: str | None = None) -> Any:
        """Request JSON of Prefect or MLflow, with the token that Prefect wants for a change."""
        if body is not None and url.startswith(self.prefect) and not self._csrf:
            client = uuid.uuid4().hex
            token = self.call(f"{self.prefect}/api/csrf-token?client={client}")["token"]
            self._csrf = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(self._csrf if url.startswith(self.prefect) else {})}
        text = self._answer(urllib.request.Request(url, data, headers, method=method))
        return json.loads(text) if text else None

    def _answer(self, request: urllib.request.Request) -> bytes:
        """Ask again while the server says 503, as Prefect's own clients do: its SQLite file was busy."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def processes(self) -> list[str]:
        """Command lines of all processes that belong to this home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("GRISTMILL_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(" ".join(process.cmdline())[:120])
            except psutil.Error:
                continue
        return found

    def services(self) -> dict[str, int]:
        """Process ids of the services that run, by name."""
        told = [json.loads(path.read_text()) for path in (self.home / "services").glob("*.json")]
        return {service["name"]: service["pid"] for service in told if psutil.pid_exists(service["pid"])}

    def runs_begun(self) -> list[dict]:
        """Runs of deployments that are past being scheduled."""
        begun = {"any_": ["PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED"]}
        runs = self.call(f"{self.prefect}/api/flow_runs/filter", {"flow_runs": {"state": {"type": begun}}})
        return [run for run in runs if run["deployment_id"]]

    def wait_for_run(self, run_id: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while True:
            state = self.call(f"{self.prefect}/api/flow_runs/{run_id}")["state"]
            if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                assert state["type"] == "COMPLETED", f"{state}\n{self.log(run_id)}"
                return
            assert time.monotonic() < deadline, f"the run is still {state['name']}"
            time.sleep(1)

    def log(self, run_id: str) -> str:
        logs = self.call(f"{self.prefect}/api/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
        return "\n".join(entry["message"] for entry in logs)

    def mlflow_family(self, flow_run_id: str) -> tuple[dict, list[str]]:
        """The MLflow run of a Prefect flow run, and the kinds of its children."""
        search = f"{self.mlflow}/api/2.0/mlflow/runs/search"
        experiments = self.call(f"{self.mlflow}/api/2.0/mlflow/experiments/search?max_results=10")[
            "experiments"
        ]
        ids = [experiment["experiment_id"] for experiment in experiments]

        def tags(run: dict) -> dict:
            return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}

        runs = self.call(search, {"experiment_ids": ids, "max_results": 100})["runs"]
        parent = next(
            run
            for run in runs
            if tags(run).get("prefect.flow_run_id") == flow_run_id
            and tags(run)["gristmill.kind"] == "pipeline"
        )
        parent_id = parent["info"]["run_id"]
        children = [
            tags(run)["gristmill.kind"] for run in runs if tags(run).get("mlflow.parentRunId") == parent_id
        ]
        return parent, sorted(children)


@pytest.fixture(scope="session")
def make_servers(tmp_path_factory):
    return lambda name: Servers(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def make_mill(tmp_path_factory):
    return lambda name: Mill(tmp_path_factory.mktemp(name))
