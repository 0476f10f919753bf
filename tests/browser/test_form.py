"""A team's day in a real browser: servers up, a run from the form, a run by its schedule, servers down.

Needs Chromium (`make browser` installs it). Pictures of what was seen go to ``GRISTMILL_PICTURES``, or to
the test's own folder.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
# What makes a run short: fields of the form, by their label, and the first of that name.
SHORT = {"name": "from-the-form", "Max Bytes": "600000", "Vocab Size": "512", "Steps": "8"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url: str, body: dict | None = None, method: str | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


class Servers:
    """`gristmill up` on a home and ports of its own."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        ports = free_port(), free_port()
        self.prefect, self.mlflow = (f"http://127.0.0.1:{port}" for port in ports)
        self.ports = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]

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

    def runs_begun(self) -> list[dict]:
        """Runs of deployments that are past being scheduled."""
        begun = {"any_": ["PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED"]}
        runs = call(f"{self.prefect}/api/flow_runs/filter", {"flow_runs": {"state": {"type": begun}}})
        return [run for run in runs if run["deployment_id"]]

    def wait_for_run(self, run_id: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while True:
            state = call(f"{self.prefect}/api/flow_runs/{run_id}")["state"]
            if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                assert state["type"] == "COMPLETED", f"{state}\n{self.log(run_id)}"
                return
            assert time.monotonic() < deadline, f"the run is still {state['name']}"
            time.sleep(1)

    def log(self, run_id: str) -> str:
        logs = call(f"{self.prefect}/api/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
        return "\n".join(entry["message"] for entry in logs)

    def mlflow_family(self, flow_run_id: str) -> tuple[dict, list[str]]:
        """The MLflow run of a Prefect flow run, and the kinds of its children."""
        search = f"{self.mlflow}/api/2.0/mlflow/runs/search"
        experiments = call(f"{self.mlflow}/api/2.0/mlflow/experiments/search?max_results=10")["experiments"]
        ids = [experiment["experiment_id"] for experiment in experiments]

        def tags(run: dict) -> dict:
            return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}

        runs = call(search, {"experiment_ids": ids, "max_results": 100})["runs"]
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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = Path(os.environ.get("GRISTMILL_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    servers = Servers(tmp_path_factory.mktemp("servers"))
    told = servers.gristmill("up", *servers.ports)
    try:
        assert servers.prefect in told
        assert servers.mlflow in told
        yield servers
    finally:
        servers.gristmill("down")


@pytest.fixture
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(30_000)
        yield page
        browser.close()


def open_form(page: Page, servers: Servers) -> None:
    page.goto(f"{servers.prefect}/deployments")
    page.get_by_role("link", name="pipeline", exact=True).first.click()
    page.wait_for_url("**/deployments/deployment/**")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text("From raw files to tokens").first).to_be_visible()


def fill(page: Page, label: str, value: str) -> None:
    field = page.locator("label").filter(has_text=re.compile(rf"^\s*{label}\b")).first
    box = field.locator("xpath=following::*[self::input or self::textarea][1]")
    box.fill(value)
    expect(box).to_have_value(value)


def test_a_run_from_the_form_reaches_mlflow_with_its_children(page, servers, pictures):
    open_form(page, servers)
    for label, value in SHORT.items():
        fill(page, label, value)
    page.screenshot(path=pictures / "form.png", full_page=True)
    page.get_by_role("button", name="Submit", exact=True).click()
    deadline = time.monotonic() + 30
    while not (started := [r for r in servers.runs_begun() if not r["auto_scheduled"]]):
        assert time.monotonic() < deadline, "the form started nothing"
        time.sleep(0.2)
    run = started[0]
    assert run["parameters"]["train"]["steps"] == 8
    servers.wait_for_run(run["id"])
    page.goto(f"{servers.prefect}/runs/flow-run/{run['id']}")
    page.get_by_role("listitem").filter(has_text="Artifacts").click()
    expect(page.get_by_text("What was built or reused, and why").first).to_be_visible()
    page.screenshot(path=pictures / "run.png")
    artifacts = call(
        f"{servers.prefect}/api/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
    )
    kinds = {artifact["key"]: artifact["type"] for artifact in artifacts}
    assert kinds["stages"] == "table"
    assert kinds["summary"] == "markdown"
    summary = next(artifact for artifact in artifacts if artifact["key"] == "summary")
    page.goto(f"{servers.prefect}/artifacts/artifact/{summary['id']}")
    expect(page.get_by_text("bits per byte of the held-out text").first).to_be_visible()
    expect(page.locator("img[alt='loss.png']")).to_be_visible()
    page.screenshot(path=pictures / "summary.png", full_page=True)
    parent, children = servers.mlflow_family(run["id"])
    assert parent["info"]["status"] == "FINISHED"
    assert children == ["evaluate", "train"]
    page.goto(
        f"{servers.mlflow}/#/experiments/{parent['info']['experiment_id']}/runs/{parent['info']['run_id']}"
    )
    expect(page.get_by_text("eval/bits_per_byte").first).to_be_visible()
    page.screenshot(path=pictures / "mlflow.png")


def test_a_run_by_the_schedule_reaches_mlflow(servers):
    deployment = call(f"{servers.prefect}/api/deployments/name/pipeline/pipeline")
    assert [s["schedule"]["cron"] for s in deployment["schedules"]] == ["0 2 * * *"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    # Its own nightly schedule, told to come every minute, until it has come once.
    address = (
        f"{servers.prefect}/api/deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
    )
    parameters = {
        "name": "by-the-schedule",
        "data": {
            "sources": [{"name": "python-stdlib", "max_bytes": 600_000}],
            "tokenizer": {"vocab_size": 512},
        },
        "train": {"steps": 9},
    }
    call(address, {"schedule": {"cron": "* * * * *"}, "active": True, "parameters": parameters}, "PATCH")
    deadline = time.monotonic() + 180
    while not (due := [r for r in servers.runs_begun() if r["auto_scheduled"]]):
        assert time.monotonic() < deadline, "the schedule started nothing"
        time.sleep(1)
    call(address, {"active": False}, "PATCH")
    servers.wait_for_run(due[0]["id"])
    parent, children = servers.mlflow_family(due[0]["id"])
    assert parent["info"]["status"] == "FINISHED"
    assert children == ["evaluate", "train"]


def test_up_twice_starts_nothing_new(servers):
    before = sorted(servers.processes())
    servers.gristmill("up", *servers.ports)
    assert sorted(servers.processes()) == before


def test_down_leaves_no_process(servers):
    assert servers.processes()
    servers.gristmill("down")
    assert servers.processes() == []
