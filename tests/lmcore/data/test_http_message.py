import gzip
import random
import zlib

import brotli
import pytest
import zstandard

from lmcore.data.http_message import BrokenMessageError, Response, decoded_body, fields_of, parse_response

draw = random.Random(3)
WORDS = ["mill", "stone", "flour", "wheel", "river", "grain", "the", "turns"]
PAGE = ("<html><body><p>" + " ".join(draw.choices(WORDS, k=400)) + "</p></body></html>").encode()


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODERS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw deflate": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}
NAMES = {
    "gzip": ("gzip", "x-gzip", "GZIP", " Gzip ", '"gzip"', "identity, gzip"),
    "deflate": ("deflate", "Deflate"),
    "raw deflate": ("deflate", "DEFLATE"),
    "br": ("br", "BR"),
    "zstd": ("zstd", "Zstd"),
}


def body_of(body, most=1_000_000, **fields):
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return decoded_body(Response(200, named, body), most)


@pytest.mark.parametrize(("coder", "name"), [(coder, name) for coder in NAMES for name in NAMES[coder]])
def test_a_coded_body_is_read_whole_or_not_at_all(coder, name):
    coded = CODERS[coder](PAGE)
    assert body_of(coded, content_encoding=name) == PAGE
    for cut in (1, 2, 4, 9, 40, len(coded) // 2, len(coded) - 5):
        with pytest.raises(BrokenMessageError, match=r"undecodable HTTP body: (damaged|truncated)"):
            body_of(coded[:-cut], content_encoding=name)
    with pytest.raises(BrokenMessageError, match="undecodable"):
        body_of(coded + b"junk" * 9, content_encoding=name)
    if coder not in ("br", "zstd", "raw deflate"):  # those have no checksum
        for place in range(4, len(coded), 97):
            damaged = bytearray(coded)
            damaged[place] ^= 0x55
            try:  # flags and names in the header may change without harm
                assert body_of(bytes(damaged), content_encoding=name) == PAGE
            except BrokenMessageError:
                continue


@pytest.mark.parametrize("outer", CODERS)
@pytest.mark.parametrize("inner", CODERS)
def test_several_codings_are_taken_off_in_turn(inner, outer):
    coded = CODERS[outer](CODERS[inner](PAGE))
    names = f"{inner.split()[-1]}, {outer.split()[-1]}"
    assert body_of(coded, content_encoding=names) == PAGE
    assert body_of(gzip.compress(coded), content_encoding=names, transfer_encoding="gzip") == PAGE


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd", "sdch", "compress", "utf-8", "gzip, br"])
def test_a_body_that_was_stored_decoded_is_read_as_it_is(name):
    latin = "<html><body><p>d\u00e9j\u00e0 vu</p></body></html>".encode("latin-1")
    for plain in (PAGE, latin, "d\u00e9j\u00e0 vu".encode(), b""):
        assert body_of(plain, content_encoding=name) == plain


@pytest.mark.parametrize("name", ["sdch", "compress", "x-compress", "bzip2", "gzip, sdch", "aes128gcm"])
def test_a_body_in_an_unknown_coding_is_refused(name):
    for seed in range(30):
        body = random.Random(seed).randbytes(20 + 40 * seed)
        with pytest.raises(BrokenMessageError, match="undecodable HTTP body"):
            body_of(body, content_encoding=name)


@pytest.mark.parametrize("name", ["", "identity", "none", " , "])
def test_no_coding_changes_nothing(name):
    assert body_of(b"\x1f\x8b\x08 x", content_encoding=name) == b"\x1f\x8b\x08 x"


@pytest.mark.parametrize("coder", CODERS)
def test_a_body_that_expands_is_cut_off(coder):
    coded = CODERS[coder](bytes(50_000_000))
    found = body_of(coded, 10_000, content_encoding=coder.split()[-1])
    assert 10_000 < len(found) < 40_000_000  # zstd's smallest step is a block of 128 KB for every 4 bytes


def chunked(body, size=50, last=b"0\r\n\r\n"):
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in parts) + last


def test_chunks_are_joined_only_if_all_are_there():
    for last in (b"0\r\n\r\n", b"000\r\nDigest: x\r\n\r\n", b"0 \r\n"):
        assert body_of(chunked(PAGE, last=last), transfer_encoding="Chunked") == PAGE
    assert body_of(chunked(PAGE).replace(b"\r\n", b"\n"), transfer_encoding="chunked") == PAGE
    packed = chunked(gzip.compress(PAGE))
    assert body_of(packed, transfer_encoding="chunked", content_encoding="gzip") == PAGE
    assert body_of(packed, transfer_encoding="gzip, chunked") == PAGE
    for plain in (PAGE, b"", b"12 mills", b"add\r\nsome more text than 0xadd is" + b"x" * 0xADD):
        assert body_of(plain, transfer_encoding="chunked") == plain  # stored decoded
    for cut in (5, 6, 20, 70, len(PAGE)):
        with pytest.raises(BrokenMessageError, match="last chunk is missing"):
            body_of(chunked(PAGE)[:-cut], transfer_encoding="chunked")
    with pytest.raises(BrokenMessageError, match="last chunk is missing"):
        body_of(b"fff\r\n" + PAGE[:100], transfer_encoding="chunked")


def test_a_body_shorter_than_its_length_is_truncated():
    length = str(len(PAGE))
    assert body_of(PAGE, content_length=length) == PAGE
    assert body_of(PAGE + b"\r\n", content_length=length) == PAGE + b"\r\n"
    for fields in ({}, {"content_encoding": "identity"}):
        with pytest.raises(BrokenMessageError, match=f"truncated HTTP body: 100 of {length} bytes"):
            body_of(PAGE[:100], content_length=f"{length}, {length}", **fields)
    # A length on the wire says nothing of what was decoded for the archive.
    for odd in (
        {"content_encoding": "gzip"},
        {"x_crawl_content_encoding": "br"},
        {"transfer_encoding": "chunked"},
    ):
        assert body_of(PAGE, content_length="99999", **odd) == PAGE
    for odd in ("", "x", "-1", "10, 20"):
        assert body_of(PAGE, content_length=odd) == PAGE


def test_header_fields_are_found_however_they_are_written():
    head = b"X\r\nCONTENT-TYPE : text/html;\r\n\tcharset=utf-8\nA:b\r\nbroken line\r\n folded\r\n"
    head += b"a:c\r\nEmpty:\r\n"
    assert fields_of(head) == {"content-type": "text/html; charset=utf-8", "a": "b, c", "empty": ""}


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("HTTP/1.1 200 OK", 200),
        ("HTTP/1.0 200", 200),
        ("HTTP/2 200", 200),
        ("HTTP/2.0 200 ", 200),
        ("HTTP/3 404", 404),
        ("http/1.1 200 fine", 200),
        ("HTTP/1.1  200  \t", 200),
        ("HTTP 200 OK", 200),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 203 X", 203),
        ("HTTP/1.0 200 Connection established\r\n\r\nHTTP/1.1 301 Moved", 301),
    ],
)
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_status_line_is_read_in_any_form(line, status, end):
    found = parse_response((line.replace("\r\n", end) + f"{end}A: b{end}{end}body").encode())
    assert (found.status, dict(found.fields), found.body) == (status, {"a": "b"}, b"body")


@pytest.mark.parametrize(
    "block", [b"", b"junk", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]
)
def test_what_is_no_response_is_refused(block):
    with pytest.raises(BrokenMessageError, match="HTTP response"):
        parse_response(block)
