"""Showing progress never stops the work, whatever the screen makes of it."""

import io
import logging

from rich.console import Console

from flows.display import Display
from lmcore.store import Artifact
from tasks import progress

HOSTILE = "[/bold] data/[old]/x[ went from [red] to [/]"


def artifact(tmp_path, reason):
    return Artifact("train", "0" * 64, tmp_path, "built", reason, 1.0)


def test_what_looks_like_markup_is_shown_as_it_is(tmp_path):
    screen = io.StringIO()
    with Display(Console(file=screen, width=200)) as display, progress.listen(display):
        progress.started("train")
        with progress.reporter("train") as report:
            report(HOSTILE, 1, 2, "steps")
        progress.finished(artifact(tmp_path, HOSTILE))
        progress.note(logging.getLogger("test"), HOSTILE)
    assert screen.getvalue().count(HOSTILE) == 2


def test_a_listener_that_fails_hears_no_more_and_stops_nothing(tmp_path):
    class Broken(Display):
        calls = 0

        def stage_started(self, name):
            Broken.calls += 1
            raise RuntimeError("the screen is on fire")

    screen = io.StringIO()
    with (
        progress.listen(Broken(Console(file=io.StringIO()))),
        Display(Console(file=screen)) as good,
        progress.listen(good),
    ):
        progress.started("train")
        progress.started("evaluate")
        progress.finished(artifact(tmp_path, "because"))
    assert Broken.calls == 1
    assert "because" in screen.getvalue()
