import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.text import normalise

any_text = st.text(st.characters(exclude_categories=()))


@given(any_text)
def test_what_is_normalised_stays_as_it_is(text):
    assert normalise(normalise(text)) == normalise(text)


@given(any_text)
def test_the_result_is_nfc_utf8_without_controls(text):
    result = normalise(text)
    result.encode("utf-8")
    assert unicodedata.is_normalized("NFC", result)
    assert not [c for c in result if unicodedata.category(c) == "Cc" and c not in "\t\n"]


@given(st.text(st.characters(codec="ascii", exclude_categories=("Cc",), include_characters="\t\n")))
def test_clean_ascii_is_left_alone(text):
    assert normalise(text) == text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("e\u0301", "\u00e9"),
        ("e\x00\u0301", "\u00e9"),
        ("\ufeff\x00x\x84\x7f", "x"),
        ("end of page\x0cnext\x0b\x85", "end of page\nnext\n\n"),
        ("\ud83d\ude00 \ud800!", "\U0001f600 \ufffd!"),
    ],
)
def test_one_spelling_for_what_reads_the_same(raw, clean):
    assert normalise(raw) == clean
