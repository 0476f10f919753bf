"""Signals that stop a command in order: Ctrl-C, SIGTERM, and SIGHUP of a terminal that was closed.

Each raises ``KeyboardInterrupt`` where the command is at work, so that what was done is saved, and MLflow and
Prefect are told. The command then ends with 128 and the number of the signal, as shells expect it.
"""

from __future__ import annotations

import os
import signal
from typing import Any

_ONCE = (signal.SIGTERM, signal.SIGHUP)  # a closed terminal sends more than one
_first = signal.SIGINT
_terminals = set[int]()  # of the standard descriptors: one that is gone no longer says that it was one


def listen() -> None:
    """Handle the signals from now on; one that is ignored, as under nohup, stays so."""
    _terminals.update(number for number in (0, 1, 2) if os.isatty(number))
    for number in (signal.SIGINT, *_ONCE):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def exit_code() -> int:
    """The exit code of a command that a signal has stopped: 130, 143 or 129."""
    return 128 + _first


def _stop(number: int, _frame: Any) -> None:
    global _first
    _first = signal.Signals(number)
    for once in _ONCE:
        if signal.getsignal(once) is _stop:
            signal.signal(once, signal.SIG_IGN)  # again only by Ctrl-C: the rest is being saved
    if number == signal.SIGHUP:
        _let_go_of_the_terminal()
    raise KeyboardInterrupt


def _let_go_of_the_terminal() -> None:
    """Write into nothing where a terminal was: each line would be an error, and nothing would be saved."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in _terminals:
        os.dup2(nothing, descriptor)
    os.close(nothing)
