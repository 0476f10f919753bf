"""Which failures of a stage are tried again."""

import errno

import pytest

from lmcore.errors import ConfigError, DataError, ProcessDied
from tasks.stages import is_transient


class Failed:
    """What Prefect hands over: a state whose result is an error."""

    def __init__(self, error):
        self._error = error

    def result(self):
        raise self._error


def caused_by(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ProcessDied("a worker died"), True),
        (ConfigError("wrong"), False),
        (caused_by(DataError("a download broke off"), ConnectionResetError()), True),
        (OSError(errno.EIO, "input/output error"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError(), True),
        (FileNotFoundError(errno.ENOENT, "not there"), False),
        (PermissionError(errno.EACCES, "not ours"), False),
        (IsADirectoryError(errno.EISDIR, "a folder"), False),
        (KeyError("x"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, again):
    assert is_transient(None, None, Failed(error)) is again
