import random
import unicodedata

import ftfy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmcore.config import TextConfig
from lmcore.data.cleaning import _marks, clean_texts
from lmcore.data.text import clean, normalise
from tests.lmcore.data.languages import ARTICLE_1

CONFIGS = [
    TextConfig(repair_mojibake=mojibake, drop_zero_width=zero_width)
    for mojibake in (False, True)
    for zero_width in (False, True)
]
SPOILT = [text.encode().decode("cp1252", "replace") for text in ARTICLE_1.values()]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_character_is_cleaned_as_alone(config):
    # Behind the scripts one plane is like another.
    codes = (*range(0x34000), *range(0x34000, 0x110000, 61))
    texts = [f"a{character}é" for character in map(chr, codes)]
    assert clean_texts(texts, config).to_pylist() == [clean(text, config) for text in texts]


@settings(deadline=None)  # the first one compiles
@given(st.lists(st.text(st.characters(exclude_categories=()))), st.sampled_from(CONFIGS))
@example(["A\nÂ        A", "Ã la", "Ã ", "à la"], CONFIGS[-1])
@example(["", "", "\ud800", "ÃƒÂ©", "a\u200bb", "\ufeff", "\r\n", "e\u0301"], CONFIGS[-1])
def test_texts_are_cleaned_as_alone(texts, config):
    assert clean_texts(texts, config).to_pylist() == [clean(text, config) for text in texts]


# Bases, marks, joiners and what NFC replaces: each changes what another becomes.
TANGLED = (
    "a\u03b1\u0438\u05d0\u0915 \n"
    "\u0301\u0306\u094d\u093c\u064b\u0e33"
    "\u200b\u200c\u200d\u00ad\ufeff"
    "\u212a\u212b\u1fef\u037e\u1100\u1161\u11a8\u0958"
    "\x00\x85\r\ud800\udc00\U0001f469\U0001d15e"
    "\u00c3\u00a9\u00c2\u00e2\u20ac\u2122"
)


@settings(deadline=None, max_examples=500)
@given(st.lists(st.text(st.sampled_from(TANGLED), max_size=8), max_size=20), st.sampled_from(CONFIGS))
@example(["\u03b1\u0301\u200d\u03b2", "\u212a\u200d\u05d0", "\u0915\u094d\u093c\u200d x"], CONFIGS[1])
@example(["\u0438\u0306\u200d\u0438", "\u05d0\u200d\u212b"], CONFIGS[3])
def test_what_is_looked_at_together_is_cleaned_as_alone(texts, config):
    assert clean_texts(texts, config).to_pylist() == [clean(text, config) for text in texts]


@pytest.mark.parametrize("config", CONFIGS)
def test_mojibake_is_found_as_alone(config):
    texts = [text[i : i + size] for text in SPOILT for i in range(len(text)) for size in (2, 3, 5)]
    assert clean_texts(texts, config).to_pylist() == [clean(text, config) for text in texts]


@pytest.mark.parametrize("seed", range(5))
def test_lines_that_hold_mojibake_are_repaired_whatever_else_their_text_holds(seed):
    draw = random.Random(seed)
    odd = ["e\u0301a", "\x85", "\x96 x", "\r", "\U0001f469", "\u0e33", "plain", "", "\u00e9t\u00e9", "\x00"]
    lines = [line for text in SPOILT for line in text.splitlines()]
    texts = [
        "\n".join(draw.choice(draw.choice((odd, lines))) for _ in range(draw.choice((1, 3, 40, 2_000))))
        for _ in range(30)
    ]
    expected = [normalise("\n".join(map(ftfy.fix_encoding, text.split("\n")))) for text in texts]
    assert clean_texts(texts, TextConfig(repair_mojibake=True)).to_pylist() == expected


def test_ordinary_prose_is_not_suspected():
    prose = "“Don\u2019t” — the miller\u2019s café «à la carte», ½ €, 日本語, Привет, αβγ, שלום…"
    assert unicodedata.is_normalized("NFC", prose)
    assert not any(_marks(False, True)[ord(character)] for character in prose)
