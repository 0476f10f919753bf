import gc
import gzip
import hashlib
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import LimitsConfig, SourceConfig
from lmcore.data.records import Quarantined, Record, _lines, read_records, text_of
from lmcore.data.sources import SourceFile
from lmcore.errors import DataError

COMPRESS = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}
TEXTS = [f"text number {i} " * (i % 7 + 1) for i in range(400)]


@pytest.fixture
def read(tmp_path):
    def read(name, raw, limits=None, **options):
        path = tmp_path / name
        path.write_bytes(raw)
        file = SourceFile("s", str(path), name, len(raw), hashlib.sha256(raw).hexdigest())
        source = SourceConfig(name="s", kind="files", path=str(path), **options)
        limits = LimitsConfig(**(limits or {}))
        found = list(read_records(file, source, limits))
        gc.collect()  # what the error of a broken stream holds
        in_bytes = list(read_records(file, source, limits, as_bytes=True))
        assert [as_text(record) for record in in_bytes] == found
        return found

    return read


def as_text(record):
    if isinstance(record, Record) and isinstance(record.text, bytes):
        assert record.num_chars == len(text_of(record))
        return Record(record.index, record.id, text_of(record))
    return record


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(tmp_path, **columns):
    options = {"row_group_size": 100, "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(pa.table(columns), tmp_path / "made", **options)
    return (tmp_path / "made").read_bytes()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_line_is_a_record(read, suffix):
    found = read("x" + suffix, COMPRESS[suffix](lines(TEXTS)))
    assert [(record.index, record.text) for record in found] == list(enumerate(TEXTS))


def test_files_of_several_frames_are_read_to_the_end(read):
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        halves = [COMPRESS[suffix](lines(part)) for part in (TEXTS[:200], TEXTS[200:])]
        assert [record.text for record in read("x" + suffix, b"".join(halves))] == TEXTS


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_truncated_file_keeps_the_records_before_and_tells_of_the_rest(read, suffix, share):
    raw = COMPRESS[suffix](lines(TEXTS))
    *good, last = read("x" + suffix, raw[: max(1, min(len(raw) - 1, int(len(raw) * share)))])
    assert [record.text for record in good] == TEXTS[: len(good)]
    assert isinstance(last, Quarantined)
    assert last.index == len(good)
    assert last.reason.startswith("truncated")
    assert last.offset == len(lines(TEXTS[: len(good)]))


def test_a_gzip_cut_at_its_very_end_loses_no_record(read):
    *good, last = read("x.jsonl.gz", gzip.compress(lines(TEXTS))[:-1])
    assert len(good) == len(TEXTS)
    assert last.reason == "truncated gzip"


def test_a_flipped_bit_in_gzip_is_noticed(read):
    raw = bytearray(gzip.compress(lines(TEXTS)))
    raw[len(raw) // 2] ^= 4
    assert any(isinstance(record, Quarantined) for record in read("x.jsonl.gz", bytes(raw)))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        (b'{"txt": "a"}', "no field 'text'"),
        (b'{"text": null}', "not text but NoneType"),
        (b'["text"]', "not a JSON object but list"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "' + b"x" * 200_000 + b'"}', "larger than 150000 bytes"),
    ],
)
def test_a_bad_line_is_set_aside_with_its_place_and_reason(read, line, reason):
    raw = b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}'
    before, bad, after = read("x.jsonl", raw, {"max_record_bytes": 150_000})
    assert (before.text, after.text, after.index) == ("before", "after", 3)
    assert (bad.index, bad.offset, bad.num_bytes) == (2, 20, len(line))
    assert reason in bad.reason
    assert bad.raw == line[: 150_000 if "larger" in reason else len(line)]


def test_a_file_that_is_not_utf8_or_too_large_is_one_bad_record(read):
    assert read("a.txt", "d\u00e9j\u00e0 vu".encode()) == [Record(0, "", "d\u00e9j\u00e0 vu")]
    assert "not UTF-8: invalid start byte at byte 2" in read("a.txt", b"ab\xff")[0].reason
    assert "larger than 2 bytes" in read("a.py", b"abc", {"max_record_bytes": 2})[0].reason


@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.html"])
def test_a_file_larger_than_a_record_may_be_is_refused_before_it_is_read(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as made:
        made.write(b"a mill")
        made.truncate(1 << 36)  # 64 GiB of nothing
    file = SourceFile("s", str(path), name, 1 << 36, "")
    source = SourceConfig(name="s", kind="files", path=str(path))
    tracemalloc.start()
    (bad,) = read_records(file, source, LimitsConfig(max_record_bytes=1 << 35))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bad.reason == f"larger than {1 << 35} bytes (limits.max_record_bytes)"
    assert bad.num_bytes == 1 << 36
    assert peak < 10_000_000


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_bomb_is_stopped_early_in_bounded_memory(read, suffix):
    raw = COMPRESS[suffix](lines(["good"]) + b"0" * 100_000_000)
    tracemalloc.start()
    good, bad = read("x" + suffix, raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert good.text == "good"
    assert "expands more than 200 times" in bad.reason
    assert peak < 50_000_000


def test_parquet_rows_are_records_and_bad_ones_are_set_aside(read, tmp_path):
    raw = parquet(tmp_path, body=["a", None, "c"], key=[7, 8, 9])
    first, bad, last = read("x.parquet", raw, text_field="body", id_field="key")
    assert (first.id, first.text, last.id) == ("7", "a", "9")
    assert (bad.index, bad.reason) == (1, "field 'body' is not text but NoneType")
    found = read("x.parquet", parquet(tmp_path, text=[b"ok", b"\xff"]))
    assert found[0].text == "ok"
    assert "not UTF-8" in found[1].reason


def test_a_parquet_file_without_the_column_is_an_error_with_its_columns(read, tmp_path):
    with pytest.raises(DataError, match=r"no column 'text'.*found body, key"):
        read("x.parquet", parquet(tmp_path, body=["a"], key=["b"]))


def test_a_damaged_parquet_file_keeps_the_rows_before(read, tmp_path):
    raw = bytearray(parquet(tmp_path, text=[f"{i}" * 50 for i in range(300)]))
    assert read("x.parquet", bytes(raw[:-9]))[0].reason.startswith("damaged Parquet")
    column = pq.read_metadata(tmp_path / "made").row_group(2).column(0)
    raw[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    *good, bad = read("x.parquet", bytes(raw))
    assert bad.reason.startswith("damaged Parquet")
    assert len(good) == bad.index <= 200


def test_damage_to_a_row_group_costs_its_rest_alone_and_every_row_is_counted(read, tmp_path):
    texts = [f"{i} {'x' * 50}" for i in range(1_000)]
    raw = bytearray(parquet(tmp_path, text=texts))
    place = pq.read_metadata(tmp_path / "made").row_group(2).column(0)
    raw[place.data_page_offset + place.total_compressed_size // 2] ^= 1
    found = read("x.parquet", bytes(raw))
    (bad,) = [record for record in found if isinstance(record, Quarantined)]
    assert "row group 2" in bad.reason
    good = [record.text for record in found if isinstance(record, Record)]
    assert len(good) + bad.num_records == 1_000
    assert good == texts[: bad.index] + texts[300:]
    assert 200 <= bad.index < 300


def test_a_network_that_fails_is_no_damaged_file(tmp_path, monkeypatch):
    raw = parquet(tmp_path, text=[f"text {i}" for i in range(1_000)])
    (tmp_path / "x.parquet").write_bytes(raw)
    file = SourceFile(
        "s", str(tmp_path / "x.parquet"), "x.parquet", len(raw), hashlib.sha256(raw).hexdigest()
    )

    class Network(io.BytesIO):
        def read(self, size=-1):
            if 0 < self.tell() < len(raw) // 2:
                raise ConnectionResetError("reset by peer")
            return super().read(size)

    monkeypatch.setattr(SourceFile, "open", lambda self: Network(raw))
    with pytest.raises(ConnectionResetError):
        list(read_records(file, SourceConfig(name="s"), LimitsConfig()))


def test_a_parquet_column_that_is_there_twice_is_an_error(read, tmp_path):
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    pq.write_table(table, tmp_path / "made")
    with pytest.raises(DataError, match="several columns 'text'"):
        read("x.parquet", (tmp_path / "made").read_bytes())


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_of_no_bytes_is_truncated(read, suffix):
    (bad,) = read("x" + suffix, b"")
    assert bad.breaks_off
    assert "truncated" in bad.reason


def test_a_parquet_bomb_is_stopped(read, tmp_path):
    options = {"compression": "zstd", "row_group_size": 500}
    pq.write_table(pa.table({"text": ["x" * 100_000] * 5_000}), tmp_path / "made", **options)
    *good, bad = read("x.parquet", (tmp_path / "made").read_bytes())
    assert "expands more than 200 times" in bad.reason
    assert len(good) + bad.num_records == 5_000
    assert sum(len(record.text) for record in good) <= 200 * bad.num_bytes
    pq.write_table(
        pa.table({"text": ["a", "x" * 50_000_000]}), tmp_path / "made", **options, use_dictionary=False
    )
    (bad,) = read("x.parquet", (tmp_path / "made").read_bytes())
    assert "expands more than 200 times" in bad.reason


def test_a_column_may_be_text_and_id(read, tmp_path):
    (found,) = read("x.parquet", parquet(tmp_path, text=["name"]), id_field="text")
    assert (found.id, found.text) == ("name", "name")


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "broken.jsonl.gz"]
)
def test_a_file_that_changes_meanwhile_is_an_error(tmp_path, name):
    new = (
        parquet(tmp_path, text=["new"])
        if name.endswith("t")
        else COMPRESS.get(name[name.index(".") :], bytes)(b'{"text": "new"}')
    )
    new = new[:-4] if name.startswith("broken") else new
    (tmp_path / name).write_bytes(new)
    file = SourceFile("s", str(tmp_path / name), name, len(new), hashlib.sha256(b"old").hexdigest())
    with pytest.raises(DataError, match="changed while"):
        list(read_records(file, SourceConfig(name="s"), LimitsConfig()))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_byte_order_mark_costs_no_record(read, suffix):
    raw = COMPRESS[suffix](b"\xef\xbb\xbf" + lines(TEXTS))
    assert [record.text for record in read("x" + suffix, raw)] == TEXTS


@pytest.mark.parametrize("zeros", [1, 512, 200_000])
def test_zeros_behind_gzip_are_padding(read, zeros):
    whole = gzip.compress(lines(TEXTS).rstrip(b"\n"))
    assert [record.text for record in read("x.jsonl.gz", whole + bytes(zeros))] == TEXTS
    twice = read("x.jsonl.gz", gzip.compress(lines(TEXTS)) + bytes(zeros) + whole)
    assert [record.text for record in twice] == [*TEXTS, *TEXTS]


@given(st.binary(max_size=60).map(lambda raw: raw.replace(b"a", b"\n")), st.integers(1, 9), st.integers(1, 9))
def test_lines_are_those_of_split_whatever_the_chunks(raw, chunk, limit):
    pieces = [raw[i : i + chunk] for i in range(0, len(raw), chunk)]
    offset, expected = 0, []
    for line in raw.split(b"\n"):
        expected.append((offset, line[:limit], len(line)))
        offset += len(line) + 1
    if not expected[-1][2]:
        expected.pop()
    assert list(_lines(iter(pieces), limit)) == expected
