import gzip
import hashlib
import io
import random
import tracemalloc

import brotli
import pytest
from fastwarc.stream_io import GzipWriter
from fastwarc.warc import WarcRecord, WarcRecordType
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import LimitsConfig, SourceConfig
from lmcore.data import warc
from lmcore.data.records import Quarantined, Record, read_records
from lmcore.data.sources import SourceFile
from lmcore.errors import DataError

SENTENCE = "The miller of page {} grinds the corn of {} and carries the flour home all day long."
BODIES = [f"<html><body><p>{SENTENCE.format(i, i * 7)}</p></body></html>".encode() for i in range(12)]
TEXTS = [SENTENCE.format(i, i * 7) for i in range(12)]
OK = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8"


def record(
    block, kind="response", media="application/http; msgtype=response", url="https://mill.example/a", **more
):
    fields = {
        "WARC-Type": kind,
        "WARC-Target-URI": url,
        "Content-Type": media,
        "Content-Length": len(block),
    } | more
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + block + b"\r\n\r\n"


def response(body, head=OK, **more):
    return record(head.encode() + b"\r\n\r\n" + body, **more)


INFO = record(b"software: mill\r\n", "warcinfo", "application/warc-fields")
REQUEST = record(b"GET / HTTP/1.1\r\n\r\n", "request", "application/http; msgtype=request")
PAGES = [response(body, url=f"https://mill.example/{i}") for i, body in enumerate(BODIES)]
RECORDS = [INFO, *(part for page in PAGES for part in (REQUEST, page))]


def compress(parts):
    return b"".join(gzip.compress(part, mtime=0) for part in parts)


@pytest.fixture
def read(tmp_path):
    def read(name, raw, **limits):
        path = tmp_path / name
        path.write_bytes(raw)
        file = SourceFile("s", str(path), name, len(raw), hashlib.sha256(raw).hexdigest())
        return list(read_records(file, SourceConfig(name="s"), LimitsConfig(**limits)))

    return read


def good(found):
    return [entry.text for entry in found if isinstance(entry, Record)]


def bad(found):
    return [entry for entry in found if isinstance(entry, Quarantined)]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.warc", b"".join(RECORDS)),
        ("a.warc.gz", compress(RECORDS)),
        ("b.warc.gz", gzip.compress(b"".join(RECORDS))),
    ],
)
def test_each_page_is_a_record_with_its_address(read, name, raw):
    expected = [Record(i, f"{name}#{i} https://mill.example/{i}", text) for i, text in enumerate(TEXTS)]
    assert read(name, raw) == expected


def test_what_another_program_writes_is_read(read):
    stream = io.BytesIO()
    with GzipWriter(stream) as writer:
        for body in BODIES:
            page = WarcRecord()
            page.init_headers(WarcRecordType.response, content_length=0)
            page.headers["Content-Type"] = "application/http; msgtype=response"
            page.headers["WARC-Target-URI"] = "https://mill.example/"
            page.set_bytes_content(OK.encode() + b"\r\n\r\n" + body)
            page.write(writer)
    assert good(read("a.warc.gz", stream.getvalue())) == TEXTS


def chunked(body):
    return (
        b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
        + b"0\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (gzip.compress(BODIES[3]), "Content-Encoding: gzip"),
        (brotli.compress(BODIES[3]), "Content-Encoding: br"),
        (chunked(BODIES[3]), "Transfer-Encoding: chunked"),
        (chunked(gzip.compress(BODIES[3])), "Transfer-Encoding: chunked\r\nContent-Encoding: gzip"),
        (BODIES[3], "Content-Encoding: gzip"),  # stored decoded, with the header left in
        (BODIES[3], "Transfer-Encoding: chunked"),
    ],
)
def test_pages_are_decoded_as_http_says(read, body, header):
    assert good(read("a.warc", response(body, f"{OK}\r\n{header}"))) == [TEXTS[3]]


def test_what_is_no_page_is_no_record(read):
    others = [
        INFO,
        REQUEST,
        response(b"<p>Not found", "HTTP/1.1 404 Not Found\r\nContent-Type: text/html"),
        response(b"\x89PNG", "HTTP/1.1 200 OK\r\nContent-Type: image/png"),
        record(b"a: b", "metadata", "application/warc-fields"),
    ]
    assert read("a.warc", b"".join(others)) == []
    plain = response(
        "d\u00e9j\u00e0".encode("latin-1"), "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=latin1"
    )
    wet = record("d\u00e9j\u00e0 vu".encode(), "conversion", "text/plain")
    assert good(read("a.warc.wet.gz", compress([*others, plain, wet]))) == [
        "d\u00e9j\u00e0",
        "d\u00e9j\u00e0 vu",
    ]
    menu = response(b"<html><body><nav><a href=/>Home</a></nav></body></html>")
    assert good(read("a.warc", menu)) == [""]


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"junk",
        b"HTTP/1.1\r\n\r\n",
        f"{OK}\r\nContent-Encoding: gzip\r\n\r\n".encode() + gzip.compress(b"")[:10] + b"\xff" * 40,
    ],
)
def test_a_response_that_cannot_be_read_is_set_aside_with_its_place(read, block):
    before, wrong, after = read("a.warc", PAGES[0] + record(block) + PAGES[1])
    assert [before.text, after.text] == TEXTS[:2]
    assert (wrong.index, wrong.offset, after.index, wrong.raw) == (1, len(PAGES[0]), 2, block)
    assert "HTTP" in wrong.reason


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_page_larger_than_a_record_may_be_is_set_aside(read, name):
    large = response(b"x" * 5_000)
    packed = response(gzip.compress(b"x" * 5_000), f"{OK}\r\nContent-Encoding: gzip")
    image = response(b"x" * 5_000, "HTTP/1.1 200 OK\r\nContent-Type: image/png")
    parts = [PAGES[0], large, PAGES[1], packed, image, PAGES[2]]
    found = read(name, compress(parts) if name.endswith("gz") else b"".join(parts), max_record_bytes=2_000)
    assert good(found) == TEXTS[:3]
    assert [entry.reason for entry in bad(found)] == ["larger than 2000 bytes (limits.max_record_bytes)"] * 2


@pytest.mark.parametrize("place", ["head", "middle", "checksum"])
def test_a_damaged_member_costs_itself_alone(read, place):
    members = [bytearray(gzip.compress(page)) for page in PAGES]
    at = {"head": 12, "middle": len(members[5]) // 2, "checksum": len(members[5]) - 6}[place]
    members[5][at] ^= 0x41
    found = read("a.warc.gz", b"".join(members))
    assert good(found) == TEXTS[:5] + TEXTS[6:]
    (lost,) = bad(found)
    assert (lost.index, lost.offset, lost.breaks_off) == (5, sum(map(len, members[:5])), False)
    assert lost.reason.startswith("damaged gzip")
    assert lost.raw


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_any_damage_costs_little_and_is_told(seed, size):
    for raw, gzipped in ((compress(PAGES), True), (b"".join(PAGES), False)):
        draw = random.Random(seed)
        at = draw.randrange(len(raw))
        patch = draw.randbytes(size)
        damaged = [
            raw[:at] + patch + raw[at + size :],  # overwritten
            raw[:at] + raw[at + size :],  # missing
            raw[:at] + patch + raw[at:],  # inserted
        ]
        for wrong in damaged:
            found = list(
                warc.records(
                    io.BytesIO(wrong),
                    suffix=".warc.gz" if gzipped else ".warc",
                    max_bytes=10_000,
                    max_total_bytes=10**7,
                )
            )
            whole = {
                entry.head + b"\r\n\r\n" + entry.block + b"\r\n\r\n"
                for entry in found
                if isinstance(entry, warc.Framed)
            }
            assert len(whole & set(PAGES)) >= len(PAGES) - 2
            told = any(isinstance(entry, warc.Lost) for entry in found)
            assert told or not gzipped or whole == set(PAGES)  # an archive as it is has no checksums


@pytest.mark.parametrize("length", ["999999999999", "9", "", "-1", "x"])
def test_a_wrong_length_costs_its_record_alone(read, length):
    wrong = PAGES[5].replace(f"Content-Length: {len(PAGES[5])}".encode(), b"")
    wrong = response(BODIES[5], **{"Content-Length": length})
    for name, join in (("a.warc", b"".join), ("a.warc.gz", compress)):
        found = read(name, join([*PAGES[:5], wrong, *PAGES[6:]]))
        assert good(found) == TEXTS[:5] + TEXTS[6:]
        (lost,) = bad(found)
        assert (lost.index, lost.raw[:8]) == (5, b"WARC/1.0")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.97])
def test_a_truncated_archive_keeps_what_came_before(read, share):
    for name, raw in (("a.warc", b"".join(PAGES)), ("a.warc.gz", compress(PAGES))):
        *before, last = read(name, raw[: int(len(raw) * share)])
        assert good(before) == TEXTS[: len(before)]
        assert len(before) >= int(12 * share) - 1
        assert last.breaks_off
        assert last.reason in (
            "truncated gzip",
            "ends before its Content-Length",
            "no header of a WARC record",
        )


def test_an_archive_that_expands_too_much_is_stopped_in_bounded_memory(read):
    bomb = gzip.compress(record(bytes(200_000_000), "resource", "text/plain"))
    tracemalloc.start()
    first, last = read("a.warc.gz", compress(PAGES[:1]) + bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first.text == TEXTS[0]
    assert "expands more than 200 times" in last.reason
    assert peak < 80_000_000


def test_zeros_behind_members_are_padding(read):
    assert (
        good(read("a.warc.gz", compress(PAGES[:2]) + bytes(200_000) + compress(PAGES[2:]) + bytes(9)))
        == TEXTS
    )


def test_an_archive_that_changes_meanwhile_is_an_error(tmp_path):
    (tmp_path / "a.warc").write_bytes(PAGES[0])
    file = SourceFile(
        "s", str(tmp_path / "a.warc"), "a.warc", len(PAGES[0]), hashlib.sha256(b"old").hexdigest()
    )
    with pytest.raises(DataError, match="changed while"):
        list(read_records(file, SourceConfig(name="s"), LimitsConfig()))
