import gzip

import pyarrow.parquet as pq
import pytest

from lmcore.config import DataConfig, LimitsConfig, QualityConfig, SourceConfig
from lmcore.data import documents, page_texts
from lmcore.data.page_texts import Unread, page_pool, with_texts
from lmcore.data.sources import take_inventory
from lmcore.errors import DataError
from lmcore.progress import silent
from tests.lmcore.data import odd_archives


def unread(count):
    for i in range(count):
        if i % 7 == 3:
            yield f"other {i}"
        content = f"<body><ul><li>Page {i} of the mill \u00e9{'<div>' * (600 if i % 11 == 5 else 0)}</ul>"
        yield Unread(i, "", (content.encode() if i % 2 else content, "utf-8", i % 3 > 0), b"")


def made(records):
    return [(record, str(text), type(text)) for record, text in records]


def test_texts_come_in_order_from_any_number_of_processes():
    expected = made(with_texts(unread(700)))
    for count in (1, 2, 3):
        with page_pool(count):
            assert made(with_texts(unread(700))) == expected
    with page_pool(2):  # a reader that stops early leaves nothing behind
        early = with_texts(unread(5_000))
        assert [next(early)[0].index for _ in range(3)] == [0, 1, 2]
        early.close()
        assert made(with_texts(unread(30))) == expected[: len(made(with_texts(unread(30))))]


def test_a_pool_lasts_as_long_as_one_uses_it():
    first, second = page_pool(2), page_pool(2)
    first.__enter__()
    second.__enter__()
    shared = page_texts._shared
    first.__exit__(None, None, None)
    assert page_texts._shared is shared
    assert len(list(with_texts(unread(30)))) > 30
    second.__exit__(None, None, None)
    assert page_texts._shared is None


def test_large_pages_pass():
    large = Unread(0, "", ("<p>" + "mill " * 1_500_000, "", True), b"")
    with page_pool(2):
        assert [len(text) for _, text in with_texts([large] * 3)] == [5 * 1_500_000 - 1] * 3


def test_a_process_that_dies_is_told_of():
    with page_pool(2):
        for process in page_texts._shared._processes:
            process._process.kill()
            process._process.wait()
        with pytest.raises(DataError, match="a process that reads web pages died"):
            list(with_texts(unread(10)))


def test_processes_end_with_the_pool():
    with page_pool(2):
        processes = [process._process for process in page_texts._shared._processes]
        assert all(process.poll() is None for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert page_texts._shared is None


def test_documents_are_the_same_for_any_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_PAGES_ALONE_UP_TO_BYTES", 0)  # so that little work has a pool, too
    odd = [entry.raw for entry in odd_archives.records(150, 2)]
    (tmp_path / "a.warc").write_bytes(b"".join(odd))
    (tmp_path / "b.warc.gz").write_bytes(b"".join(map(gzip.compress, odd)))
    for i in range(4):
        (tmp_path / f"{i}.html").write_bytes(
            b"<body><ul><li>Mill %d</ul>" % i + (b"\0" * 99 if i == 2 else b"")
        )
    source = SourceConfig(name="s", kind="files", path=f"{tmp_path}/*.*")
    results = []
    for executor, workers in (("threads", 1), ("threads", 2), ("auto", 4), ("processes", 2)):
        settings = {"sources": (source,), "quality": QualityConfig(profile="none"), "executor": executor}
        settings |= {"workers": workers, "limits": LimitsConfig(max_quarantined=1)}
        config = DataConfig.model_validate(settings)
        out = tmp_path / f"{executor}-{workers}"
        out.mkdir()
        summary = documents.build_documents(config, take_inventory(config), out, silent)
        tables = [
            pq.read_table(path).to_pydict()
            for name in ("documents", "quarantine")
            for path in sorted((out / name).iterdir())
        ]
        results.append((summary["books"], tables))
    assert results[0][0]["quarantined"] > 10
    assert results[1:] == results[:-1]
