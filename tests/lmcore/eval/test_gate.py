import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import GateConfig
from lmcore.eval.gate import Measured, decide

scores = st.floats(0.01, 100.0)
gains = st.floats(-1.0, 1.0)


def measured(score, data="a" * 64):
    return Measured(score, data)


@given(scores, scores, gains)
def test_the_gate_passes_who_gains_enough_and_never_a_twin(score, rival, wanted):
    decision = decide(measured(score), measured(rival), GateConfig(min_improvement=wanted))
    gain = rival - score
    if abs(gain - wanted) > 1e-9:
        assert decision.passed == (gain > wanted and (gain > 0 or wanted < 0))
    assert f"{score:.4f}" in decision.reason
    assert f"{rival:.4f}" in decision.reason
    assert not decision.reason.endswith(".")


@given(scores, scores)
def test_what_there_is_to_know_of_the_champions_score_is_told_and_decides_nothing(score, rival):
    plain = decide(measured(score), measured(rival), GateConfig())
    told = decide(measured(score), Measured(rival, "a" * 64, "measured again: 1.5 before"), GateConfig())
    assert told.passed == plain.passed
    assert told.reason == f"{plain.reason} (measured again: 1.5 before)"


@given(scores, st.floats(0.0, 1.0))
def test_an_equal_challenger_does_not_take_the_place(score, wanted):
    assert not decide(measured(score), measured(score), GateConfig(min_improvement=wanted)).passed


def test_the_gain_asked_for_is_enough():
    assert decide(measured(1.8), measured(1.9), GateConfig(min_improvement=0.1)).passed


@given(scores)
def test_the_first_model_passes(score):
    decision = decide(measured(score), None, GateConfig())
    assert decision.passed
    assert "first" in decision.reason


@given(scores, scores)
def test_different_data_does_not_compare(score, rival):
    decision = decide(measured(score, "a" * 64), measured(rival, "b" * 64), GateConfig())
    assert not decision.passed
    assert "different data" in decision.reason


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("champion", [None, measured(2.0)])
def test_what_is_not_a_number_never_passes(score, champion):
    decision = decide(measured(score), champion, GateConfig(min_improvement=-1.0))
    assert not decision.passed
    assert "not a number" in decision.reason


def test_a_champion_without_a_score_is_not_beaten_by_accident():
    assert not decide(measured(1.0), measured(math.nan), GateConfig()).passed


@given(scores, scores)
def test_the_limit_holds_for_the_first_model_too(score, limit):
    decision = decide(measured(score), None, GateConfig(max_bits_per_byte=limit))
    assert decision.passed == (score <= limit)
    assert decision.passed or f"{limit:.4f}" in decision.reason
