import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import DataConfig, LanguageConfig, QualityConfig
from lmcore.data.histogram import COUNTS, count, edges_of
from lmcore.data.quality import PROFILES, Rule, decision_rules, stored_signals

LIMITS = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]), st.floats(0, 1e6))
RULES = st.lists(st.builds(Rule, st.just("rule"), st.just("x"), LIMITS, st.booleans()), max_size=3)
NAMES = st.sampled_from(["words", "mean_line_chars", "licence_share", "hashes_per_word"])
VALUES = st.lists(st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 1e9)), min_size=1, max_size=30)


@given(NAMES, RULES, VALUES)
def test_each_value_is_in_one_bar_and_each_bar_is_dropped_or_kept(name, rules, values):
    values = [float(int(v)) for v in values] if name == "words" else values
    rules = [r for r in rules if name != "words" or r.limit == int(r.limit)]
    values = np.array(values + [r.limit for r in rules])
    edges = edges_of(name, values.max(), rules)
    assert edges[0] == 0
    assert (np.diff(edges) > 0).all()
    assert count(edges, values).sum() == len(values)
    for rule in rules:
        for value, dropped in zip(values, rule.breaks(values), strict=True):
            (bar,) = np.flatnonzero(count(edges, np.array([value])))
            low, high = edges[bar], edges[bar + 1]
            assert dropped == (high <= rule.limit if rule.below else low > rule.limit)


@given(NAMES, st.lists(VALUES, min_size=1, max_size=4))
def test_parts_add_up_to_the_whole(name, parts):
    edges = edges_of(name, max(map(max, parts)))
    whole = count(edges, np.concatenate(parts))
    assert (sum(count(edges, np.array(part)) for part in parts) == whole).all()


@pytest.mark.parametrize("profile", PROFILES)
def test_every_figure_has_a_readable_number_of_bars(profile):
    config = DataConfig(quality=QualityConfig(profile=profile), language=LanguageConfig(enabled=True))
    for name in stored_signals(config):
        rules = [rule for rule in decision_rules(config) if rule.signal == name]
        for largest in (0.0, 1.0, 37.5, 1e7):
            assert len(edges_of(name, largest, rules)) <= 50, name
    assert {name for name in stored_signals(config) if "share" in name or "per" in name}.isdisjoint(COUNTS)
