"""Files of any character set are read right, or refused with the remedy; against Python's own codecs."""

# ruff: noqa: RUF001
import codecs
import gzip
import hashlib
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmcore.config import DataConfig, LimitsConfig, SourceConfig, identify
from lmcore.data import sources
from lmcore.data.documents import build_documents
from lmcore.data.records import Quarantined, read_records, text_of
from lmcore.data.sources import SourceFile, find_files
from lmcore.errors import DataError
from lmcore.progress import silent

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
TEXTS = ["Once upon a time", "déjà vu \u2028 of \x85 lines", "水车 🙂 磨坊", "Ċ Ȋ 上 \u0a0a"]


def read(folder, name, raw, **options):
    path = folder / name
    path.write_bytes(raw)
    file = SourceFile("s", str(path), name, len(raw), hashlib.sha256(raw).hexdigest())
    source = SourceConfig(name="s", kind="files", path=str(path), **options)
    found = list(read_records(file, source, LimitsConfig()))
    fast = list(read_records(file, source, LimitsConfig(), as_bytes=True))
    assert [as_text(one) for one in fast] == [as_text(one) for one in found]
    return found


def as_text(entry):
    return entry if isinstance(entry, Quarantined) else (entry.index, entry.id, text_of(entry), entry.charset)


def texts(records):
    return [None if isinstance(record, Quarantined) else text_of(record) for record in records]


def lines(some=TEXTS, end="\n"):
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + end for text in some)


@pytest.mark.parametrize("name", MARKS)
def test_a_text_file_of_any_unicode_encoding_with_a_mark_is_read(tmp_path, name):
    for suffix in (".txt", ".py"):
        for text in TEXTS:
            (record,) = read(tmp_path, f"a{suffix}", MARKS[name] + text.encode(name))
            assert (text_of(record), record.charset) == (text, "" if name == "utf-8" else name)


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("name", MARKS)
def test_lines_of_any_unicode_encoding_with_a_mark_are_read(tmp_path, name, pack):
    raw = MARKS[name] + lines().encode(name)
    assert texts(read(tmp_path, f"a.jsonl{pack}", PACK[pack](raw))) == TEXTS


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_without_a_mark_zeros_tell_of_wide_encodings(tmp_path, name):
    assert texts(read(tmp_path, "a.json", lines().encode(name))) == TEXTS
    assert texts(read(tmp_path, "a.txt", "a mill, déjà vu".encode(name))) == ["a mill, déjà vu"]


def test_wide_text_that_nothing_tells_of_is_refused_with_the_setting(tmp_path):
    raw = "水车 磨坊\u8080".encode("utf-16-le")
    (bad,) = read(tmp_path, "a.txt", raw)
    assert "set encoding: utf-16-le" in bad.reason
    assert texts(read(tmp_path, "a.txt", raw, encoding="UTF-16LE")) == ["水车 磨坊\u8080"]


@pytest.mark.parametrize("name", MARKS)
def test_files_that_cat_put_together_lose_their_marks_only(tmp_path, name):
    part = MARKS[name] + lines(TEXTS[:2]).encode(name)
    assert texts(read(tmp_path, "a.jsonl", part + part + MARKS[name] + part)) == TEXTS[:2] * 3
    text = MARKS[name] + "a mill\n".encode(name)
    assert texts(read(tmp_path, "a.txt", text + MARKS[name] + text)) == ["a mill\na mill\n"]


def test_a_mark_in_front_of_any_record_is_none_of_it(tmp_path):
    raw = "".join("\ufeff" * i + line + "\n" for i, line in enumerate(lines().split("\n")))
    assert texts(read(tmp_path, "a.jsonl", raw.encode())) == TEXTS
    kept = json.dumps({"text": "a\ufeffb"}, ensure_ascii=False).encode()
    assert texts(read(tmp_path, "a.jsonl", kept)) == ["a\ufeffb"]


def test_bytes_after_a_wide_file_of_the_other_order_break_it_off(tmp_path):
    raw = MARKS["utf-16-le"] + lines(["a"]).encode("utf-16-le") + MARKS["utf-16-be"]
    good, bad = read(tmp_path, "a.jsonl", raw + lines(["b"]).encode("utf-16-be"))
    assert texts([good]) == ["a"]
    assert isinstance(bad, Quarantined)
    assert bad.breaks_off
    (whole,) = read(tmp_path, "a.txt", b"\xff\xfea\0\xfe\xff\0b")
    assert "byte order changes" in whole.reason


def test_half_a_character_at_the_end_breaks_the_file_off(tmp_path):
    raw = MARKS["utf-16-le"] + lines(TEXTS[:2]).encode("utf-16-le")
    *good, bad = read(tmp_path, "a.jsonl", raw + b"{")
    assert texts(good) == TEXTS[:2]
    assert bad.reason.startswith("not utf-16-le: truncated data")


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8"])
def test_a_large_wide_file_is_not_cut_and_one_of_utf8_is(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "PART_BYTES", 1000)
    many = [f"{text} {i} \u0a0a\u0d0a" for i in range(60) for text in TEXTS]
    path = tmp_path / "a.jsonl"
    path.write_bytes(MARKS[name] + lines(many).encode(name))
    source = SourceConfig(name="s", kind="files", path=str(path))
    files = find_files([source]).files
    assert (len(files) > 1) == (name == "utf-8")
    records = [record for file in files for record in read_records(file, source, LimitsConfig())]
    assert texts(records) == many
    assert [record.index for record in records] == list(range(len(many)))
    remote = SourceConfig(name="s", kind="files", path=f"file://{path}")
    assert (
        texts(r for f in find_files([remote]).files for r in read_records(f, remote, LimitsConfig())) == many
    )


def test_marks_at_the_start_of_parts_are_none_of_their_records(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 300)
    many = [f"{text} {i}" for i in range(40) for text in TEXTS]
    (tmp_path / "a.jsonl").write_bytes(b"".join(b"\xef\xbb\xbf" + lines([t]).encode() for t in many))
    source = SourceConfig(name="s", kind="files", path=str(tmp_path / "a.jsonl"))
    files = find_files([source]).files
    assert len(files) > 5
    assert texts(r for f in files for r in read_records(f, source, LimitsConfig())) == many


# --- line ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r", "\n\r"])
def test_lines_end_in_feeds_or_returns_and_in_nothing_else(tmp_path, end, pack):
    found = read(tmp_path, f"a.jsonl{pack}", PACK[pack](lines(end=end).encode()))
    assert texts(found) == TEXTS
    step = 2 if end == "\r\r" else 1
    if end != "\n\r":
        assert [record.index for record in found] == list(range(0, len(TEXTS) * step, step))


@given(
    st.lists(
        st.tuples(st.sampled_from(TEXTS), st.sampled_from(["\n", "\r", "\r\n", "\r\r\n", "\n\n"])),
        max_size=12,
    ),
    st.integers(1, 40),
)
def test_files_of_any_line_ends_hold_the_same_records_however_they_are_cut(tmp_path_factory, some, size):
    folder = tmp_path_factory.mktemp("ends")
    path = folder / "a.jsonl"
    path.write_bytes("".join(lines([text], end) for text, end in some).encode())
    source = SourceConfig(name="s", kind="files", path=str(path))
    found = {}
    before = sources.PART_BYTES
    for part_bytes in (before, size):
        sources.PART_BYTES = part_bytes
        try:
            files = find_files([source]).files
        finally:
            sources.PART_BYTES = before
        records = [r for f in files for r in read_records(f, source, LimitsConfig(max_expansion=1e9))]
        assert texts(records) == [text for text, _ in some]
        found[part_bytes] = [record.index for record in records]
        assert len(set(found[part_bytes])) == len(records)
    assert found[size] == found[before]


def test_a_return_between_tokens_of_json_ends_no_line(tmp_path):
    raw = b'{"text": "first"}\n{"n": 1,\r"text": "one"}\n{"text": "last"}\r\n'
    assert texts(read(tmp_path, "a.jsonl", raw)) == ["first", "one", "last"]
    broken = b'{"text": "a\rb"}\n{"text": "last"}\n'
    assert texts(read(tmp_path, "a.jsonl", broken)) == [None, "last"]


# --- other character sets --------------------------------------------------------------------------

PROSE = {
    "windows-1252": "Le café était déjà fermé à l’époque où la rivière gelait, “près” du moulin à eau. ",
    "windows-1251": "Мельница стояла у реки, и вода вращала колесо каждый день до самого вечера. ",
    "koi8-r": "Мельница стояла у реки, и вода вращала колесо каждый день до самого вечера. ",
    "shift_jis": "水車小屋は川のそばにありました。毎日水が流れていた。",
    "gb18030": "磨坊在河边，水流每天转动轮子。他们把麦子带到这里。",
    "cp500": "An EBCDIC text of the mill, déjà. ",
}


@pytest.mark.parametrize("name", PROSE)
def test_what_encoding_names_is_how_files_are_decoded(tmp_path, name):
    text = PROSE[name]
    for raw in (text.encode(name), text.encode(name) * 5):
        (record,) = read(tmp_path, "a.txt", raw, encoding=name)
        assert text_of(record) == raw.decode(name)
        assert record.charset == codecs.lookup(name).name
    assert (
        texts(read(tmp_path, "a.jsonl.gz", gzip.compress(lines([text] * 3).encode(name)), encoding=name))
        == [text] * 3
    )
    pq.write_table(pa.table({"text": pa.array([text.encode(name)], pa.binary())}), tmp_path / "p")
    assert texts(read(tmp_path, "a.parquet", (tmp_path / "p").read_bytes(), encoding=name)) == [text]
    pq.write_table(pa.table({"text": [text]}), tmp_path / "p")  # a column of strings is UTF-8 whatever is set
    assert texts(read(tmp_path, "a.parquet", (tmp_path / "p").read_bytes(), encoding=name)) == [text]


def test_what_is_not_utf8_is_refused_with_the_setting_that_reads_it(tmp_path):
    raw = PROSE["windows-1252"].encode("windows-1252")
    for name, content in (("a.txt", raw), ("a.jsonl", b'{"text": "' + raw + b'"}')):
        (bad,) = read(tmp_path, name, content)
        assert "not UTF-8: invalid continuation byte at byte" in bad.reason
        assert "set encoding of this source" in bad.reason


def test_a_byte_that_the_set_does_not_know_costs_its_line_alone(tmp_path):
    raw = lines(["été"]).encode("cp1252") + b'{"text": "\x81"}\n' + lines(["vu"]).encode("cp1252")
    good, bad, last = read(tmp_path, "a.jsonl", raw, encoding="cp1252")
    assert texts([good, last]) == ["été", "vu"]
    assert bad.reason.startswith("not cp1252")


@pytest.mark.parametrize("name", ["windows-1252", "windows-1251", "koi8-r", "shift_jis", "gb18030"])
def test_detection_reads_right_or_refuses_and_names_candidates(tmp_path, name):
    text = PROSE[name]
    records = read(tmp_path, "a.jsonl", lines(["ascii", text, text]).encode(name), encoding="detect")
    (whole,) = read(tmp_path, "a.txt", text.encode(name) * 3, encoding="detect")
    assert texts(records) == ["ascii", text, text]
    assert text_of(whole) == text * 3
    assert whole.charset


def test_detection_of_utf8_is_utf8_and_of_too_little_is_a_refusal(tmp_path):
    assert texts(read(tmp_path, "a.jsonl", lines().encode(), encoding="detect")) == TEXTS
    assert texts(read(tmp_path, "a.txt", TEXTS[1].encode(), encoding="detect")) == TEXTS[1:2]
    (bad,) = read(tmp_path, "a.txt", b"\xe9t\xe9", encoding="detect")
    assert "too few to tell" in bad.reason
    (lines_bad,) = read(tmp_path, "a.jsonl", b'{"text": "\xe9t\xe9"}', encoding="detect")
    assert "too few to tell" in lines_bad.reason


def test_binary_columns_hold_texts_of_any_unicode_encoding(tmp_path):
    values = [MARKS[name] + "déjà".encode(name) for name in MARKS if name != "utf-8"]
    pq.write_table(pa.table({"text": pa.array(values, pa.binary())}), tmp_path / "p")
    assert texts(read(tmp_path, "a.parquet", (tmp_path / "p").read_bytes())) == ["déjà"] * len(values)


def test_a_wrong_encoding_is_refused_with_the_nearest_right_one():
    for name, near in (("windows-1225", "windows-125"), ("utf-61", "utf-16"), ("shift-jos", "shift-jis")):
        with pytest.raises(ValidationError, match=f"did you mean '{near}"):
            SourceConfig(name="s", encoding=name)
    for name in ("base64", "rot13", "idna", "unicode_escape", ""):
        with pytest.raises(ValidationError, match="no character set"):
            SourceConfig(name="s", encoding=name)


def test_the_default_is_of_no_identity_and_names_of_one_set_are_one():
    plain, other, same = (
        identify(source=SourceConfig(name="s", encoding=name)).chosen
        for name in ("auto", "Windows-1252", "cp1252")
    )
    assert "source.encoding" not in plain
    assert other == same
    assert other["source.encoding"] == "cp1252"


def test_the_summary_says_what_was_decoded_as_what(tmp_path):
    for number, name in enumerate(["utf-8", "utf-16-le", "utf-16-le", "utf-32-be"]):
        text = f"A mill by the river, number {number}. "
        (tmp_path / f"{number}.txt").write_bytes(MARKS[name] + text.encode(name))
    source = SourceConfig(name="s", kind="files", path=str(tmp_path / "*.txt"))
    config = DataConfig(sources=(source,))
    out = tmp_path / "out"
    out.mkdir()
    summary = build_documents(config, find_files(config.sources), out, silent)
    assert summary["charsets"] == Counter({"utf-16-le": 2, "utf-32-be": 1})
    assert (summary["documents"], summary["books"]["quarantined"]) == (4, 0)


def test_a_source_of_which_nothing_can_be_read_fails_however_few_its_files_are(tmp_path):
    (tmp_path / "a.txt").write_bytes(PROSE["windows-1252"].encode("cp1252"))
    (tmp_path / "b.md.txt").write_text("good")
    bad = SourceConfig(name="legacy", kind="files", path=str(tmp_path / "a.txt"))
    good = SourceConfig(name="good", kind="files", path=str(tmp_path / "b.md.txt"))
    config = DataConfig(sources=(good, bad))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"(?s)no record of source 'legacy' can be read.*set encoding"):
        build_documents(config, find_files(config.sources), tmp_path / "out", silent)
    read_well = bad.model_copy(update={"encoding": "cp1252"})
    config = DataConfig(sources=(good, read_well))
    (tmp_path / "again").mkdir()
    summary = build_documents(config, find_files(config.sources), tmp_path / "again", silent)
    assert (summary["documents"], summary["charsets"]) == (2, {"cp1252": 1})
