import itertools
import random
import unicodedata

import ftfy
import pytest
from ftfy.chardata import CHARMAP_ENCODINGS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmcore.config import TextConfig
from lmcore.data.text import _may_change_in_nfc, clean, may_be_mojibake, normalise
from tests.lmcore.data.languages import ARTICLE_1

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


# --- mojibake ---

REPAIRS = TextConfig(repair_mojibake=True)
PROSE = [
    *ARTICLE_1.values(),
    "\u201cDon\u2019t\u201d \u2014 the miller\u2019s café \u00abà la carte\u00bb",
    "costs 5\u202f\u20ac\u2026 \U0001f600\u2764\ufe0f",
    "Œuvres, ŒUVRES: À «été» – Å 20 °C, ±3 µm², ½ £, №5, Ø 3, 100 €/m³,",
    "naïve Ångström’s façade, ÀÉÎ, l’Œ, œ.",
    "В О Е Р Щ, і Мі Ні: „Їжак“ — ‘ёлка’… «Ё» №7; Â Ã, ã â à, ΑΆΒ Ά, ŁÓDŹ, ŹDŹBŁO",
]


def misread(text, encoding):
    """What becomes of UTF-8 that is read in ``encoding``."""
    return text.encode("utf-8").decode(encoding)


def damaged(text):
    """Whole texts and parts of them misread once or twice, with bytes lost or turned into spaces."""
    words = text.split(" ")
    for encoding in CHARMAP_ENCODINGS:
        whole = misread(text, encoding)
        yield from (whole, whole.replace("\xa0", " "), whole.replace("\x9d", "\ufffd"))
        yield whole.encode("utf-8").decode("ascii", "replace")
        yield from (misread(part, encoding) for part in text if ord(part) > 127)
        for place in range(0, len(words), 3):
            yield " ".join([*words[:place], misread(words[place], encoding), *words[place + 1 :]])
        for other in CHARMAP_ENCODINGS:
            yield misread(misread(text[:60], encoding), other)
        # What a program does that knows no sloppy encodings: "?" or U+FFFD for a byte without a letter.
        for lost in "?\ufffd":
            yield "".join(lost if "\x80" <= c <= "\x9f" else c for c in whole)


def test_what_ftfy_would_repair_is_never_taken_for_good():
    repaired = 0
    for text in PROSE:
        for candidate in (text, *damaged(text)):
            changes = ftfy.fix_encoding(candidate) != candidate
            repaired += changes
            assert may_be_mojibake(candidate) or not changes, candidate
    assert repaired > 5_000


# Letters that the bytes of UTF-8 become in some encoding, and what ftfy looks for beside them.
FRAGMENTS = sorted({bytes([byte]).decode(name) for name in CHARMAP_ENCODINGS for byte in range(0x80, 0x100)})


@given(st.lists(st.sampled_from([*FRAGMENTS, *" ?ab.\ufffd\x1a", " ", "Ã", "Â"]), max_size=8).map("".join))
@settings(max_examples=2_000)
@example("à »à »à")
@example("aÂ ")
@example("À\u20ac")
def test_no_sequence_that_ftfy_would_change_is_taken_for_good(text):
    assert may_be_mojibake(text) or ftfy.fix_encoding(text) == text


def test_all_pairs_of_fragments_that_ftfy_would_change_are_found():
    for pair in itertools.product([*FRAGMENTS, *" ?a\ufffd"], repeat=2):
        text = "".join(pair)
        assert may_be_mojibake(text) or ftfy.fix_encoding(text) == text


def test_good_prose_is_seldom_looked_at_twice():
    looked_at = [text for text in ARTICLE_1.values() if may_be_mojibake(text)]
    assert len(looked_at) <= 3


@pytest.mark.parametrize("language", [code for code in ARTICLE_1 if code != "en"])
def test_misread_text_is_repaired_and_good_text_is_left_alone(language):
    text = normalise(ARTICLE_1[language])
    assert clean(text, REPAIRS) == text
    assert clean(misread(text, "sloppy-windows-1252"), REPAIRS) == text
    assert clean(misread(text, "latin-1"), REPAIRS) == text  # its C1 controls must live until then


def test_a_line_is_repaired_though_another_is_good():
    good, bad = "Ärger über Äpfel, où l\u2019été", misread("déjà vu, naïve café", "latin-1")
    assert clean(f"{good}\r\n{bad}\n{good}", REPAIRS) == f"{good}\ndéjà vu, naïve café\n{good}"


@given(any_text)
def test_what_is_cleaned_is_still_normal(text):
    found = clean(text, TextConfig(repair_mojibake=True, drop_zero_width=True))
    assert normalise(found) == found


@given(any_text)
def test_by_default_cleaning_is_normalising(text):
    assert clean(text, TextConfig()) == normalise(text)


# --- characters without width ---


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("zero\u200bwidth\u2060 and\ufeff so\u00adft", "zerowidth and soft"),
        ("auf\u200clage a\u200db \u200d", "auflage ab "),
        ("é\u200cé", "éé"),
        ("e\u00ad\u0301", "é"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("می\u200c\u200cخواهم", "می\u200cخواهم"),
        ("می\u200c خواهم", "می خواهم"),
        ("क\u094d\u200dष", "क\u094d\u200dष"),
        ("ന\u0d4d\u200d .", "ന\u0d4d\u200d ."),  # a letter of its own in older Malayalam
        (
            "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f468\u200d",
            "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f468",
        ),
        ("\u2764\ufe0f\u200d\U0001f525", "\u2764\ufe0f\u200d\U0001f525"),
        ("\ud83d\udc68\u200d\ud83d\udc69", "\U0001f468\u200d\U0001f469"),
        ("\u200b", ""),
    ],
)
def test_what_has_no_width_goes_but_joiners_that_join(raw, expected):
    assert clean(raw, TextConfig(drop_zero_width=True)) == expected
    assert clean(raw, TextConfig()) == normalise(raw)


@pytest.mark.parametrize("language", ARTICLE_1)
def test_no_language_loses_a_letter_to_it(language):
    text = normalise(ARTICLE_1[language])
    planted = "".join(c + random.Random(len(text)).choice(["", "\u200b", "\ufeff"]) for c in text)
    assert clean(text, TextConfig(drop_zero_width=True)) == text
    assert clean(planted, TextConfig(drop_zero_width=True)) == text


def test_what_is_not_looked_at_closely_is_in_nfc():
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    plain = [one for one in every if not _may_change_in_nfc().search(one)]
    assert len(plain) > 50_000
    # No two of them meet in a way that NFC would change, and none is changed alone.
    assert unicodedata.is_normalized("NFC", "".join(plain))
    assert all(unicodedata.is_normalized("NFC", one) for one in plain)
    draw = random.Random(1)
    for _ in range(200):
        mixed = "".join(draw.choices(plain, k=500))
        assert unicodedata.is_normalized("NFC", mixed)
