"""Joules, carbon dioxide and money, by hand."""

import json

import pytest

from lmcore.config import CostsConfig
from lmcore.train.bill import NOT_MEASURED, Spent, bill_of

PRICES = CostsConfig(price_per_device_hour=2.0, price_per_kwh=0.3, currency="EUR", grams_co2_per_kwh=400)


def spent(gpu=None, cpu=None, *, on_gpus=True):
    return Spent(7_200_000, 1800.0, 4, gpu, cpu, on_gpus)


def test_an_hour_of_devices_and_a_kilowatt_hour():
    values = spent(gpu=3.6e6).values(PRICES)
    assert values == {
        "energy/gpu_joules": 3.6e6,
        "energy/joules": 3.6e6,
        "energy/watts": 2000.0,
        "energy/tokens_per_joule": 2.0,
        "energy/co2_grams": 400.0,
        "perf/cost": pytest.approx(4 * 0.5 * 2.0 + 0.3),
    }
    assert spent(gpu=3e6, cpu=0.6e6).values(PRICES)["energy/joules"] == 3.6e6
    assert spent(gpu=3e6, cpu=0.6e6).energy == "NVML and RAPL"
    assert spent(cpu=3.6e6, on_gpus=False).energy == "RAPL"


def test_what_is_not_measured_has_words_and_no_numbers():
    for unknown in (spent(), spent(cpu=5.0), spent(gpu=5.0, on_gpus=False)):
        assert unknown.energy == NOT_MEASURED
        assert unknown.values(PRICES) == {}
        assert unknown.cost(PRICES) == NOT_MEASURED  # without its electricity it would be too low
    hours = CostsConfig(price_per_device_hour=2.0)
    assert spent().values(hours) == {"perf/cost": 4.0}
    assert spent(gpu=1.0).cost(CostsConfig()) is None


def row(config, one, step=10, steps=10):
    words = {"cost": cost} if isinstance(cost := one.cost(config), str) else {}
    shares = {"perf/share/forward": 0.75, "perf/share/other": 0.25, "perf/peak_memory_bytes": 9.0}
    return {
        "kind": "costs",
        "step": step,
        "steps": steps,
        "seconds": one.seconds,
        "energy": one.energy,
        "values": shares | one.values(config),
        **words,
    }


def test_steps_that_were_done_again_were_paid_for_again():
    half, start = spent(gpu=1.8e6), Spent(0, 0.0, 4, 0.0, None, on_gpus=True)
    rows = [{"kind": "start", "step": 0}, row(PRICES, start, 0, 0), row(PRICES, half)]
    rows += [{"kind": "resume", "step": 5}, row(PRICES, start, 5, 0), row(PRICES, half, 15)]
    told = bill_of(rows, 720_000, "EUR")
    assert told == {
        "seconds": 3600.0,
        "shares": {"forward": 0.75, "other": 0.25},
        "peak_memory_bytes": 9.0,
        "steps_done": 20,
        "steps_covered": 20,
        "attempts": 2,
        "attempts_covered": 2,
        "tokens_repeated": 5 * 720_000,
        "energy": "NVML",
        "joules": 3.6e6,
        "tokens_per_joule": 3.0,  # those of 15 steps, by the joules of 20
        "co2_grams": 400.0,
        "cost": pytest.approx(8.0 + 0.3),
        "currency": "EUR",
    }
    json.dumps(told, allow_nan=False)


def test_steps_that_no_row_tells_of_are_said_to_be_missing():
    # 149 steps, killed; on from 100 to 200: 249 steps, of which rows tell of 200.
    rows = [{"kind": "start", "step": 0}, row(PRICES, spent(gpu=1e5), 100, 100)]
    rows += [{"kind": "step", "step": step} for step in range(1, 150)]
    rows += [{"kind": "resume", "step": 100}, row(PRICES, spent(gpu=0.0), 100, 0)]
    rows += [row(PRICES, spent(gpu=1e5), 200, 100)]
    told = bill_of(rows, 1000, "EUR")
    assert (told["steps_done"], told["steps_covered"], told["tokens_repeated"]) == (249, 200, 49_000)
    assert told["covers"] == "200 of 249 steps, the start of 1 of 2 attempts"
    assert told["tokens_per_joule"] == 1.0


def test_a_part_that_was_not_measured_leaves_the_whole_unmeasured():
    told = bill_of([row(PRICES, spent(gpu=1.8e6)), row(PRICES, spent())], 720_000, "EUR")
    assert (told["energy"], told["cost"]) == (NOT_MEASURED, NOT_MEASURED)
    assert not {"joules", "tokens_per_joule", "co2_grams"} & set(told)
    assert bill_of([], 1, "EUR") == {}
    free = CostsConfig()
    assert "cost" not in bill_of([row(free, spent())], 1, "EUR")
