"""A run, shown at a terminal: progress bars where there is one, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lmcore.store import Artifact
from lmcore.units import BYTES, TIMES, told
from tasks.report import Summary

if TYPE_CHECKING:
    from lmcore.data.survey import Survey

PLAIN_LINE_EVERY_SECONDS = 10.0
SAMPLES_SHOWN = 2


class Display:
    """Listens to tasks; use as a context manager around a flow."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._current: dict[str, TaskID] = {}
        self._next_line = 0.0

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def stage_started(self, name: str) -> None:
        """Show a bar for the stage."""
        self._current[name] = self._bars.add_task(name, total=None, detail="")
        self._next_line = time.monotonic() + PLAIN_LINE_EVERY_SECONDS

    def advanced(self, stage: str, label: str, done: float, total: float, unit: str) -> None:
        """Move the bar; without a terminal, print a line now and then."""
        detail = escape(f"{done:,.0f}/{total:,.0f} {unit}  {label}")
        if stage in self._current:
            self._bars.update(self._current[stage], completed=done, total=total or None, detail=detail)
        if not self._console.is_terminal and time.monotonic() >= self._next_line:
            self._console.print(f"  {stage}: {detail}", highlight=False)
            self._next_line = time.monotonic() + PLAIN_LINE_EVERY_SECONDS

    def stage_finished(self, artifact: Artifact) -> None:
        """Replace the bar by a line that stays."""
        if artifact.stage in self._current:
            self._bars.remove_task(self._current.pop(artifact.stage))
        color = "green" if artifact.status == "reused" else "cyan"
        # A reason may hold anything, a folder named [old] too.
        why = f"  [dim]{escape(artifact.reason)}[/dim]" if artifact.reason else ""
        self._console.print(
            f"[{color}]{artifact.status:<6}[/{color}] {artifact.stage:<10} {artifact.key[:12]} "
            f"{artifact.seconds:7.1f} s{why}",
            highlight=False,
        )

    def said(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, markup=False)


def show_summary(console: Console, summary: Summary) -> None:
    """Print what came out of a run."""
    console.print()
    if summary.books:
        console.print(_sentence(summary.books), highlight=False, markup=False)
    for sample in summary.samples[:SAMPLES_SHOWN]:
        text = Text(sample["prompt"], style="bold")
        text.append(sample["text"], style="not bold")
        console.print(Panel(text, title="the model continues", title_align="left", border_style="dim"))
    if summary.val_bits_per_byte is not None:
        console.print(
            f"[bold]{summary.val_bits_per_byte:.4f}[/bold] bits per byte on held-out text "
            f"(zstd -19 needs {_number(summary.zstd_bits_per_byte)}, "
            f"byte bigrams {_number(summary.bigram_bits_per_byte)})",
            highlight=False,
        )
    if summary.loss_spikes:
        told = f"the loss spiked in {summary.loss_spikes:,} step(s): the log of the training names them"
        console.print(told, highlight=False, markup=False)
    for figure in _figures(summary):
        console.print(figure, highlight=False, markup=False)
    if summary.gate and not summary.model_version:
        console.print(f"not registered: {summary.gate}", highlight=False, markup=False)
    elif summary.gate:
        aliases = ", ".join(summary.aliases) or "no alias"
        console.print(
            f"{summary.model_name} version {summary.model_version} ({aliases}): {summary.gate}",
            highlight=False,
            markup=False,
        )
    where = summary.mlflow_url or summary.mlflow_run_id
    if where:
        console.print(f"MLflow run {where}", highlight=False, markup=False, soft_wrap=True)
    if summary.model_path:
        console.print(f"model {summary.model_path}", highlight=False, markup=False, soft_wrap=True)
    if summary.data_report:
        console.print(f"data report {summary.data_report}", highlight=False, markup=False, soft_wrap=True)
    if summary.quarantine:
        console.print(f"set aside: {summary.quarantine}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{summary.wall_seconds:.1f} s in all, with the start of the servers", highlight=False)


def _figures(summary: Summary) -> list[str]:
    """Those of the sets, and what the training cost as far as it is known."""
    lines = [
        f"{one.name}: {one.value:.4f} {one.measure.replace('_', ' ')} over {one.items:,}"
        for one in summary.sets
        if not one.group
    ]
    return [*lines, _costs(summary)] if summary.tokens_per_second else lines


def _costs(summary: Summary) -> str:
    costs = summary.costs
    speed = f"trained at {summary.tokens_per_second:,.0f} tokens/s"
    if "mfu" in costs:
        speed += f", MFU {costs['mfu']:.1%}"
    if "step_seconds" in costs:
        speed += f" (median step: {told(costs['step_seconds'], TIMES)})"
    parts = [speed]
    if costs.get("tokens_per_joule"):
        most = "at most " if "covers" in costs else ""
        parts.append(f"{most}{costs['tokens_per_joule']:,.3g} tokens/J ({costs['energy']})")
    elif "energy" in costs:
        parts.append(f"energy {costs['energy']}")
    if isinstance(costs.get("cost"), float):
        least = "at least " if "covers" in costs else ""
        parts.append(f"{least}{costs['cost']:,.3g} {costs['currency']}")
    if costs.get("tokens_repeated"):
        parts.append(f"{costs['tokens_repeated']:,} tokens done again after a stop")
    if "covers" in costs:
        parts.append(f"costs cover {costs['covers']}")
    return ", ".join(parts)


def _sentence(books: Mapping[str, Any]) -> str:
    """Documents in = kept + ..., in words."""
    parts = {"kept": books["kept"]}
    parts |= {f"dropped by {rule}": count for rule, count in books["dropped"].items()}
    parts |= {
        name.replace("_", " "): books[name]
        for name in ("contaminated", "duplicates", "near_duplicates", "quarantined")
    }
    terms = " + ".join(f"{count:,} {name}" for name, count in parts.items() if count)
    return f"{books['documents_in']:,} documents = {terms}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


STATE_COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}


def show_finding(console: Console, state: str, name: str, found: str, remedy: str) -> None:
    """Print one finding of the doctor, its remedy below it."""
    color = STATE_COLORS[state]
    label = f"{name:<10} " if name else ""
    console.print(f"[{color}]{state:<8}[/{color}] {label}{escape(found)}", highlight=False)
    if remedy:
        console.print(f"{'':<{9 + len(label)}}{remedy}", highlight=False, markup=False)


def show_survey(console: Console, survey: Survey) -> None:
    """Print what a sample of a source shows."""
    size = told(survey.num_bytes, BYTES)
    console.print(f"[bold]{escape(survey.source)}[/bold]: {survey.files:,} files, {size}", highlight=False)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in survey.suffixes.most_common())
    lost = survey.quarantined.total()
    console.print(
        f"  sample: {survey.sampled} files or parts ({kinds}), {survey.records:,} records, {lost:,} broken",
        highlight=False,
    )
    if survey.chars:
        chars = sorted(survey.chars)
        places = (chars[len(chars) // 10], chars[len(chars) // 2], chars[len(chars) * 9 // 10])
        tenth, median, most = places
        console.print(
            f"  characters: {tenth:,} / {median:,} / {most:,} (10th, 50th, 90th percentile)", highlight=False
        )
    if survey.fields:
        names = ", ".join(name for name, _ in survey.fields.most_common(12))
        console.print(f"  fields: {names}", highlight=False, markup=False)
    for finding in survey.findings:
        show_finding(console, finding.state, "", finding.found, finding.remedy)
