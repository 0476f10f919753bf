"""Pictures of a run, as PNG on white, which a light page and a dark one show alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmcore.train.bill import SHARE
from tasks import runs
from tasks.pictures import losses

# In the order in which they lie upon one another; the rest of the parts is grey.
_PART_COLOURS = {
    "forward": "#4878a8",
    "backward": "#2f4b6e",
    "optimizer": "#7a5195",
    "communication": "#d1495b",
    "communication_sampled": "#d1495b",
    "data": "#66a182",
    "checkpoint": "#edae49",
    "validation": "#c9b79c",
    "measuring": "#8d8d8d",
    "other": "#cfcfcf",
}
_BLUE = "#4878a8"


def draw_loss(events: Path, target: Path) -> None:
    """Draw training and validation loss (nats a token) over tokens, from a training run's events."""
    rows, _ = runs.read_events(events, 0, max_bytes=events.stat().st_size)
    # Of steps that were replayed after a resume, the last row counts.
    by_step = {(row["kind"], row.get("step")): row for row in rows if row.get("values")}
    figure, axes = _axes("Loss", "tokens", "nats per token")
    for kind, metric, style in (("step", "train/loss", "-"), ("validation", "train/validation_loss", "o--")):
        points = [
            (row["tokens"], row["values"][metric])
            for (row_kind, _), row in by_step.items()
            if row_kind == kind and metric in row["values"]
        ]
        if points:
            axes.plot(*zip(*sorted(points), strict=True), style, label=metric, markersize=4, linewidth=1.2)
    axes.legend(frameon=False)
    figure.savefig(target)


def draw_funnel(funnel: Sequence[tuple[str, int]], target: Path) -> None:
    """Draw how many documents went in, were left by each rule that dropped some, and were kept."""
    labels, counts, _ = zip(*losses(funnel), strict=True)
    figure, axes = _axes("Documents", "documents", "")
    figure.set_figheight(max(figure.get_figheight(), 1.2 + 0.22 * len(labels)))
    bars = axes.barh(labels, counts, color=_BLUE)
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    figure.savefig(target)


def draw_costs(events: Path, target: Path) -> bool:
    """Draw what the time of steps went into, as shares over steps; return whether there was anything."""
    rows = _cost_rows(events)
    found = {name.removeprefix(SHARE) for row in rows for name in row["values"] if name.startswith(SHARE)}
    if not found:
        return False
    parts = [part for part in _PART_COLOURS if part in found]
    # A row tells of the steps before it: the first one from their beginning.
    places = [max(0, rows[0]["step"] - rows[0]["steps"]), *(row["step"] for row in rows)]
    heights = [[row["values"].get(SHARE + part, 0.0) for row in (rows[0], *rows)] for part in parts]
    figure, axes = _axes("Where the time went", "steps", "share of time")
    axes.stackplot(
        places,
        heights,
        labels=[part.replace("_", " ") for part in parts],
        colors=[_PART_COLOURS[part] for part in parts],
        step="pre",
    )
    axes.set_xlim(places[0], places[-1])
    axes.set_ylim(0, 1)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(target)
    return True


def draw_energy(events: Path, target: Path) -> bool:
    """Draw tokens per joule and power over steps; return whether energy was measured at all."""
    rows = [row for row in _cost_rows(events) if "energy/tokens_per_joule" in row["values"]]
    if not rows:
        return False
    figure, axes = _axes(f"Energy by {rows[-1]['energy']}", "steps", "tokens per joule")
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["values"]["energy/tokens_per_joule"] for row in rows], color=_BLUE, linewidth=1.2)
    axes.set_ylim(bottom=0)
    power = axes.twinx()
    power.plot(steps, [row["values"]["energy/watts"] for row in rows], color="#d1495b", linewidth=1.0)
    power.set_ylabel("watts", color="#d1495b")
    power.set_ylim(bottom=0)
    power.spines[["top"]].set_visible(False)
    figure.savefig(target)
    return True


def _cost_rows(events: Path) -> list[dict[str, Any]]:
    """Rows of kind ``costs`` by step; of those that were replayed after a resume, the last."""
    rows, _ = runs.read_events(events, 0, max_bytes=events.stat().st_size)
    # Not what came before an attempt's first step: it is of no steps.
    by_step = {row["step"]: row for row in rows if row["kind"] == "costs" and row["steps"]}
    return [by_step[step] for step in sorted(by_step)]


def _axes(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    # The object interface draws without a display and without global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
