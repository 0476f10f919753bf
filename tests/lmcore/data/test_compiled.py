import json
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

import lmcore.data.compiled as module
from lmcore.data.compiled import compiled, inlined, kept_table


class Pair(NamedTuple):
    left: np.ndarray
    right: np.ndarray


@inlined
def weight(number):
    return np.int64(number) * np.int64(2_000_000_011)


@compiled
def add(pair, factor, out):
    for i in range(len(out)):
        for j in range(pair.right.shape[1]):
            out[i] += pair.left[i] * factor + weight(pair.right[i, j])


@compiled
def takes_bytes(data, out):
    for i in range(len(data)):
        out[0] += data[i]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_cache_folder", lambda _module: tmp_path / "compiled")
    for function in (add, takes_bytes):
        monkeypatch.setattr(function, "_loaded", {})
    return tmp_path / "compiled"


def run_add():
    left, right = np.arange(3, dtype=np.uint8), np.arange(6, dtype=np.int32).reshape(3, 2)
    out = np.zeros(3, np.int64)
    add(Pair(left, right), 7, out)
    expected = left.astype(np.int64) * 14 + right.sum(1) * 2_000_000_011
    assert out.tolist() == expected.tolist()


def test_what_was_compiled_is_loaded(folder):
    run_add()
    (path,) = folder.iterdir()
    before = path.stat()
    add._loaded.clear()
    run_add()
    assert path.stat() == before


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-1] + b"?", lambda raw: b""]
)
def test_damaged_code_is_never_run_but_made_again(folder, spoil):
    run_add()
    (path,) = folder.iterdir()
    good = path.read_bytes()
    path.write_bytes(spoil(good))
    add._loaded.clear()
    run_add()
    (path,) = folder.iterdir()
    head, code = path.read_bytes().split(b"\n", 1)
    assert json.loads(head) == json.loads(good.split(b"\n", 1)[0])
    assert code == good.split(b"\n", 1)[1]


@pytest.mark.parametrize("left", [0, 7, 100])
def test_a_table_that_was_cut_off_is_made_again(folder, left):
    made = []

    def table():
        made.append(1)
        return np.arange(20)

    kept_table(table)()
    (path,) = folder.iterdir()
    for size, times in ((path.stat().st_size, 1), (left, 2)):
        path.write_bytes(path.read_bytes()[:size])
        assert kept_table(table)().tolist() == list(range(20))
        assert len(made) == times


def test_each_kind_of_arguments_has_code_of_its_own(folder):
    out = np.zeros(1, np.int64)
    takes_bytes(np.array([200, 100], np.uint8), out)
    takes_bytes(np.array([200, 100], np.int64) << 40, out)
    frozen = np.array([1], np.uint8)
    frozen.flags.writeable = False
    takes_bytes(frozen, out)
    assert out[0] == 301 + (300 << 40)
    assert len(list(folder.iterdir())) == 3


def test_arrays_with_gaps_are_refused(folder):
    with pytest.raises(ValueError, match="not contiguous"):
        takes_bytes(np.zeros(4, np.uint8)[::2], np.zeros(1, np.int64))


def test_a_folder_that_cannot_be_written_costs_only_time(folder):
    folder.write_text("a file")
    run_add()


def test_numba_is_not_loaded_for_what_is_there():
    script = (
        "import sys, numpy as np\n"
        "from lmcore.data.minhash import unite\n"
        "unite(np.array([[1, 0]]), np.arange(2))\n"
        "print('numba' in sys.modules)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_code_is_kept_for_the_sources_that_it_is_made_of():
    names = {path.stem for path in module._sources("lmcore.data.minhash")}
    assert {"minhash", "compiled", "lanes", "words", "characters"} <= names
    assert not names & {"warc", "documents", "sources"}
    # Imports of other forms would be missed.
    for path in module.Path(module.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "lmcore.data.compiled" in text:
            assert "import lmcore.data" not in text
            assert "from lmcore.data import" not in text
