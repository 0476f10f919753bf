import hashlib
import os
import random

import fsspec
import pytest

from lmcore.config import DataConfig, SourceConfig
from lmcore.data import sources
from lmcore.data.sources import take_inventory
from lmcore.errors import DataError


def config(path, **options):
    return DataConfig(sources=(SourceConfig(name="s", kind="files", path=str(path), **options),))


@pytest.fixture
def corpus(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.jsonl"):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 10)
    return tmp_path / "raw"


def test_files_come_in_sorted_order_with_names_below_the_root(corpus):
    inventory = take_inventory(config(corpus / "**"))
    assert [file.name for file in inventory.files] == ["a.txt", "b.txt", "deep/c.jsonl"]
    assert inventory.total_bytes == sum(path.stat().st_size for path in corpus.rglob("*.*"))


def test_the_digest_follows_content_and_names_but_not_place(corpus, tmp_path):
    first = take_inventory(config(corpus / "*.txt")).digest
    moved = corpus.rename(tmp_path / "elsewhere")
    assert take_inventory(config(moved / "*.txt")).digest == first
    (moved / "a.txt").write_text("other")
    changed = take_inventory(config(moved / "*.txt")).digest
    (moved / "a.txt").rename(moved / "z.txt")
    assert len({first, changed, take_inventory(config(moved / "*.txt")).digest}) == 3


@pytest.mark.parametrize("seed", range(20))
def test_a_file_of_lines_is_cut_behind_the_first_line_end_at_the_size_of_a_part(tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    monkeypatch.setattr(sources, "PART_BYTES", 50)
    monkeypatch.setattr(sources, "_LINE_BYTES", draw.choice([1, 7, 1 << 16]))
    lines = [b"x" * draw.choice([0, 1, 9, 48, 49, 50, 120]) for _ in range(draw.randrange(1, 40))]
    raw = b"\n".join(lines) + b"\n" * draw.randrange(2)
    (tmp_path / "a.jsonl").write_bytes(raw)
    parts = take_inventory(config(tmp_path / "a.jsonl")).files
    start = 0
    for part in parts:
        end = part.start + part.num_bytes
        taken = raw[part.start : end]
        assert (part.start, part.first_record) == (start, raw[:start].count(b"\n"))
        assert part.sha256 == hashlib.sha256(taken).hexdigest()
        if end < len(raw):  # no line end between the size of a part and its last byte
            assert taken.endswith(b"\n")
            assert b"\n" not in taken[49:-1]
            assert len(taken) >= 50
        else:
            assert b"\n" not in taken[49:-1]
        start = end
    assert start == len(raw)


@pytest.mark.parametrize("seed", range(5))
def test_a_remote_file_of_lines_is_cut_where_a_local_one_is_and_read_once(tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    monkeypatch.setattr(sources, "PART_BYTES", 50)
    raw = b"\n".join(b"x" * draw.choice([0, 1, 9, 48, 49, 50, 120]) for _ in range(draw.randrange(4, 40)))
    (tmp_path / "a.jsonl").write_bytes(raw)
    memory = fsspec.filesystem("memory")
    memory.pipe("/inventory-test/a.jsonl", raw)
    opened = []
    open_file = type(memory)._open

    def counted(self, path, *args, **kwargs):
        opened.append(path)
        return open_file(self, path, *args, **kwargs)

    monkeypatch.setattr(type(memory), "_open", counted)
    remote = take_inventory(config("memory://inventory-test/a.jsonl")).files
    local = take_inventory(config(tmp_path / "a.jsonl")).files
    kept = ("start", "num_bytes", "first_record", "sha256")
    assert [[getattr(part, name) for name in kept] for part in remote] == [
        [getattr(part, name) for name in kept] for part in local
    ]
    assert len(opened) == 1


def test_what_a_cap_leaves_out_is_counted(corpus):
    size = (corpus / "a.txt").stat().st_size
    inventory = take_inventory(config(corpus / "*.txt", max_bytes=2 * size - 1))
    assert [file.name for file in inventory.files] == ["a.txt"]
    assert inventory.summary()["sources"]["s"]["files_left_out"] == 1
    with pytest.raises(DataError, match="Raise max_bytes"):
        take_inventory(config(corpus / "*.txt", max_bytes=1))


def test_a_glob_that_matches_nothing_says_where_it_looked_and_what_is_near(corpus):
    with pytest.raises(DataError, match=r"raw_typo/\*\.txt.*looked in .*; nearest there: raw"):
        take_inventory(config(corpus.parent / "raw_typo" / "*.txt"))
    with pytest.raises(DataError, match=r"matches no file.*c\.jsonl"):
        take_inventory(config(corpus / "deep" / "c.json"))
    with pytest.raises(DataError, match=r"It is a folder: write .*/\*\*/"):
        take_inventory(config(corpus))


def test_a_kind_that_is_not_supported_is_refused_by_name(corpus):
    (corpus / "notes.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"\.parquet, found 1 of 3, first .*notes\.docx"):
        take_inventory(config(corpus / "*.*"))


def test_a_file_name_need_not_be_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"\xe9t\xe9.txt")).write_text("x")
    inventory = take_inventory(config(tmp_path / "*.txt"))
    assert inventory.files[0].name == r"\xe9t\xe9.txt"
    assert inventory.files[0].open().read() == b"x"
    assert inventory.digest


def test_other_file_systems_are_read_the_same(corpus):
    memory = fsspec.filesystem("memory")
    for path in corpus.glob("*.txt"):
        memory.pipe(f"/inventory-test/{path.name}", path.read_bytes())
    remote = take_inventory(config("memory://inventory-test/*.txt"))
    assert remote.digest == take_inventory(config(corpus / "*.txt")).digest


def test_the_standard_library_is_found():
    source = SourceConfig(name="python", max_bytes=2_000_000)
    inventory = take_inventory(DataConfig(sources=(source,)))
    names = [file.name for file in inventory.files]
    assert names == sorted(names)
    assert "abc.py" in names
    assert not any("site-packages" in name for name in names)
