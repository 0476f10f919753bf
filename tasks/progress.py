"""Where tasks say how far they are: to whoever listens in this process, and to Prefect."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from logging import Logger, LoggerAdapter
from typing import Any, Protocol

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from lmcore.progress import Progress
from lmcore.store import Artifact

PREFECT_EVERY_SECONDS = 3.0


class Listener(Protocol):
    """Shows progress to a person at a terminal."""

    def stage_started(self, name: str) -> None:
        """A stage begins."""

    def advanced(self, stage: str, label: str, done: float, total: float, unit: str) -> None:
        """``done`` of ``total`` ``unit`` of a stage's step ``label`` are finished."""

    def stage_finished(self, artifact: Artifact) -> None:
        """A stage has its artifact."""

    def said(self, message: str) -> None:
        """Something worth a line happened."""


_listeners: list[Listener] = []


@contextlib.contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Let ``listener`` hear all tasks of this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        if listener in _listeners:
            _listeners.remove(listener)


def started(stage: str) -> None:
    """Tell that ``stage`` begins."""
    _tell(lambda listener: listener.stage_started(stage))


def finished(artifact: Artifact) -> None:
    """Tell that a stage has its artifact."""
    _tell(lambda listener: listener.stage_finished(artifact))


def note(logger: Logger | LoggerAdapter[Any], message: str) -> None:
    """Tell one line to the run's log, and to a person at the terminal."""
    logger.warning("%s", message)
    _tell(lambda listener: listener.said(message))


def _tell(what: Callable[[Listener], object]) -> None:
    for listener in tuple(_listeners):
        try:
            what(listener)
        except Exception:  # a picture that cannot be drawn must not stop the work
            _listeners.remove(listener)
            logging.getLogger(__name__).exception("a listener failed and hears no more")


@contextlib.contextmanager
def reporter(stage: str) -> Iterator[Progress]:
    """A progress callback for ``stage`` that tells the listeners, and Prefect every few seconds."""
    bar = _PrefectBar(stage)

    def report(label: str, done: float, total: float, unit: str) -> None:
        _tell(lambda listener: listener.advanced(stage, label, done, total, unit))
        bar.show(label, done, total, unit)

    yield report
    bar.finish()


class _PrefectBar:
    """A progress artifact of the running task, updated rarely: each update is a request."""

    def __init__(self, stage: str) -> None:
        self._key = f"progress-{stage}"
        self._artifact = None
        self._text = ""
        self._next = time.monotonic() + PREFECT_EVERY_SECONDS

    def show(self, label: str, done: float, total: float, unit: str) -> None:
        self._text = f"{label}: {done:,.0f} of {total:,.0f} {unit}"
        if time.monotonic() < self._next or TaskRunContext.get() is None:
            return
        self._publish(100.0 * min(done / total, 1.0) if total else 0.0)
        self._next = time.monotonic() + PREFECT_EVERY_SECONDS

    def finish(self) -> None:
        """Show the last that was heard, as finished."""
        if self._artifact is not None:
            self._publish(100.0)

    def _publish(self, percent: float) -> None:
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, key=self._key, description=self._text)
            else:
                update_progress_artifact(self._artifact, percent, description=self._text)
        except Exception as error:  # a server that hiccups must not stop the work; the next one may arrive
            logging.getLogger(__name__).warning("progress of %s was not shown: %s", self._key, error)
