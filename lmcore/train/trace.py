"""What a trace of torch's profiler says of a step: its parts, and when communication alone was under way."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.clock import ANNOTATION, OTHER, PARTS

STEP = ANNOTATION + "step"
_WAITS = ("c10d::", "_c10d_functional")
Span = tuple[float, float]


@dataclass(frozen=True)
class PartTimes:
    """A part of the steps of a trace.

    Attributes:
        seconds: All of it.
        exposed: Those in which a collective was under way and nothing was computed.
    """

    seconds: float
    exposed: float


Event = dict[str, Any]  # name, cat (its kind), tid (thread or stream), ts and dur in microseconds


def read_trace(trace: Path) -> list[Event]:
    """Return what has a duration in a trace in Chrome's format, zipped or not."""
    with gzip.open(trace) if trace.suffix == ".gz" else trace.open("rb") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


def exposed_communication(events: list[Event]) -> dict[str, PartTimes]:
    """Return the parts of the annotated steps of a trace, empty if there are none.

    On CUDA what kernels of NCCL did while no other work of the device ran; on CPU what gloo did while the
    thread that trains was in no operation of ATen.
    """
    on_gpu = _is_of_gpu(events)
    annotations = [
        event
        for event in events
        if event.get("cat") == ("gpu_user_annotation" if on_gpu else "user_annotation")
        and event["name"].startswith(ANNOTATION)
    ]
    if not annotations:
        return {}
    if on_gpu:
        work = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
        sent = union(_span(event) for event in work if "nccl" in event["name"].lower())
        computed = union(_span(event) for event in work if "nccl" not in event["name"].lower())
    else:
        thread = annotations[0]["tid"]
        ours = [event for event in events if event["tid"] == thread and event.get("cat") == "cpu_op"]
        sent = union(_span(event) for event in events if event["name"].startswith("gloo:"))
        waited = union(_span(event) for event in ours if event["name"].startswith(_WAITS))
        computed = subtract(union(_span(e) for e in ours if e["name"].startswith("aten::")), waited)
    alone = subtract(sent, computed)
    parts = exclusive((event["name"].removeprefix(ANNOTATION), *_span(event)) for event in annotations)
    return {
        name: PartTimes(length(spans) / 1e6, length(intersect(spans, alone)) / 1e6)
        for name, spans in parts.items()
    }


def largest_operators(events: list[Event], number: int) -> list[tuple[str, float, int]]:
    """Return name, seconds and calls of the operators that took longest.

    Kernels of a GPU, or else operators of the CPU, of all threads, without those inside of them.
    """
    if _is_of_gpu(events):
        timed = [(event["name"], event["dur"]) for event in events if event.get("cat") == "kernel"]
    else:
        timed = _own_times([event for event in events if event.get("cat") == "cpu_op"])
    found: dict[str, tuple[float, int]] = {}
    for name, duration in timed:
        seconds, calls = found.get(name, (0.0, 0))
        found[name] = (seconds + duration / 1e6, calls + 1)
    return sorted(((name, *told) for name, told in found.items()), key=lambda row: -row[1])[:number]


def _own_times(events: list[Event]) -> Iterator[tuple[str, float]]:
    """Name and duration of each operator, less what those inside of it took."""
    around: list[list[Any]] = []  # thread, name, stop, own duration: one in another
    for event in sorted(events, key=lambda event: (event["tid"], event["ts"], -event["dur"])):
        start, stop = _span(event)
        while around and (around[-1][0] != event["tid"] or around[-1][2] <= start):
            _, name, _, own = around.pop()
            yield name, own
        if around:
            around[-1][3] -= event["dur"]
        around.append([event["tid"], event["name"], stop, event["dur"]])
    yield from ((name, own) for _, name, _, own in around)


def _is_of_gpu(events: list[Event]) -> bool:
    return any(event.get("cat") == "kernel" for event in events)


def _span(event: Event) -> Span:
    return event["ts"], event["ts"] + event["dur"]  # microseconds


def exclusive(annotations: Iterable[tuple[str, float, float]]) -> dict[str, list[Span]]:
    """Give each moment to the innermost of the annotations (name, start, stop) that it lies in."""
    names = ("step", *PARTS)
    inner = sorted((a for a in annotations if a[0] in names), key=lambda a: a[2] - a[1])
    parts: dict[str, list[Span]] = {}
    taken: list[Span] = []
    for name, start, stop in inner:
        own = subtract([(start, stop)], taken)
        parts.setdefault(OTHER if name == "step" else name, []).extend(own)
        taken = union([*taken, (start, stop)])
    return {name: union(spans) for name, spans in parts.items()}


# --- sets of times, as spans in order that do not touch --------------------------------------------


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the times in any of ``spans``."""
    found: list[Span] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        elif stop > start:
            found.append((start, stop))
    return found


def intersect(left: list[Span], right: list[Span]) -> list[Span]:
    """Return the times in both of two unions."""
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        start, stop = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if stop > start:
            found.append((start, stop))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return found


def subtract(left: list[Span], right: list[Span]) -> list[Span]:
    """Return the times of one union that are not in the other."""
    edges = [float("-inf"), *(edge for span in right for edge in span), float("inf")]
    return intersect(left, list(zip(edges[::2], edges[1::2], strict=True)))


def length(spans: Iterable[Span]) -> float:
    """Return how long the times are together."""
    return sum(stop - start for start, stop in spans)
