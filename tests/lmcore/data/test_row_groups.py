"""A Parquet file in parts holds what it holds in one."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.config import DataConfig, LimitsConfig, SourceConfig
from lmcore.data import sources
from lmcore.data.records import Quarantined, Record, read_records
from lmcore.data.row_groups import parts_of
from lmcore.errors import DataError

ROWS, GROUP, PART_BYTES = 400, 20, 8_000
TEXTS = [f"number {i} " + "mill " * (i % 50) for i in range(ROWS)]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", PART_BYTES)


def parquet(texts=TEXTS, **options):
    file = io.BytesIO()
    plain = {"row_group_size": GROUP, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"text": texts}), file, **plain | {"write_page_checksum": True} | options)
    return file.getvalue()


def source_of(path):
    return SourceConfig(name="s", kind="files", path=str(path))


def read(path, **limits):
    """The file's parts, and the records of all of them."""
    source = source_of(path)
    files = sources.take_inventory(DataConfig(sources=(source,))).files
    return files, [record for file in files for record in read_records(file, source, LimitsConfig(**limits))]


def in_one(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sources, "PART_BYTES", 1 << 30)
        files, records = read(path)
    assert len(files) == 1
    return records


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": True, "compression": "zstd"}, {"row_group_size": 7}]
)
def test_parts_hold_the_records_of_the_whole_under_the_same_numbers(tmp_path, monkeypatch, options):
    path = tmp_path / "a.parquet"
    draw = np.random.default_rng(0)
    texts = [f"{draw.bytes(100).hex()} {text}" for text in TEXTS]
    path.write_bytes(parquet([None if i % 90 == 1 else text for i, text in enumerate(texts)], **options))
    files, records = read(path)
    assert len(files) > 2
    assert min(file.num_bytes for file in files) >= PART_BYTES
    assert [file.start for file in files[1:]] == [file.start + file.num_bytes for file in files[:-1]]
    assert [record.index for record in records] == list(range(ROWS))
    assert records == in_one(path, monkeypatch)


def test_a_row_group_is_not_cut():
    raw = parquet(row_group_size=ROWS)
    assert len(raw) > 4 * PART_BYTES
    (part,) = parts_of(io.BytesIO(raw), PART_BYTES)
    assert (part.start, part.end, part.num_records) == (0, len(raw), ROWS)


@pytest.mark.parametrize(
    "damaged", [lambda raw: raw[:-9], lambda raw: raw[:-8] + b"\xff" * 4 + b"PAR1", bytes.lower]
)
def test_a_file_whose_footer_is_damaged_is_one_part(tmp_path, damaged):
    path = tmp_path / "a.parquet"
    path.write_bytes(damaged(parquet()))
    files, (bad,) = read(path)
    assert len(files) == 1
    assert bad.reason.startswith("damaged Parquet")
    assert bad.breaks_off


def test_a_small_end_that_expands_much_is_kept(tmp_path, monkeypatch):
    draw = np.random.default_rng(1)
    noise = [draw.bytes(500).hex() for _ in range(300)]
    path = tmp_path / "a.parquet"
    # The last row group is a dictionary of one: alone, it would be taken for a bomb.
    texts = noise + ["the same text " * 1_000] * 100
    path.write_bytes(parquet(texts, row_group_size=100, use_dictionary=True, compression="zstd"))
    files, records = read(path)
    assert len(files) == 3
    assert [record.text for record in records if isinstance(record, Record)] == texts
    assert records == in_one(path, monkeypatch)


def test_of_what_expands_too_much_every_row_is_counted(tmp_path):
    draw = np.random.default_rng(1)
    noise = [draw.bytes(400).hex() for _ in range(200)]
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(noise[:100] + ["x" * 100_000] * 200 + noise[100:], use_dictionary=True))
    files, records = read(path, max_expansion=10)
    bad = [record for record in records if isinstance(record, Quarantined)]
    assert 0 < len(bad) < len(files)
    good = [record.text for record in records if isinstance(record, Record)]
    assert len(good) + sum(record.num_records for record in bad) == 400
    assert set(noise[:60]) <= set(good)
    assert sum(map(len, good)) <= 10 * path.stat().st_size
    # The parts behind are read: the file breaks off nowhere.
    assert not any(record.breaks_off for record in bad)


def test_a_file_that_changed_since_is_told(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet())
    files, _ = read(path)
    for raw in (parquet(TEXTS[:100]), parquet([text.upper() for text in TEXTS]), parquet()[:-9]):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="changed while it was being read"):
            list(read_records(files[-1], source_of(path), LimitsConfig()))
