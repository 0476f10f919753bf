import gzip
import hashlib
import json
import os
import subprocess
import sys

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.config import DataConfig, LimitsConfig, QualityConfig, SourceConfig
from lmcore.data import documents
from lmcore.data.books import Books
from lmcore.data.dedup import content_hash
from lmcore.data.documents import DOCUMENTS_SCHEMA, build_documents
from lmcore.data.quality import signals_of
from lmcore.data.sources import take_inventory
from lmcore.errors import DataError
from lmcore.progress import silent

SENTENCE = "the mill grinds {} and the water turns the wheel of number {} all day long\n"


def config(path, **options):
    sources = (SourceConfig(name="s", kind="files", path=str(path)),)
    return DataConfig(**({"sources": sources, "shard_bytes": 2_000, "workers": 1} | options))


def build(settings, out, progress=silent):
    out.mkdir()
    return build_documents(settings, take_inventory(settings), out, progress)


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in range(6):
        rows = [{"text": SENTENCE.format(i % 3, name) * (i + 1)} for i in range(8)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    (folder / "z.txt").write_bytes(("\u00e9t\u00e9\r\n" * 30).encode())
    return folder


def tree(directory):
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def total_books(out):
    entries = json.loads((out / "books.json").read_text())
    return Books.total(Books.from_json(entry["books"]) for entry in entries).to_json()


def test_the_bytes_are_the_same_for_any_number_of_workers(raw, tmp_path):
    alone = build(config(raw / "*"), tmp_path / "one")
    assert alone["shards"] > 2
    assert build(config(raw / "*", workers=2, executor="processes"), tmp_path / "two") == alone
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_documents_and_what_was_set_aside_can_be_looked_at(raw, tmp_path):
    summary = build(config(raw / "*"), tmp_path / "out")
    assert summary["books"] == total_books(tmp_path / "out")
    assert (summary["books"]["documents_in"], summary["books"]["quarantined"]) == (55, 6)
    rows = [
        row
        for path in sorted((tmp_path / "out" / "documents").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == summary["documents"] == summary["books"]["passed"]
    assert rows[0]["doc_id"] == "s:0.jsonl#0"
    assert rows[-1]["doc_id"] == "s:z.txt"
    assert rows[-1]["text"] == "\u00e9t\u00e9\n" * 30
    assert all(row["content_hash"] == content_hash(row["text"]) for row in rows)
    assert sum(len(row["text"].encode()) for row in rows) == summary["bytes"]
    bad = [
        row
        for path in sorted((tmp_path / "out" / "quarantine").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    assert [row["path"] for row in bad] == [f"{i}.jsonl" for i in range(6)]
    assert all(row["raw"] == b"{broken" and row["record"] == 8 for row in bad)
    for row in bad:
        assert (raw / row["path"]).read_bytes()[row["byte_offset"] :].startswith(row["raw"])


def test_figures_are_stored_beside_the_text(raw, tmp_path):
    for profile in ("code", "web", "none"):
        settings = config(raw / "*", quality=QualityConfig(profile=profile))
        build(settings, tmp_path / profile)
        for path in (tmp_path / profile / "documents").iterdir():
            table = pq.read_table(path)
            script = ["script"] if profile == "web" else []
            assert table.column_names[len(DOCUMENTS_SCHEMA) :] == [*signals_of(settings.quality), *script]
            assert table["chars"].to_pylist() == [len(text) for text in table["text"].to_pylist()]


@pytest.mark.parametrize(("room", "kept"), [(64_000_000, [50_000] * 3), (60_000, [50_000, 10_000, 4_096])])
def test_what_cannot_be_read_is_kept_whole_where_there_is_room(tmp_path, monkeypatch, room, kept):
    monkeypatch.setattr(documents, "_RAW_OF_SHARD", room)
    bad = [b'{"text": "' + bytes([0xFF]) * 49_988 + b'"}' for _ in range(3)]
    good = [b'{"text": "good"}'] * 3
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([*good, *bad]) + b"\n")
    summary = build(config(tmp_path / "*.jsonl", workers=1), tmp_path / "out")
    assert summary["books"]["quarantined"] == 3
    (path,) = (tmp_path / "out" / "quarantine").iterdir()
    rows = pq.read_table(path).to_pylist()
    assert [len(row["raw"]) for row in rows] == kept
    assert [row["num_bytes"] for row in rows] == [50_000] * 3
    assert all(line.startswith(row["raw"]) for line, row in zip(bad, rows, strict=True))


def test_too_many_bad_records_are_an_error_with_examples(raw, tmp_path):
    build(config(raw / "*", limits=LimitsConfig(quarantine_floor=6)), tmp_path / "a")
    build(config(raw / "*", limits=LimitsConfig(quarantine_floor=0, max_quarantined=0.2)), tmp_path / "b")
    with pytest.raises(DataError, match=r"at most 5 of 55.*found 6, for example s:0\.jsonl record 8 at byte"):
        build(config(raw / "*", limits=LimitsConfig(quarantine_floor=5)), tmp_path / "c")


def test_an_empty_corpus_is_an_error(raw, tmp_path):
    (raw / "nothing.jsonl").write_text("\n")
    with pytest.raises(DataError, match="found 0 read"):
        build(config(raw / "nothing.jsonl"), tmp_path / "b")


def test_more_than_one_broken_file_is_too_many(tmp_path):
    whole = "".join(json.dumps({"text": f"{i} " + "word\n" * 40}) + "\n" for i in range(200)).encode()
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(whole))
    (folder / "0.jsonl.gz").write_bytes(gzip.compress(whole)[:-200])
    summary = build(config(folder / "*"), tmp_path / "a")
    assert (summary["broken_files"], summary["books"]["quarantined"]) == (1, 1)
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(whole)[:-200])
    with pytest.raises(DataError, match=r"break off.*found 2, for example s:0\.jsonl\.gz record"):
        build(config(folder / "*"), tmp_path / "b")
    build(config(folder / "*", limits=LimitsConfig(max_broken_files=0.5)), tmp_path / "c")


def test_rows_of_a_damaged_parquet_file_are_in_the_books(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    table = pa.table({"text": [f"{i} " + "word\n" * 40 for i in range(1_000)]})
    path = folder / "a.parquet"
    pq.write_table(table, path, row_group_size=100, use_dictionary=False, write_page_checksum=True)
    raw = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(2).column(0)
    raw[place.data_page_offset + place.total_compressed_size // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="too many records"):
        build(config(folder / "*"), tmp_path / "a")
    books = build(config(folder / "*", limits=LimitsConfig(max_quarantined=0.2)), tmp_path / "b")["books"]
    assert books["documents_in"] == 1_000
    assert books["passed"] + books["quarantined"] == 1_000
    assert books["passed"] >= 900


def test_a_file_that_is_gone_is_named(raw, tmp_path):
    settings = config(raw / "*")
    inventory = take_inventory(settings)
    (raw / "4.jsonl").unlink()
    with pytest.raises(DataError, match=r"4\.jsonl of source 's' cannot be read any more"):
        build_documents(settings, inventory, tmp_path, silent)


def test_files_in_memory_are_read_without_a_pool(raw, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in raw.iterdir():
        memory.pipe(f"/documents-test/{path.name}", path.read_bytes())
    build(config("memory://documents-test/*", workers=2, executor="processes"), tmp_path / "memory")
    build(config(raw / "*"), tmp_path / "local")
    assert tree(tmp_path / "memory") == tree(tmp_path / "local")


def test_an_error_in_a_worker_arrives_whole(raw, tmp_path):
    settings = config(raw / "*", workers=2, executor="processes")
    inventory = take_inventory(settings)
    (raw / "4.jsonl").write_text('{"text": "new"}\n')
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"4\.jsonl of source 's' changed while"):
        build_documents(settings, inventory, tmp_path / "out", silent)


def test_progress_ends_at_the_whole(raw, tmp_path):
    seen = []
    build(config(raw / "*"), tmp_path / "out", lambda *report: seen.append(report))
    total = sum(path.stat().st_size for path in raw.iterdir())
    assert seen[-1] == ("read documents", total, total, "bytes")


SLOW_BUILD = """
import sys, pathlib
from lmcore.config import DataConfig, SourceConfig
from lmcore.data import documents
from lmcore.data.sources import take_inventory

if __name__ == "__main__":
    source = SourceConfig(name="s", kind="files", path=sys.argv[1])
    config = DataConfig(sources=(source,), shard_bytes=1, workers=2, executor="processes")
    report = lambda *_: print("working", flush=True)
    documents.build_documents(config, take_inventory(config), pathlib.Path(sys.argv[2]), report)
"""


def start_slow_build(raw, tmp_path):
    """Start a build that takes long; return it when two workers are at work."""
    for i in range(300):
        (raw / f"more{i}.txt").write_text(SENTENCE * 2_000)
    (tmp_path / "out").mkdir()
    script = tmp_path / "slow.py"
    script.write_text(SLOW_BUILD)
    command = [sys.executable, str(script), str(raw / "*.txt"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert parent.stdout.readline() == b"working\n"
    return parent


@pytest.mark.timeout(60)
def test_workers_die_with_a_killed_parent(raw, tmp_path):
    with start_slow_build(raw, tmp_path) as parent:
        parent.kill()
        # The pipe ends when the last process that inherited it has.
        assert parent.stdout.read().replace(b"working\n", b"") == b""


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_is_an_error_that_says_so(raw, tmp_path):
    with start_slow_build(raw, tmp_path) as parent:
        for child in psutil.Process(parent.pid).children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        parent.stdout.read()
        assert b"Use fewer data.workers" in parent.stderr.read()
