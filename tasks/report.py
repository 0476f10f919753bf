"""What a run is told as: figures, a summary for programs, and artifacts for people in the Prefect UI."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from lmcore.config import Recipe
from lmcore.store import Artifact, write_atomically
from tasks import runs
from tasks.costs import cost_metrics, cost_table, cost_tags, costs_of
from tasks.data_report import PAGE
from tasks.evaluate import MEASURES
from tasks.figures import draw_costs, draw_energy, draw_funnel, draw_loss
from tasks.prepare import Prepared
from tasks.registry import Registered
from tasks.tracked import FlowRun
from tasks.train import HEADLINE


class StageSummary(BaseModel):
    """One stage of a run."""

    stage: str
    key: str
    status: str
    seconds: float
    reason: str = ""


class SetSummary(BaseModel):
    """A figure of an evaluation set, or of a group of its pairs."""

    name: str
    group: str = ""
    measure: str
    value: float
    items: int


class Summary(BaseModel):
    """A run in numbers. Units: bits per byte, tokens a second (of the median step), seconds.

    ``dataset_tokens`` are those of the training split, ``train_tokens`` those that were trained on.
    """

    recipe: str
    stages: list[StageSummary]
    documents: int | None = None
    books: dict[str, Any] | None = None
    quarantine: str | None = None
    data_report: str | None = None
    dataset_tokens: int | None = None
    train_tokens: int | None = None
    val_bits_per_byte: float | None = None
    zstd_bits_per_byte: float | None = None
    bigram_bits_per_byte: float | None = None
    sets: list[SetSummary] = []
    tokens_per_second: float | None = None
    loss_spikes: int | None = None
    costs: dict[str, Any] = {}
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    aliases: list[str] = []
    gate: str | None = None
    model_path: str | None = None
    samples: list[dict[str, str]] = []
    wall_seconds: float | None = None


def stage_summaries(artifacts: Iterable[Artifact]) -> list[StageSummary]:
    """Say of each stage whether it was built or reused, why, and how long it took."""
    return [
        StageSummary(stage=a.stage, key=a.key, status=a.status, seconds=round(a.seconds, 3), reason=a.reason)
        for a in artifacts
    ]


# --- artifacts in the Prefect UI -------------------------------------------------------------------


@task(name="report data", task_run_name="report on the data", cache_policy=NO_CACHE, persist_result=False)
def report_data(recipe: Recipe, run: FlowRun, prepared: Prepared) -> Summary:
    """Show what became of the documents, and which stages were reused, in the Prefect UI and in MLflow."""
    funnel = prepared.splits.summary["funnel"]
    picture = run.directory / "documents.png"
    draw_funnel(funnel, picture)
    _record_data(recipe, run, prepared, picture)
    summary = _summarize_data(recipe, run, prepared)
    _publish_stages("data-stages", summary.stages)
    create_table_artifact(
        [{"documents": label, "count": count} for label, count in funnel],
        key="documents",
        description="Documents in = kept + dropped by each rule + duplicates + quarantined",
    )
    page = data_markdown(summary, picture, prepared.splits.summary.get("notes", ()))
    create_markdown_artifact(page, key="data-report", description=recipe.name)
    return summary


def _record_data(recipe: Recipe, run: FlowRun, prepared: Prepared, picture: Path) -> None:
    tokens = prepared.tokens.summary
    metrics = {
        "data/documents_in": prepared.splits.summary["books"]["documents_in"],
        "data/documents": prepared.splits.summary["documents"],
        "data/tokens": tokens["tokens"],
        "data/bytes_per_token": tokens["bytes_per_token"],
    }
    files = [picture, *([prepared.report.path / PAGE] if prepared.report else [])]
    run.record(
        metrics={name: float(value) for name, value in metrics.items()},
        tags=_stage_tags(stage_summaries(prepared.artifacts)),
        datasets=runs.datasets_of(
            recipe.name, prepared.tokens, {"train": "training", "validation": "validation"}
        ),
        files={path.name: str(path) for path in files},
    )


def data_markdown(summary: Summary, picture: Path, notes: Sequence[str] = ()) -> str:
    """The books, what is to be noted of languages, where the report is, and the funnel."""
    books = summary.books or {}
    told = f"{books['documents_in']:,} documents in, {books['kept']:,} kept."
    lines = [f"# {summary.recipe}: data", "", told, ""]
    lines += [line for text in notes for line in (f"**Warning:** {text}", "")]
    if summary.data_report:
        page = Path(summary.data_report)
        if (
            summary.mlflow_url
        ):  # a browser follows no link from a server's page to a file; MLflow serves a copy
            lines += [f"[The whole report]({summary.mlflow_url}/artifacts/{PAGE}), on disk at `{page}`", ""]
        else:
            lines += [f"The whole report is on disk: open `{page}` in a browser.", ""]
            lines += ["Runs that start while `gristmill up` serves have a link to it here.", ""]
    return "\n".join([*lines, _inline(picture)])


def _inline(picture: Path) -> str:
    return f"![{picture.name}](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"


@task(name="report", task_run_name="report", cache_policy=NO_CACHE, persist_result=False)
def report(
    recipe: Recipe,
    run: FlowRun,
    prepared: Prepared,
    trained: Artifact,
    evaluated: Artifact | None = None,
    registered: Registered | None = None,
) -> Summary:
    """Tell a run in figures, in the Prefect UI, in MLflow, and as the summary that is returned."""
    # That of the documents was drawn by `report_data`.
    figures = {name: run.directory / name for name in ("documents.png", "loss.png")}
    events = trained.path / "events.jsonl"
    draw_loss(events, figures["loss.png"])
    for name, draw in (("costs.png", draw_costs), ("energy.png", draw_energy)):
        if draw(events, run.directory / name):
            figures[name] = run.directory / name
    summary = _summarize(recipe, run, prepared, trained, evaluated, registered)
    page = markdown(summary, figures)
    _publish_stages("stages", summary.stages)
    create_markdown_artifact(page, key="summary", description=recipe.name)
    if summary.sets:
        create_table_artifact(
            [one.model_dump() for one in summary.sets],
            key="evaluation-sets",
            description="Bits per byte of texts, share of pairs that are right, and of how many",
        )
    if summary.mlflow_url:
        create_link_artifact(summary.mlflow_url, link_text="This run in MLflow", key="mlflow")
    _record(run, summary, figures)
    return summary


def _summarize_data(recipe: Recipe, run: FlowRun, prepared: Prepared) -> Summary:
    """The summary of data preparation alone."""
    return Summary(
        recipe=recipe.name,
        stages=stage_summaries(prepared.artifacts),
        **_books(prepared),
        dataset_tokens=prepared.tokens.summary["train_tokens"],
        mlflow_run_id=run.mlflow_id(),
        mlflow_url=run.tracker.link(run.directory) or None,
        wall_seconds=round(time.monotonic() - run.started, 2),
    )


def _books(prepared: Prepared) -> dict[str, Any]:
    """Documents kept, what became of the others, where those are that could not be read, and the report."""
    set_aside = prepared.documents.path / "quarantine"
    return {
        "documents": prepared.splits.summary["documents"],
        "books": prepared.splits.summary["books"],
        "quarantine": str(set_aside) if set_aside.is_dir() else None,
        "data_report": str(prepared.report.path / PAGE) if prepared.report else None,
    }


def _publish_stages(key: str, stages: list[StageSummary]) -> None:
    create_table_artifact(
        [stage.model_dump() | {"key": stage.key[:12]} for stage in stages],
        key=key,
        description="What was built or reused, and why",
    )


def _summarize(
    recipe: Recipe,
    run: FlowRun,
    prepared: Prepared,
    trained: Artifact,
    evaluated: Artifact | None,
    registered: Registered | None,
) -> Summary:
    measured: Mapping[str, Any] = evaluated.summary if evaluated else {}
    artifacts = [*prepared.artifacts, trained, *([evaluated] if evaluated else [])]
    return Summary(
        recipe=recipe.name,
        stages=stage_summaries(artifacts),
        **_books(prepared),
        dataset_tokens=prepared.tokens.summary["train_tokens"],
        train_tokens=trained.summary["train_tokens"],
        val_bits_per_byte=measured.get("bits_per_byte"),
        zstd_bits_per_byte=measured.get("zstd_bits_per_byte"),
        bigram_bits_per_byte=measured.get("bigram_bits_per_byte"),
        sets=set_summaries(measured.get("sets", {})),
        tokens_per_second=trained.summary.get("tokens_per_second"),
        loss_spikes=trained.summary.get("loss_spikes"),
        costs=costs_of(trained.summary),
        mlflow_run_id=run.mlflow_id(),
        mlflow_url=run.tracker.link(run.directory) or None,
        model_name=registered.model_name if registered else None,
        model_version=registered.model_version if registered else None,
        aliases=registered.aliases if registered else [],
        gate=registered.reason if registered else None,
        model_path=str(trained.path / "model"),
        samples=measured.get("samples", []),
        wall_seconds=round(time.monotonic() - run.started, 2),
    )


def _record(run: FlowRun, summary: Summary, figures: Mapping[str, Path]) -> None:
    write_atomically(run.directory / "summary.json", summary.model_dump_json(indent=1))
    metrics = {
        HEADLINE: summary.val_bits_per_byte,
        "eval/bits_per_byte": summary.val_bits_per_byte,
        "eval/zstd_bits_per_byte": summary.zstd_bits_per_byte,
        "eval/bigram_bits_per_byte": summary.bigram_bits_per_byte,
        "data/documents": summary.documents,
        "train/tokens": summary.train_tokens,
    }
    metrics |= cost_metrics(summary.costs)
    metrics |= {f"eval/{one.name}/{one.measure}": one.value for one in summary.sets if not one.group}
    run.record(
        metrics={name: float(value) for name, value in metrics.items() if value is not None},
        tags=_stage_tags(summary.stages) | cost_tags(summary.costs) | {"mlflow.note.content": _note(summary)},
        files={name: str(path) for name, path in figures.items()}
        | {"summary.json": str(run.directory / "summary.json")},
    )


def _note(summary: Summary) -> str:
    """What became of a run, in a paragraph of Markdown."""
    lines = [f"Recipe `{summary.recipe}`: {summary.train_tokens or 0:,} tokens trained on."]
    if summary.val_bits_per_byte is not None:
        lines.append(f"**{summary.val_bits_per_byte:.4f} bits per byte** of held-out text.")
    if summary.model_version:
        aliases = f" ({', '.join(summary.aliases)})" if summary.aliases else ""
        lines.append(f"Registered as **{summary.model_name}** version {summary.model_version}{aliases}.")
    if summary.gate:
        lines.append(f"Gate: {summary.gate}.")
    return " ".join(lines)


def _stage_tags(stages: Iterable[StageSummary]) -> dict[str, str]:
    tags = {}
    for stage in stages:
        tags[f"gristmill.stage.{stage.stage}"] = stage.key
        tags[f"gristmill.status.{stage.stage}"] = f"{stage.status} {stage.reason}".strip()
    return tags


def markdown(summary: Summary, figures: Mapping[str, Path]) -> str:
    """The summary as a page."""
    lines = [f"# {summary.recipe}", ""]
    if summary.val_bits_per_byte is not None:
        lines += [
            "| model | bits per byte of the held-out text |",
            "|---|---:|",
            f"| this model | **{summary.val_bits_per_byte:.4f}** |",
            *_baseline("zstd -19", summary.zstd_bits_per_byte),
            *_baseline("byte bigrams", summary.bigram_bits_per_byte),
            "",
        ]
    lines += _table_of_sets(summary.sets)
    if summary.loss_spikes:
        lines += [
            f"The loss spiked in **{summary.loss_spikes:,}** steps: see `log.txt` and `events.jsonl`.",
            "",
        ]
    if summary.model_version:
        aliases = ", ".join(summary.aliases) or "no alias"
        lines += [f"Registered as **{summary.model_name}** version {summary.model_version} ({aliases})."]
    if summary.gate:
        lines += [f"Gate: {summary.gate}.", ""]
    if summary.mlflow_url:
        lines += [f"[This run in MLflow]({summary.mlflow_url})", ""]
    lines += cost_table(summary.costs)
    lines += ["## Stages", "", "| stage | key | status | seconds | why |", "|---|---|---|---:|---|"]
    lines += [
        f"| {s.stage} | `{s.key[:12]}` | {s.status} | {s.seconds:.1f} | {s.reason} |" for s in summary.stages
    ]
    for picture in figures.values():
        lines += ["", _inline(picture)]
    for sample in summary.samples:
        lines += [
            "",
            f"### Sample: {sample['prompt']!r}",
            "",
            "```",
            sample_text(sample).replace("```", "'''"),
            "```",
        ]
    return "\n".join(lines)


def sample_text(sample: Mapping[str, str]) -> str:
    """A prompt and what the model made of it."""
    return sample["prompt"] + sample["text"]


def set_summaries(sets: Mapping[str, Mapping[str, Any]]) -> list[SetSummary]:
    """The figures of the evaluation sets, each followed by those of its groups."""
    found = []
    for name, figures in sets.items():
        measure = MEASURES[figures["kind"]]
        items = figures["num_documents" if measure == "bits_per_byte" else "num_pairs"]
        found.append(SetSummary(name=name, measure=measure, value=figures[measure], items=items))
        found += [
            SetSummary(name=name, group=group, measure=measure, value=of[measure], items=of["num_pairs"])
            for group, of in figures.get("groups", {}).items()
        ]
    return found


def _table_of_sets(sets: Sequence[SetSummary]) -> list[str]:
    """Each set as a whole; those of groups are a table of their own in the UI."""
    if not sets:
        return []
    lines = ["| evaluation set | measure | value | texts or pairs |", "|---|---|---:|---:|"]
    lines += [
        f"| {one.name} | {one.measure.replace('_', ' ')} | **{one.value:.4f}** | {one.items:,} |"
        for one in sets
        if not one.group
    ]
    return [*lines, ""]


def _baseline(name: str, value: float | None) -> list[str]:
    return [] if value is None else [f"| {name} | {value:.4f} |"]
