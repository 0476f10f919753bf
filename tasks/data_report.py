"""The report stage: a page for people about the prepared data. No other stage reads it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from prefect import task

from lmcore.config import DataConfig, identify
from lmcore.data.findings import gather
from lmcore.progress import Progress
from lmcore.store import Artifact, Stage
from tasks.data_page import page
from tasks.stages import STAGE_OPTIONS, ensure

REPORT_VERSION = 2  # 1: wide pictures were cut off inside MLflow's page, and axes had no units
# The page shows thresholds, and another threshold need not decide otherwise about any document.
REPORT_SETTINGS = ("data.quality", "data.language", "data.decontamination.max_ngrams")
PAGE = "data-report.html"
FINDINGS = "findings.json"


def report_stage(config: DataConfig, documents: Artifact, splits: Artifact, tokens: Artifact) -> Stage:
    """The stage that tells people about the data."""
    identity = identify(*REPORT_SETTINGS, data=config)
    inputs = {artifact.stage: artifact.digest for artifact in (documents, splits, tokens)}
    return Stage("report", REPORT_VERSION, identity, inputs, deciding=())


def build_report(
    config: DataConfig,
    documents: Artifact,
    splits: Artifact,
    tokens: Artifact,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write the page, and what it tells as JSON."""
    with tempfile.TemporaryDirectory(dir=out) as work:
        findings = gather(config, documents, splits, tokens, Path(work), progress)
    (out / FINDINGS).write_text(json.dumps(findings.to_json()), encoding="utf-8")
    (out / PAGE).write_text(page(findings), encoding="utf-8")
    return {"figures": len(findings.figures), "samples": sum(map(len, findings.samples.values()))}


@task(name="data report", task_run_name="draw the data report", **STAGE_OPTIONS)
def draw_report(config: DataConfig, documents: Artifact, splits: Artifact, tokens: Artifact) -> Artifact:
    """Draw a page about what became of the documents, unless it is there."""
    return ensure(
        report_stage(config, documents, splits, tokens),
        lambda out, progress: build_report(config, documents, splits, tokens, out, progress),
    )
