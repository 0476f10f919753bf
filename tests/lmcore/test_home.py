"""The home must be a folder that can be written: else the variable is named, and what it must be."""

import contextlib
import errno
import os
import stat

import pytest

from lmcore.errors import ConfigError, StorageError
from lmcore.home import VARIABLE, Home


def a_file(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def below_a_file(tmp_path):
    return a_file(tmp_path) / "a" / "b"


def a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return tmp_path / "a"


def a_link_to_a_file(tmp_path):
    (tmp_path / "link").symlink_to(a_file(tmp_path))
    return tmp_path / "link"


@pytest.mark.parametrize("make", [a_file, below_a_file, a_pipe, links_in_a_circle, a_link_to_a_file])
def test_what_can_be_no_folder_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.setenv(VARIABLE, str(make(tmp_path)))
    with pytest.raises(ConfigError, match=rf"{VARIABLE} is {tmp_path}.*Set {VARIABLE} to a folder"):
        Home.here().require_writable()


def test_a_user_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "~no-such-user-here/mill")
    with pytest.raises(ConfigError, match=f"{VARIABLE} is ~no-such-user-here"):
        Home.here()


def test_a_file_in_the_place_of_the_usual_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".gristmill").write_text("")
    with pytest.raises(ConfigError, match=rf"a file at {tmp_path}/.gristmill \({VARIABLE} is not set\)"):
        Home.here().make()


@pytest.mark.parametrize("path", ["/proc/mill", "/sys/mill", "/" + "x" * 300])
def test_where_nobody_can_write_is_told(monkeypatch, path):
    monkeypatch.setenv(VARIABLE, path)
    with pytest.raises(StorageError, match=f"cannot be written.*Set {VARIABLE}"):
        Home.here().require_writable()


@pytest.mark.parametrize("folder", ["", "runs", "store"])
def test_a_home_that_became_read_only_is_told_before_any_work(tmp_path, monkeypatch, folder):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "home"))
    home = Home.here()
    home.require_writable()
    for path in (home.runs, home.store):
        path.mkdir()
    home.require_writable()
    locked = home.root / folder

    def refuse(**where):  # to root no folder is read-only
        if where["dir"] == locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return contextlib.nullcontext()

    if os.geteuid() == 0:
        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    else:
        locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StorageError, match=rf"{locked}, cannot be written.*Permission denied"):
        home.require_writable()
