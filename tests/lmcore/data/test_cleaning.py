import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmcore.config import TextConfig
from lmcore.data.cleaning import _marks, clean_texts
from lmcore.data.text import clean
from tests.lmcore.data.languages import ARTICLE_1

CONFIGS = [
    TextConfig(repair_mojibake=mojibake, drop_zero_width=zero_width)
    for mojibake in (False, True)
    for zero_width in (False, True)
]
SPOILT = [text.encode().decode("cp1252", "replace") for text in ARTICLE_1.values()]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_character_is_cleaned_as_alone(config):
    texts = [f"a{character}é" for character in map(chr, range(0x110000))]
    assert clean_texts(texts, config).to_pylist() == [clean(text, config) for text in texts]


@settings(deadline=None)  # the first one compiles
@given(st.lists(st.text(st.characters(exclude_categories=()))), st.sampled_from(CONFIGS))
@example(["A\nÂ        A", "Ã la", "Ã ", "à la"], CONFIGS[-1])
@example(["", "", "\ud800", "ÃƒÂ©", "a\u200bb", "\ufeff", "\r\n", "e\u0301"], CONFIGS[-1])
def test_texts_are_cleaned_as_alone(texts, config):
    assert clean_texts(texts, config).to_pylist() == [clean(text, config) for text in texts]


@pytest.mark.parametrize("config", CONFIGS)
def test_mojibake_is_found_as_alone(config):
    texts = [text[i : i + size] for text in SPOILT for i in range(len(text)) for size in (2, 3, 5)]
    assert clean_texts(texts, config).to_pylist() == [clean(text, config) for text in texts]


def test_ordinary_prose_is_not_suspected():
    prose = "“Don\u2019t” — the miller\u2019s café «à la carte», ½ €, 日本語, Привет, αβγ, שלום…"
    assert unicodedata.is_normalized("NFC", prose)
    assert not any(_marks(False, True)[ord(character)] for character in prose)
