"""Inputs of a run are compared with what their stage wrote, before anything is read."""

import json
import os
import random

import pytest

from lmcore.config import Identity
from lmcore.errors import DataError
from lmcore.store import MANIFEST, Stage, Store
from lmcore.verify import STAMPS, verify_inputs


@pytest.fixture
def artifact(tmp_path):
    def build(out):
        for name, size in {
            "train/a": 9000,
            "train/index.json": 40,
            "validation/b": 100,
            "report": 10,
        }.items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(random.Random(name).randbytes(size))
        return {}

    return Store(tmp_path / "store").ensure(Stage("tokens", 1, Identity({}, {}), {}, deciding=()), build)


def verify(artifact, run_dir, *folders, seconds=60.0, digest=""):
    return verify_inputs([(artifact.path, folders)], run_dir, seconds, digest or artifact.digest)


def test_a_bit_of_any_file_is_found(artifact, tmp_path):
    draw = random.Random(1)
    assert verify(artifact, tmp_path).notes() == []
    for path in [p for p in sorted(artifact.path.rglob("*")) if p.is_file()]:
        whole = path.read_bytes()
        for _ in range(5):
            content = bytearray(whole)
            content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            with pytest.raises(DataError, match=f"{path.name} is not what its stage wrote"):
                verify(artifact, tmp_path)
        for content in (whole[:-1], b"", whole + b"x"):
            path.write_bytes(content)
            if path.name != MANIFEST or len(content) < len(whole) - 1:
                with pytest.raises(DataError, match="not what its stage wrote"):
                    verify(artifact, tmp_path)
        path.write_bytes(whole)
    (artifact.path / "train" / "a").unlink()
    with pytest.raises(DataError, match="no a"):
        verify(artifact, tmp_path)


def test_files_that_are_not_used_are_not_read(artifact, tmp_path):
    (artifact.path / "report").write_text("another")
    assert verify(artifact, tmp_path, "train", "validation").hashed_bytes == 9140
    with pytest.raises(DataError, match="report"):
        verify(artifact, tmp_path)


def test_what_was_whole_and_has_not_changed_is_not_read_again(artifact, tmp_path):
    assert verify(artifact, tmp_path).hashed_bytes == 9150
    again = verify(artifact, tmp_path)
    assert (again.hashed_bytes, again.known_bytes) == (0, 9150)
    os.utime(artifact.path / "report")
    assert verify(artifact, tmp_path).hashed_bytes == 10
    (tmp_path / STAMPS).write_text("torn")
    assert verify(artifact, tmp_path).hashed_bytes == 9150


def test_the_time_is_bounded_and_what_is_left_is_said(artifact, tmp_path):
    found = verify(artifact, tmp_path, seconds=1e-9)
    assert len(found.left) == 4
    assert "4 file(s) were not verified" in found.notes()[0]
    assert verify(artifact, tmp_path).hashed_bytes == 9150  # what was left has no stamp
    assert verify(artifact, tmp_path, seconds=0.0).notes() == []
    # Sizes are compared whatever the time.
    (artifact.path / "train" / "a").write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes, not 9,000"):
        verify(artifact, tmp_path, seconds=1e-9)


def test_tokens_of_another_artifact_are_refused_and_those_of_others_read_with_a_word(artifact, tmp_path):
    with pytest.raises(DataError, match="not eeeeee"):
        verify(artifact, tmp_path, digest="e" * 64)
    (artifact.path / MANIFEST).unlink()
    assert "read unverified" in verify(artifact, tmp_path).notes()[0]
    (artifact.path / MANIFEST).write_text(json.dumps({"files": []}))
    with pytest.raises(DataError, match="KeyError"):
        verify(artifact, tmp_path)
