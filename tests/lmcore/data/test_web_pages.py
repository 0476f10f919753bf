import gzip
import hashlib
import io
from collections import Counter

import pytest
import zstandard
from warcio.archiveiterator import ArchiveIterator

from lmcore.config import DataConfig, LimitsConfig, QualityConfig, SourceConfig
from lmcore.data.books import Books
from lmcore.data.documents import build_documents
from lmcore.data.records import Quarantined, Record, read_records
from lmcore.data.sources import SourceFile, take_inventory
from lmcore.errors import DataError
from lmcore.progress import silent
from tests.lmcore.data import odd_archives
from tests.lmcore.data.test_warc import record, response


@pytest.fixture
def read(tmp_path):
    def read(name, raw, **limits):
        path = tmp_path / name
        path.write_bytes(raw)
        file = SourceFile("s", str(path), name, len(raw), hashlib.sha256(raw).hexdigest())
        others = Counter()
        found = read_records(file, SourceConfig(name="s"), LimitsConfig(**limits), without_page=others)
        return list(found), others

    return read


def texts(found):
    return [entry.text for entry in found if isinstance(entry, Record)]


def reasons(found):
    return [entry.reason for entry in found if isinstance(entry, Quarantined)]


@pytest.mark.parametrize("seed", range(4))
def test_each_record_is_in_a_book_and_as_many_as_another_reader_counts(read, seed):
    odd = list(odd_archives.records(300, seed))
    raw = b"".join(entry.raw for entry in odd)
    found, others = read("a.warc", raw)
    packed = [gzip.compress(entry.raw, mtime=0) for entry in odd]
    for name, stored in (("a.warc.gz", b"".join(packed)), ("b.warc.gz", gzip.compress(raw))):
        again, counted = read(name, stored)
        assert (texts(again), reasons(again), counted) == (texts(found), reasons(found), others)
    assert texts(found) == [entry.text for entry in odd if entry.text is not None]
    assert len(found) == sum(entry.is_page for entry in odd)
    assert len(found) + others.total() == len(odd)
    theirs = Counter(entry.rec_type.lower() for entry in ArchiveIterator(io.BytesIO(b"".join(packed))))
    assert theirs == Counter(entry.type for entry in odd)
    assert theirs.total() == len(found) + others.total()
    named = sum(n for name, n in others.items() if name in theirs or name == "record of another type")
    responses = ("response", "resource", "conversion")
    assert theirs.total() - named == sum(theirs[kind] for kind in responses)


def test_bodies_are_as_another_reader_decodes_them(read):
    odd = [
        entry
        for entry in odd_archives.records(600, 9)
        if entry.type == "response" and entry.text and b"text/plain" in entry.raw.lower()
        # what it does not know: brotli's newest interface, x-gzip, several codings, chunks by name alone
        if not any(
            odd in entry.raw for odd in (b"Encoding: br", b"gzip, br", b"X-GZIP", b"Transfer-Encoding")
        )
    ]
    found, _ = read("a.warc", b"".join(entry.raw for entry in odd))
    members = b"".join(gzip.compress(entry.raw) for entry in odd)
    theirs = [entry.content_stream().read().decode() for entry in ArchiveIterator(io.BytesIO(members))]
    assert len(odd) > 30
    assert texts(found) == theirs


def test_the_documents_stage_counts_what_holds_no_page(tmp_path):
    odd = list(odd_archives.records(200, 5))
    (tmp_path / "a.warc").write_bytes(b"".join(entry.raw for entry in odd))
    source = SourceConfig(name="s", kind="files", path=f"{tmp_path}/*.warc")
    config = DataConfig.model_validate(
        {"sources": (source,), "quality": QualityConfig(profile="none"), "workers": 1}
        | {"limits": LimitsConfig(max_quarantined=1)}
    )
    (tmp_path / "out").mkdir()
    summary = build_documents(config, take_inventory(config), tmp_path / "out", silent)
    books = Books.from_json(summary["books"])
    assert books.documents_in == books.passed + books.quarantined == sum(entry.is_page for entry in odd)
    assert books.documents_in + books.without_page.total() == len(odd)
    assert books.without_page["status 404"] > 0
    assert Books.from_json(books.to_json()) == books == Books.total([books])


PLAIN = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (response(b"Half", PLAIN, **{"WARC-Truncated": "length"}), "WARC-Truncated: length"),
        (response(b"Half", PLAIN, **{"WARC-Segment-Number": "1"}), "WARC-Segment-Number"),
        (response(b"Half", PLAIN + "\r\nContent-Length: 8"), "truncated HTTP body: 4 of 8 bytes"),
        (response(bytes(range(256)), PLAIN), "undecodable: "),
        (response("\ufffd".encode() * 9, PLAIN), "undecodable: 9 of 9 characters"),
        (response(b"\x89PNG\r\n\x1a\n" + bytes(60), PLAIN.replace("plain", "html")), "undecodable: "),
        (response(gzip.compress(b"x" * 90), PLAIN), "undecodable: "),
        (record(b"x", ""), "no WARC-Type"),
    ],
)
def test_what_is_half_or_no_text_is_quarantined(read, part, reason):
    found, others = read("a.warc", part + response(b"Good", PLAIN))
    assert texts(found) == ["Good"]
    assert reason in reasons(found)[0]
    assert not others


def test_a_few_broken_letters_do_not_cost_a_page(read):
    page = ("The mill \ufffd\ufffd" + " turns" * 20 + "\0").encode()
    assert len(texts(read("a.warc", response(page, PLAIN))[0])) == 1


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (record(b"<html><p>Old", "response", "text/html"), "Old"),
        (record(b"<html><p>Old"), "Old"),  # HTTP/0.9
        (record(PLAIN.encode() + b"\r\n\r\nA", "response", "text/html"), "A"),
        (record(b"<!doctype html><p>A", "resource", ""), "A"),
        (record("d\u00e9".encode("latin-1"), "conversion", "text/plain;charset=latin1"), "d\u00e9"),
        (response(b"A", "HTTP/1.1 200 OK"), "A"),
        (response(b"A", PLAIN.replace("text/plain", "TEXT/Plain ")), "A"),
    ],
)
def test_a_page_is_found_however_it_is_labelled(read, part, text):
    found, others = read("a.warc", part)
    assert (texts(found), others) == ([text], {})


def test_names_of_what_holds_no_page_are_few(read):
    parts = [response(b"x", f"HTTP/1.1 200 OK\r\nContent-Type: a{i}/b{i}") for i in range(50)]
    parts += [record(b"x", f"kind{i}", "a/b") for i in range(50)]
    found, others = read("a.warc", b"".join(parts))
    assert not found
    assert others == {"another media type": 50, "record of another type": 50}


# --- containers ------------------------------------------------------------------------------------

PAGES = [
    response(f"Page {i} of the mill.".encode(), PLAIN, url=f"http://mill.example/{i}") for i in range(20)
]
TEXTS = [f"Page {i} of the mill." for i in range(20)]


def zst(parts, dictionary=None, compress_dictionary=False):
    known = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    packer = zstandard.ZstdCompressor(dict_data=known, write_checksum=True)
    head = b""
    if dictionary:
        stored = zstandard.compress(dictionary) if compress_dictionary else dictionary
        head = b"\x5d\x2a\x4d\x18" + len(stored).to_bytes(4, "little") + stored
    return [head, *(packer.compress(part) for part in parts)]


DICTIONARY = zstandard.train_dictionary(
    4_000, [page + bytes([i % 200]) * 50 for i, page in enumerate(PAGES * 20)]
).as_bytes()


@pytest.mark.parametrize("parts", [PAGES, [b"".join(PAGES)]])
@pytest.mark.parametrize(
    "options", [{}, {"dictionary": DICTIONARY}, {"dictionary": DICTIONARY, "compress_dictionary": True}]
)
def test_an_archive_in_zstd_is_read_with_and_without_a_dictionary(read, parts, options):
    found, others = read("a.warc.zst", b"".join(zst(parts, **options)))
    assert (texts(found), reasons(found), others) == (TEXTS, [], {})


def test_skippable_frames_in_zstd_are_passed_over(read):
    skip = b"\x50\x2a\x4d\x18" + (100_000).to_bytes(4, "little") + bytes(100_000)
    assert texts(read("a.warc.zst", skip + skip.join(zst(PAGES)) + skip)[0]) == TEXTS


def test_damage_in_zstd_costs_its_record_alone(read):
    parts = [bytearray(part) for part in zst(PAGES, DICTIONARY)]
    parts[6][-3] ^= 1  # its checksum
    found, _ = read("a.warc.zst", b"".join(parts))
    assert texts(found) == TEXTS[:5] + TEXTS[6:]
    assert reasons(found)[0].startswith("damaged zstd")
    found, _ = read("a.warc.zst", b"".join(parts)[:-10])
    assert reasons(found)[-1] == "truncated zstd"


def test_frames_without_their_dictionary_are_quarantined(read):
    found, _ = read("a.warc.zst", b"".join(zst(PAGES, DICTIONARY)[1:]))
    assert not texts(found)
    assert reasons(found)[0].startswith("damaged zstd")


@pytest.mark.parametrize("name", ["a.warc.wet", "a.wet", "a.warc.wet.gz", "a.wet.gz", "a.WET.zst"])
def test_extracted_text_is_read_from_each_suffix(read, name):
    parts = [record(text.encode(), "conversion", "text/plain") for text in TEXTS]
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".", 1)[1], bytes)
    assert texts(read(name, b"".join(map(pack, parts)))[0]) == TEXTS


def arc(version=1):
    about = f"{version} 0 Mill\nURL IP-address Archive-date Content-type Archive-length\n\n".encode()
    yield b"filedesc://a.arc 0.0.0.0 20080430204825 text/plain %d\n%s\n" % (len(about), about)
    yield b"dns:mill.example 127.0.0.1 20080430204825 text/dns 5\n1.1.1\n"
    for i, text in enumerate(TEXTS):
        block = f"{PLAIN}\n\n{text}".replace("\r\n", "\n" if i % 2 else "\r\n").encode()
        more = "200 checksum - 0 a.arc " if version == 2 else ""
        line = f"http://mill.example/{i} 127.0.0.1 20080430204825 text/plain {more}{len(block)}\n"
        yield line.encode() + block + b"\n"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz", "b.arc.gz"])
def test_an_arc_is_read_as_another_reader_does(read, name, version):
    members = b"".join(gzip.compress(part, mtime=0) for part in arc(version))
    raw = {"a.arc": b"".join(arc(version)), "a.arc.gz": members}.get(
        name, gzip.compress(b"".join(arc(version)))
    )
    found, others = read(name, raw)
    assert texts(found) == TEXTS
    assert found[3].id == f"{name}#3 http://mill.example/3"
    assert others == {"warcinfo": 1, "text/dns": 1}
    theirs = [entry.rec_type for entry in ArchiveIterator(io.BytesIO(members))]
    assert len(theirs) == len(found) + others.total()


def test_damage_in_an_arc_costs_its_record_alone(read):
    parts = list(arc())
    parts[7] = parts[7].replace(b" 20080430204825 text/plain ", b" 20080430204825 text/plain 1")
    found, _ = read("a.arc", b"".join(parts))
    assert texts(found) == TEXTS[:5] + TEXTS[6:]
    assert reasons(found) == ["does not end where its Content-Length says"]
    found, _ = read("a.arc", b"".join(arc())[:-5])
    assert texts(found) == TEXTS[:-1]
    assert reasons(found) == ["ends before its Content-Length"]


@pytest.mark.parametrize("name", ["a.wat", "a.warc.wat.gz", "a.wat.gz"])
def test_metadata_of_pages_is_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    source = SourceConfig(name="s", kind="files", path=f"{tmp_path}/*")
    with pytest.raises(DataError, match=r"take the \.warc or the \.wet"):
        take_inventory(DataConfig(sources=(source,)))


def test_a_binary_file_called_html_is_quarantined(read):
    found, _ = read("a.html", gzip.compress(b"<p>mill" * 100))
    assert "undecodable" in reasons(found)[0]
    assert texts(read("b.html", b"<ul><li>Mill</ul>")[0]) == ["  \u2022 Mill"]
