import pytest

from lmcore.data.media_type import is_certainly_text, parse, sniff


@pytest.mark.parametrize(
    ("field", "media", "charset"),
    [
        ("text/html", "text/html", ""),
        ("Text/HTML ;Charset = 'UTF-8'", "text/html", "UTF-8"),
        ('text/html;x="a,b;c";charset="latin1"', "text/html", "latin1"),
        ("text/html, text/html; charset=utf-8", "text/html", "utf-8"),
        ("text/html; charset=utf-8, text/html", "text/html", "utf-8"),
        ("text/html; charset=utf-8, text/plain", "text/plain", ""),
        ("text/html, */*, junk", "text/html", ""),
        ("text/html;charset=a;charset=b", "text/html", "a"),
        ("text/html;;;charset=utf-8;", "text/html", "utf-8"),
        ("application/xhtml+xml;profile=x", "application/xhtml+xml", ""),
        ("", "", ""),
        ("html", "", ""),
        ("unknown/unknown", "", ""),
        ("text/html charset=utf-8", "", ""),
    ],
)
def test_a_content_type_is_read_as_fetch_does(field, media, charset):
    assert parse(field) == (media, charset)


@pytest.mark.parametrize(
    ("content", "media"),
    [
        (b"  \n<!DOCTYPE html><p>", "text/html"),
        (b"<HTML >", "text/html"),
        (b"<!--x", "text/html"),
        (b"\xef\xbb\xbf<html>", "text/html"),
        ("\ufeff<html>".encode("utf-16-le"), "text/html"),
        (b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC><html>", "text/html"),
        (b"<?xml version='1.0'?><rss>", "text/xml"),
        (b"<p>x", "text/html"),
        (b"<pre-release>", "text/plain"),
        (b"Plain words.", "text/plain"),
        (b"\xef\xbb\xbfPlain", "text/plain"),
        (b"", "text/plain"),
        (b"%PDF-1.4", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\x1f\x8b\x08\x00\x00", "application/octet-stream"),
    ],
)
def test_content_is_sniffed_by_its_first_bytes(content, media):
    assert sniff(content) == media


def test_text_is_certain_without_binary_bytes():
    assert is_certainly_text("d\u00e9j\u00e0 vu".encode())
    assert is_certainly_text("<p>d\u00e9j\u00e0 vu".encode("latin-1"))
    assert not is_certainly_text("d\u00e9j\u00e0 vu".encode("latin-1"))
    assert not is_certainly_text(b"a\0b")
