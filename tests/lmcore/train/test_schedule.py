import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import ScheduleConfig
from lmcore.train.schedule import learning_rate_factor

schedules = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["cosine", "wsd", "linear", "inverse_sqrt"]),
    warmup_steps=st.integers(0, 50),
    decay_fraction=st.floats(0, 1),
    min_ratio=st.floats(0, 1),
)


@given(schedule=schedules, steps_after_warmup=st.integers(1, 200))
def test_it_rises_then_falls_and_stays_in_bounds(schedule, steps_after_warmup):
    warmup = schedule.warmup_steps
    steps = warmup + steps_after_warmup
    factors = [learning_rate_factor(step, steps, schedule) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert all(f >= schedule.min_ratio - 1e-12 for f in factors[warmup:])


def test_known_points():
    wsd = ScheduleConfig(name="wsd", warmup_steps=10, decay_fraction=0.5, min_ratio=0.0)
    assert [learning_rate_factor(s, 100, wsd) for s in (0, 4, 9, 10, 50)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert learning_rate_factor(75, 100, wsd) == pytest.approx(0.5)
    assert learning_rate_factor(99, 100, wsd) == pytest.approx(0.02)
    cosine = ScheduleConfig(name="cosine", warmup_steps=0, min_ratio=0.1)
    assert learning_rate_factor(0, 100, cosine) == 1.0
    assert learning_rate_factor(50, 100, cosine) == pytest.approx(0.55)
    linear = ScheduleConfig(name="linear", warmup_steps=20, min_ratio=0.2)
    assert learning_rate_factor(20, 100, linear) == 1.0
    assert learning_rate_factor(60, 100, linear) == pytest.approx(0.6)
    root = ScheduleConfig(name="inverse_sqrt", warmup_steps=10, min_ratio=0.2)
    assert [learning_rate_factor(s, 10_000, root) for s in (9, 39, 89)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert learning_rate_factor(5_000, 10_000, root) == 0.2
