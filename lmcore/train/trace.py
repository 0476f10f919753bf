"""What a trace of torch's profiler says of a step: its parts, and when communication alone was under way."""

from __future__ import annotations

import bisect
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.clock import ANNOTATION, OTHER, PARTS

STEP = ANNOTATION + "step"
_WAITS = ("c10d::", "_c10d_functional")
_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
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


# Name, cat (its kind), tid (thread or stream), ts and dur in microseconds, args.
Event = dict[str, Any]


def read_trace(trace: Path) -> list[Event]:
    """Return what has a duration in a trace in Chrome's format, zipped or not."""
    with gzip.open(trace) if trace.suffix == ".gz" else trace.open("rb") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


def exposed_communication(events: list[Event]) -> dict[str, PartTimes]:
    """Return the parts of the annotated steps of a trace, empty if there are none.

    On CUDA what kernels of NCCL did while no other work of the device ran; on CPU what gloo did while the
    thread that trains was in no operation of ATen.
    """
    annotations = [
        event
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(ANNOTATION)
    ]
    if not annotations:
        return {}
    parts = exclusive((event["name"].removeprefix(ANNOTATION), *_span(event)) for event in annotations)
    if _is_of_gpu(events):
        work = [event for event in events if event.get("cat") in _DEVICE_WORK]
        sent = union(_span(event) for event in work if _sends(event))
        computed = union(_span(event) for event in work if not _sends(event))
        parts = _parts_of_device(work, events, parts)
    else:
        thread = annotations[0]["tid"]
        ours = [event for event in events if event["tid"] == thread and event.get("cat") == "cpu_op"]
        sent = union(_span(event) for event in events if event["name"].startswith("gloo:"))
        waited = union(_span(event) for event in ours if event["name"].startswith(_WAITS))
        computed = subtract(union(_span(e) for e in ours if e["name"].startswith("aten::")), waited)
    alone = subtract(sent, computed)
    return {
        name: PartTimes(length(spans) / 1e6, length(intersect(spans, alone)) / 1e6)
        for name, spans in parts.items()
    }


def _parts_of_device(
    work: list[Event], events: list[Event], host: dict[str, list[Span]]
) -> dict[str, list[Span]]:
    """Give the device's time to the parts that launched its work, whichever thread did.

    The profiler's own annotations of the device (gpu_user_annotation) hold nothing that another thread
    launched, and autograd has a thread for the backward pass.
    """
    work = sorted(work, key=lambda event: event["ts"])
    launches = _launch_times(work, events)
    part_at = _Lookup(host)
    own: list[str | None] = []
    for at in launches:
        # A launch that the trace does not hold: with the work before it.
        own.append(part_at(at) if at is not None else own[-1] if own else None)
    parts: dict[str | None, list[Span]] = {}
    busy: list[Span] = []
    # What computes goes before copies that run beside it, and both before collectives.
    for layer in (0, 1, 2):
        layered: dict[str | None, list[Span]] = {}
        for event, part in zip(work, own, strict=True):
            if _layer(event) == layer:
                layered.setdefault(part, []).append(_span(event))
        for part, spans in layered.items():
            free = subtract(union(spans), busy)
            busy = union([*busy, *free])
            parts.setdefault(part, []).extend(free)
    # Idle before the next work was launched, it waits for what the host is at; after that, for that work.
    begin = min(start for spans in host.values() for start, _ in spans)
    end = max(stop for spans in (busy, *host.values()) for _, stop in spans)
    starts = [event["ts"] for event in work]
    not_launched: list[Span] = []
    for start, stop in subtract([(begin, end)], busy):
        following = bisect.bisect_left(starts, stop)
        at = launches[following] if following < len(work) else None
        middle = stop if at is None else min(max(at, start), stop)
        not_launched.append((start, middle))
        if at is not None:
            parts.setdefault(own[following], []).append((middle, stop))
    for part, spans in host.items():
        parts.setdefault(part, []).extend(intersect(spans, union(not_launched)))
    return {part: union(spans) for part, spans in parts.items() if part is not None}


def _launch_times(work: list[Event], events: list[Event]) -> list[float | None]:
    """When the host launched each work: by the call that did, or else by the operator that it was for."""
    calls: dict[Any, float] = {}
    operators: dict[Any, float] = {}
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") in _LAUNCHES and "correlation" in arguments:
            calls[arguments["correlation"]] = event["ts"]
        elif event.get("cat") == "cpu_op" and "External id" in arguments:
            operators[arguments["External id"]] = event["ts"]
    told = [event.get("args", {}) for event in work]
    return [calls.get(a.get("correlation"), operators.get(a.get("External id"))) for a in told]


class _Lookup:
    """Which part a moment is of."""

    def __init__(self, parts: dict[str, list[Span]]) -> None:
        self._spans = sorted((*span, name) for name, spans in parts.items() for span in spans)
        self._starts = [start for start, _, _ in self._spans]

    def __call__(self, moment: float) -> str | None:
        place = bisect.bisect_right(self._starts, moment) - 1
        return self._spans[place][2] if place >= 0 and moment <= self._spans[place][1] else None


def _sends(event: Event) -> bool:
    return "nccl" in event["name"].lower()


def _layer(event: Event) -> int:
    return 2 if _sends(event) else int(event["cat"] != "kernel")


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
