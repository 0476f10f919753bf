import hashlib
import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import DataConfig, LimitsConfig, QualityConfig, SourceConfig
from lmcore.data.documents import build_documents
from lmcore.data.html import TooDeepError, decode, main_text
from lmcore.data.prepare import documents_libraries
from lmcore.data.records import Record, read_records
from lmcore.data.sources import SourceFile, take_inventory
from lmcore.data.splits import build_splits
from lmcore.progress import silent
from tests.lmcore.data.languages import ARTICLE_1

PAGE = """<!doctype html><html><head><title>Mill</title><style>p {{}}</style>{meta}</head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav>
<article><h1>The mill</h1><p>{text}</p><p>Water turns the wheel &amp; grinds.</p>
<script>alert("no")</script></article><footer>Imprint</footer></body></html>"""
MAIN = "The mill\n\n{text}\n\nWater turns the wheel & grinds."
ONLY_MENU = "<html><body><nav><a href='/'>Home</a></nav></body></html>"


def page(text, meta=""):
    return PAGE.format(text=text, meta=meta)


@pytest.fixture
def read(tmp_path):
    def read(name, raw, limits=None, **options):
        path = tmp_path / name
        path.write_bytes(raw)
        file = SourceFile("s", str(path), name, len(raw), hashlib.sha256(raw).hexdigest())
        source = SourceConfig(name="s", kind="files", path=str(path), **options)
        return list(read_records(file, source, LimitsConfig(**(limits or {}))))

    return read


def test_a_page_is_its_main_text(read):
    for name in ("a.html", "b.HTM"):
        assert read(name, page("Corn.").encode()) == [Record(0, "", MAIN.format(text="Corn."))]


@pytest.mark.parametrize(
    "meta", ['<meta charset="{}">', '<meta http-equiv="content-type" content="text/html; charset={}">']
)
@pytest.mark.parametrize(
    ("language", "encoding"),
    [
        ("fr", "iso-8859-1"),
        ("pl", "iso-8859-2"),
        ("ru", "windows-1251"),
        ("ja", "shift_jis"),
        ("zh", "gb18030"),
    ],
)
def test_a_page_names_its_encoding(read, meta, language, encoding):
    text = ARTICLE_1[language]
    raw = page(text, meta.format(encoding)).encode(encoding)
    assert read("a.html", raw) == [Record(0, "", MAIN.format(text=text))]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_outweighs_what_a_page_says(encoding):
    raw = page("d\u00e9j\u00e0 vu", "<meta charset=windows-1251>").encode(encoding)
    assert decode(raw, "iso-8859-2") == page("d\u00e9j\u00e0 vu", "<meta charset=windows-1251>")


def test_a_page_without_a_name_of_its_encoding_is_looked_at():
    for encoding in ("utf-8", "windows-1251"):
        assert ARTICLE_1["ru"] in decode(page(ARTICLE_1["ru"]).encode(encoding))
    assert "\u00e9t\u00e9" in decode("<meta charset=utf-16><p>\u00e9t\u00e9".encode())
    assert "\u00e9t\u00e9" in decode(b"<meta charset=utf-8><p>\xe9t\xe9")
    assert "\u0144" in decode("<p>\u0144".encode("iso-8859-2"), "latin2")
    assert "abc" in decode(b"<p>abc", "no-such-encoding")


def test_html_in_records_is_read_where_the_source_says_so(read, tmp_path):
    pages = [page("One."), ONLY_MENU, "plain <b>mi\ud800ll</b>"]
    raw = "\n".join(json.dumps({"text": text}) for text in pages).encode()
    expected = [MAIN.format(text="One."), "", "plain mi\ufffdll"]
    assert [record.text for record in read("a.jsonl", raw, text_format="html")] == expected
    assert [record.text for record in read("a.jsonl", raw)] == pages
    pq.write_table(pa.table({"text": pages[:2]}), tmp_path / "made")
    found = read("a.parquet", (tmp_path / "made").read_bytes(), text_format="html")
    assert [record.text for record in found] == expected[:2]


def test_a_page_without_main_text_is_dropped_as_empty(tmp_path):
    (tmp_path / "a.html").write_text(page("Corn."))
    (tmp_path / "b.html").write_text(page("Flour."))
    (tmp_path / "c.html").write_text(ONLY_MENU)
    source = SourceConfig(name="s", kind="files", path=f"{tmp_path}/*.html")
    config = DataConfig(sources=(source,), quality=QualityConfig(profile="none"), workers=1)
    inventory = take_inventory(config)
    assert "resiliparse" in documents_libraries(config, inventory)
    for name in ("documents", "splits"):
        (tmp_path / name).mkdir()
    build_documents(config, inventory, tmp_path / "documents", silent)
    books = build_splits(config, tmp_path / "documents", tmp_path / "splits", silent)["books"]
    assert (books["documents_in"], books["quarantined"], books["dropped"]) == (3, 0, {"empty": 1})
    names = pq.read_table(tmp_path / "documents/documents")["doc_id"].to_pylist()
    assert names == ["s:a.html", "s:b.html", "s:c.html"]


def test_a_page_that_is_nested_without_end_is_set_aside_at_once(read):
    start = time.perf_counter()
    raw = b"<div>" * 200_000 + b"x"
    (bad,) = read("a.html", raw)
    assert "nested deeper than 512" in bad.reason
    assert bad.raw == raw[: 1 << 20]
    assert time.perf_counter() - start < 30  # without the limit it takes many minutes
    assert main_text("<div><p>x</div>" * 5_000).count("x") == 5_000
    with pytest.raises(TooDeepError):
        main_text("<ARTICLE class=a>" * 600)


def test_a_page_larger_than_a_record_may_be_is_set_aside(read):
    (bad,) = read("a.html", page("x" * 5_000).encode(), {"max_record_bytes": 4_000})
    assert "larger than 4000 bytes" in bad.reason


MARKUP = [
    "<",
    ">",
    "</",
    "<div>",
    "<p>",
    "<!--",
    "<table><td>",
    "&#xD800;",
    "&",
    "<script>",
    "<br/",
    "a",
    " ",
    "\0",
    "\ud800",
]


@given(st.lists(st.sampled_from(MARKUP) | st.text(max_size=3), max_size=30).map("".join))
def test_any_text_gives_text(page):
    main_text(page).encode("utf-8")


@given(st.binary(max_size=200), st.sampled_from(["", "utf-8", "utf-16", "utf-7", "x", "shift_jis"]))
def test_any_bytes_can_be_decoded(raw, charset):
    decode(raw, charset).encode("utf-8")


@pytest.mark.parametrize("charset", ["", "utf-8"])
def test_a_broken_byte_does_not_turn_a_page_into_mojibake(charset):
    for language in ("fr", "pl", "ru", "ja", "zh"):
        raw = page(ARTICLE_1[language] + "|").encode().replace(b"|", b"\xff\x81\xc3")
        assert ARTICLE_1[language] in decode(raw, charset)
    assert ARTICLE_1["ja"] in decode(ARTICLE_1["ja"].encode("shift_jis") + b"\x81", "shift_jis")


@pytest.mark.parametrize(
    ("language", "encoding"),
    [("ru", "windows-1251"), ("ja", "shift_jis"), ("zh", "gb18030"), ("pl", "iso-8859-2")],
)
def test_where_the_header_is_wrong_the_page_is_asked(language, encoding):
    raw = page(ARTICLE_1[language], f"<meta charset={encoding}>").encode(encoding)
    assert ARTICLE_1[language] in decode(raw, "utf-8")
    assert ARTICLE_1[language] in decode(
        page(ARTICLE_1[language], "<meta charset=us-ascii>").encode(), "ascii"
    )


def test_a_header_that_names_utf_16_is_believed_if_the_bytes_agree():
    assert decode(page("d\u00e9j\u00e0").encode("utf-16-le"), "UTF-16LE") == page("d\u00e9j\u00e0")
    assert decode(page("d\u00e9j\u00e0").encode(), "UTF-16LE") == page("d\u00e9j\u00e0")


def test_a_character_alone_between_tags_stays_unless_it_is_an_icon():
    letters = "\u6c34\u5186\ud55c\u0e01\u20ac\u2013\u2713\u3042\uff01"
    cells = "".join(f"<td> {letter}\n</td>" for letter in letters)
    text = main_text(
        f"<p>\u559d<b>\u6c34</b>\u597d</p><table><tr>{cells}</tr></table><i>&mdash;</i><b>&#x6C34;</b>"
    )
    assert text.startswith("\u559d\u6c34\u597d")
    assert "".join(text.split())[3:] == f"{letters}\u2014\u6c34"
    assert main_text("<p>Mill<i>\ue001</i><b>&#xe900;</b><a>\u00b6</a><a>&para;</a>") == "Mill"
