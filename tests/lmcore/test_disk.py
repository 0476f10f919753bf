"""Errors of disks are told with the path, the room that is left, and what to do."""

import errno
import os
import re

import pytest

from lmcore.disk import FAULTS, disk_errors, free_bytes
from lmcore.errors import StorageError
from lmcore.run_directory import EventLog, write_result
from lmcore.store import Identity, Stage, Store, write_atomically

FULL = "/dev/full"  # every write to it fails with ENOSPC


@pytest.mark.parametrize(
    ("number", "happened", "remedy"),
    [
        (errno.ENOSPC, "was full", "Free room there"),
        (errno.EDQUOT, "was full", "Free room there"),
        (errno.EROFS, "may not be written", "permissions"),
        (errno.EACCES, "may not be written", "permissions"),
        (errno.EIO, "failed", "dmesg"),
        (errno.ESTALE, "failed", "dmesg"),
    ],
)
def test_a_fault_of_the_disk_names_path_room_and_remedy(tmp_path, number, happened, remedy):
    place = tmp_path / "not" / "there"
    for error in (OSError(number, os.strerror(number)), OSError(number, os.strerror(number), str(place))):
        with pytest.raises(StorageError) as caught, disk_errors(place, "the thing was written"):
            raise error
        told = str(caught.value)
        assert f"the disk {happened} before the thing was written" in told
        assert f"{os.strerror(number)} at {place} (errno {number}, " in told
        assert re.search(r"[\d,.]+ MB free", told)
        assert remedy in told
        assert "what was finished is kept" in told


def test_other_errors_are_none_of_the_disks(tmp_path):
    for number in (errno.ENOENT, errno.ECONNRESET, errno.EMFILE, None):
        with pytest.raises(OSError, match="other"), disk_errors(tmp_path, "it was written"):
            raise OSError(number, "other") if number else OSError("other")
    assert errno.ENOENT not in FAULTS


def test_free_room_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    assert free_bytes(tmp_path / "a" / "b" / "c") > 0


def test_events_on_a_full_disk_say_so(tmp_path):
    (tmp_path / "events.jsonl").symlink_to(FULL)
    events = EventLog(tmp_path)
    with pytest.raises(StorageError, match=r"was full before a row of events was written.*events\.jsonl"):
        events.write("step", 1)


def read_only(folder):
    """Make writing below ``folder`` fail, for root too."""
    if os.geteuid():
        folder.chmod(0o500)
        return True
    return os.system(f"mount -t tmpfs -o size=64k,ro tmpfs {folder} 2>/dev/null") == 0  # noqa: S605


def test_results_and_artifacts_on_a_read_only_disk_say_so(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    assert read_only(folder), "mounting a small disk needs root, which CI has"
    try:
        for write in (
            lambda: write_result(folder, {"status": "completed"}),
            lambda: write_atomically(folder / "x.json", "{}"),
            lambda: EventLog(folder),
            lambda: Store(folder).ensure(Stage("demo", 1, Identity({}, {}), {}, deciding=()), lambda out: {}),
        ):
            with pytest.raises(StorageError, match=rf"may not be written before .* at {folder}.* MB free"):
                write()
    finally:
        if not os.geteuid():
            os.system(f"umount {folder}")  # noqa: S605
        else:
            folder.chmod(0o700)


def test_an_io_error_of_a_build_or_its_commit_is_the_stores_to_explain(tmp_path):
    def build(out):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match="failed before an artifact was built: cannot write below"):
        Store(tmp_path).ensure(Stage("demo", 1, Identity({}, {}), {}, deciding=()), build)
