import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import CodeRules, QualityConfig, UnspacedRules
from lmcore.data.quality import PROFILES, first_broken_rules, rules_of, signals_of
from lmcore.data.signals import measure

PROSE = """The mill stands by a river, and its wheel turns with the water that comes from the hills.
In spring the miller opens the gate, to have enough of it for grinding all day.
Farmers bring their grain in sacks, which a boy carries up narrow stairs.
Two stones lie on each other; only the upper one moves.
Flour falls through holes into boxes below, warm and soft to the touch.
At night everything is quiet, but for some mice who know where to look.
Nobody remembers when it was built, though there be stories about a monk.
He is said to have drawn the plans on bread.
"""
NUMBERED = PROSE.replace(" the", " 1, 2; (3 -)").replace(" a ", " 4 / 5 - ").replace(",", " , -")
CODE = "def f(x):\n    return x + 1\n" * 8


def broken(profile, text):
    config = QualityConfig(profile=profile, code=CodeRules(drop_generated=True))
    found = measure(pa.array([text], pa.large_string()), config).signals
    return first_broken_rules(config, found, 1)[0].as_py()


@pytest.mark.parametrize(
    ("profile", "text", "rule"),
    [
        ("none", "x", None),
        ("none", "", "empty"),
        ("code", CODE, None),
        ("code", "x = 1", "code.min_chars"),
        ("code", CODE + "x" * 1_001, "code.max_line_chars"),
        ("code", "x" * 500 + "\n" + "y" * 500, "code.max_mean_line_chars"),
        ("code", "+-*/ \n" * 50, "code.min_alphanumeric_share"),
        ("code", "\u00e9\u00df\u4e2d1" * 20, None),
        ("code", "# @generated\n" + CODE, "code.drop_generated"),
        ("code", "# Copyright\n" * 100 + CODE, "code.max_licence_share"),
        ("gopher", PROSE, None),
        ("c4", PROSE, None),
        ("fineweb", PROSE, None),
        ("web", PROSE, None),
        ("gopher", PROSE + "\n" + PROSE, "repetition.max_duplicate_line_share"),
        ("gopher", PROSE[:120], "gopher.min_words"),
        ("gopher", PROSE.replace("e ", "e # "), "gopher.max_hashes_per_word"),
        ("gopher", NUMBERED, "gopher.min_alphabetic_word_share"),
        ("c4", PROSE.replace("bread", "{bread}"), "c4.drop_curly_brackets"),
        ("c4", PROSE + "\nLorem ipsum dolor sit.", "c4.drop_lorem_ipsum"),
        ("c4", "One line of words.", "c4.min_sentences"),
        ("c4", "too short", "c4.min_sentences"),
        ("fineweb", PROSE.replace(".", ""), "fineweb.min_ended_line_share"),
        ("fineweb", "A short line.\n" * 9, "fineweb.max_short_line_share"),
    ],
)  # fmt: skip
def test_a_document_is_dropped_by_the_rule_it_breaks(profile, text, rule):
    found = broken(profile, text)
    assert found == ("empty" if rule == "c4.min_sentences" and text == "too short" else rule)


def test_every_threshold_is_a_rule_and_looks_at_a_stored_figure():
    for profile, groups in PROFILES.items():
        config = QualityConfig(profile=profile, code=CodeRules(drop_generated=True))
        rules = rules_of(config)
        settings = [
            f"{group}.{name}" for group in groups for name in type(getattr(config, group)).model_fields
        ]
        at = settings.index("gopher.min_stop_words") + 1 if "gopher" in groups else len(settings)
        unspaced = [f"unspaced.{name}" for name in UnspacedRules.model_fields] if "gopher" in groups else []
        assert [rule.name for rule in rules] == ["empty", *settings[:at], *unspaced, *settings[at:]]
        assert {rule.signal for rule in rules} <= set(signals_of(config))


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_figure_at_its_limit_is_kept(value, limit):
    config = QualityConfig(
        profile="fineweb", fineweb={"max_short_line_share": limit, "min_ended_line_share": limit}
    )
    signals = {name: pa.array([value]).to_numpy() for name in signals_of(config)}
    signals |= {"chars": pa.array([9.0]).to_numpy()}
    for name in ("repeated_line_char_share", "line_ends_per_word"):
        signals[name] = pa.array([0.0]).to_numpy()
    found = first_broken_rules(config, signals, 1)[0].as_py()
    assert (found is None) == (value == limit)
