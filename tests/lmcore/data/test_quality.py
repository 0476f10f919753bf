import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import QualityConfig
from lmcore.data.quality import first_broken_rule

GOOD_PROSE = "the quick brown fox jumps over the lazy dog again\n" * 8
GOOD_CODE = "def f(x):\n    return x + 1\n" * 8


@pytest.mark.parametrize(
    ("profile", "text", "rule"),
    [
        ("none", "", None),
        ("code", GOOD_CODE, None),
        ("code", "x = 1", "min_chars"),
        ("code", GOOD_CODE + "x" * 1_001, "max_line_chars"),
        ("code", "x" * 500 + "\n" + "y" * 500, "max_mean_line_chars"),
        ("code", "+-*/ \n" * 50, "min_alphanumeric"),
        ("code", "\u00e9\u00df\u4e2d1" * 20, None),
        ("code", "\u00b7\u2026 \n" * 50, "min_alphanumeric"),
        ("prose", GOOD_PROSE, None),
        ("prose", "a few words " * 6, "min_words"),
        ("prose", "word " * 100_001, "max_words"),
        ("prose", "a b c d " * 50, "min_mean_word_chars"),
        ("prose", "incomprehensibilities " * 60, "max_mean_word_chars"),
        ("prose", "1234 5678 word " * 50, "min_alphabetic_words"),
    ],
)
def test_a_document_is_dropped_by_the_rule_it_breaks(profile, text, rule):
    assert first_broken_rule(text, QualityConfig(profile=profile)) == rule


@given(st.text())
def test_letters_and_digits_of_any_script_count(text):
    share = sum(map(str.isalnum, text)) / max(1, len(text))
    config = QualityConfig(min_chars=0, max_line_chars=10**6, max_mean_line_chars=10**6)
    for limit, dropped in ((share, False), (min(1.0, share + 1e-9), share < 1 and bool(text))):
        found = first_broken_rule(text, config.model_copy(update={"min_alphanumeric": limit}))
        assert (found == "min_alphanumeric") == dropped


def test_every_rule_is_named_after_a_setting():
    for text in ("", "x" * 2_000, "+" * 90, "a " * 60):
        for profile in ("code", "prose"):
            rule = first_broken_rule(text, QualityConfig(profile=profile))
            assert rule in QualityConfig.model_fields


def test_no_words_break_no_rule_when_none_are_asked_for():
    assert first_broken_rule(" \n", QualityConfig(profile="prose", min_chars=0, min_words=0)) is None
