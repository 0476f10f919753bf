"""A team's day in a real browser: servers up, a run from the form, a run by its schedule, servers down.

Needs Chromium (`make browser` installs it). Pictures of what was seen go to ``GRISTMILL_PICTURES``, or to
the test's own folder.
"""

import os
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
# What makes a run short: fields of the form, by their label, and the first of that name.
SHORT = {"name": "from-the-form", "Source bytes": "600000", "Vocabulary": "512", "Steps": "12"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = Path(os.environ.get("GRISTMILL_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def servers(make_servers):
    servers = make_servers("browser")
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


def open_form(page: Page, servers) -> None:
    page.goto(f"{servers.prefect}/deployments")
    page.get_by_role("link", name="pipeline", exact=True).first.click()
    page.wait_for_url("**/deployments/deployment/**")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text("The settings that are changed most").first).to_be_visible()


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
    assert run["parameters"]["settings"]["steps"] == 12
    servers.wait_for_run(run["id"])
    page.goto(f"{servers.prefect}/runs/flow-run/{run['id']}")
    page.get_by_role("listitem").filter(has_text="Artifacts").click()
    expect(page.get_by_text("What was built or reused, and why").first).to_be_visible()
    page.screenshot(path=pictures / "run.png")
    artifacts = servers.call(
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
    report = next(artifact for artifact in artifacts if artifact["key"] == "data-report")
    page.goto(f"{servers.prefect}/artifacts/artifact/{report['id']}")
    expect(page.locator("img[alt='documents.png']")).to_be_visible()
    page.goto(page.get_by_role("link", name="The whole report").get_attribute("href"))
    expect(page.frame_locator("iframe").get_by_role("heading", name="Data report")).to_be_visible()
    page.screenshot(path=pictures / "data-report.png")
    parent, children = servers.mlflow_family(run["id"])
    assert parent["info"]["status"] == "FINISHED"
    assert children == ["evaluate", "train"]
    page.goto(
        f"{servers.mlflow}/#/experiments/{parent['info']['experiment_id']}/runs/{parent['info']['run_id']}"
    )
    expect(page.get_by_text("eval/bits_per_byte").first).to_be_visible()
    page.screenshot(path=pictures / "mlflow.png")


def test_a_run_by_the_schedule_reaches_mlflow(servers):
    deployment = servers.call(f"{servers.prefect}/api/deployments/name/pipeline/pipeline")
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
        "train": {"steps": 14},  # others than the run of the form, which would be reused
    }
    servers.call(
        address, {"schedule": {"cron": "* * * * *"}, "active": True, "parameters": parameters}, "PATCH"
    )
    deadline = time.monotonic() + 180
    while not (due := [r for r in servers.runs_begun() if r["auto_scheduled"]]):
        assert time.monotonic() < deadline, "the schedule started nothing"
        time.sleep(1)
    servers.call(address, {"active": False}, "PATCH")
    servers.wait_for_run(due[0]["id"])
    parent, children = servers.mlflow_family(due[0]["id"])
    assert parent["info"]["status"] == "FINISHED"
    assert children == ["evaluate", "train"]


def test_up_twice_starts_nothing_new(servers):
    before = servers.services()
    assert len(before) == 3
    servers.gristmill("up", *servers.ports)
    assert servers.services() == before


def test_down_leaves_no_process(servers):
    assert servers.processes()
    servers.gristmill("down")
    assert servers.processes() == []
