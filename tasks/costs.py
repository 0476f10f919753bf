"""What a training cost, as people, MLflow and programs are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmcore.train.bill import NOT_MEASURED
from lmcore.train.metrics import SPEED
from lmcore.units import TIMES, told


def costs_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The bill of all attempts at a run, the speed of its median step and the peak, as far as they are known.

    Args:
        result: Of the last attempt, or the summary of the training's artifact. One that is older than the
            median step has no ``step_seconds``, tokens a second beside its costs, and MFU among them.
    """
    names = (*SPEED, "peak_tflops", "peak_source")
    speed = {name: result[name] for name in names if result.get(name) is not None}
    return {**speed, **result.get("costs", {})}


def speed_metrics(costs: Mapping[str, Any]) -> dict[str, float]:
    """Those of the median step, by names of their own: ``perf/mfu`` and the like are of each step."""
    return {f"perf/median_{name}": costs[name] for name in SPEED if name in costs}


def cost_metrics(costs: Mapping[str, Any]) -> dict[str, float | None]:
    """The sums under MLflow's groups ``perf/`` and ``energy/``; None: not known."""
    cost = costs.get("cost")
    return {
        **speed_metrics(costs),
        "perf/peak_memory_bytes": costs.get("peak_memory_bytes"),
        "perf/tokens_repeated": costs.get("tokens_repeated"),
        "perf/cost": None if cost == NOT_MEASURED else cost,
        "energy/joules": costs.get("joules"),
        "energy/tokens_per_joule": costs.get("tokens_per_joule"),
        "energy/co2_grams": costs.get("co2_grams"),
    }


def cost_tags(costs: Mapping[str, Any]) -> dict[str, str]:
    """What is known by words: how energy was measured, or that it was not; the currency; what is missing."""
    tags = {"energy": "energy", "currency": "currency", "covers": "costs_cover"}
    return {tag: str(costs[name]) for name, tag in tags.items() if name in costs}


def cost_table(costs: Mapping[str, Any]) -> list[str]:
    """The costs as lines of a page."""
    if not costs:
        return []
    lines = ["## What it cost", "", "| what | how much |", "|---|---|"]
    lines += _speed(costs)
    if "shares" in costs:
        largest = sorted(costs["shares"].items(), key=lambda share: -share[1])
        lines.append(f"| time | {_least(costs)}{costs['seconds']:,.0f} s |")
        # A row each: Prefect's page cuts off one that is long.
        lines += [
            f"| time in {name.replace('_', ' ')} | {share:.1%} |"
            for name, share in largest
            if share >= 0.0005
        ]
        lines.append(f"| peak memory | {costs['peak_memory_bytes'] / 1e9:,.2f} GB a process |")
        lines += [f"| energy | {_energy(costs)} |", *_co2_and_money(costs), *_waste(costs)]
    return [*lines, ""]


def _speed(costs: Mapping[str, Any]) -> list[str]:
    lines, speed = [], []
    if "tokens_per_second" in costs:
        speed.append(f"{costs['tokens_per_second']:,.0f} tokens/s")
    if "step_seconds" in costs:
        speed.append(f"{told(costs['step_seconds'], TIMES)} for the median step")
    if speed:
        lines.append(f"| speed | {': '.join(speed)} |")
    if "mfu" in costs:
        mfu = f"{costs['mfu']:.1%}"
        if "peak_tflops" in costs:
            mfu += f" of {costs['peak_tflops']:,.3g} TFLOP/s a device ({costs['peak_source']})"
        lines.append(f"| MFU | {mfu}{', in that step' if 'step_seconds' in costs else ''} |")
    return lines


def _energy(costs: Mapping[str, Any]) -> str:
    if costs["energy"] == NOT_MEASURED:
        return NOT_MEASURED
    joules = f"{_least(costs)}{costs['joules'] / 1000:,.4g} kJ ({costs['energy']})"
    if not costs.get("tokens_per_joule"):
        return joules
    return f"{joules}, {'at most ' if 'covers' in costs else ''}{costs['tokens_per_joule']:,.4g} tokens/J"


def _least(costs: Mapping[str, Any]) -> str:
    """For sums that do not tell of all."""
    return "at least " if "covers" in costs else ""


def _waste(costs: Mapping[str, Any]) -> list[str]:
    lines = []
    if costs.get("tokens_repeated"):
        lines.append(f"| done again after a stop | {costs['tokens_repeated']:,} tokens |")
    if "covers" in costs:
        lines.append(f"| these costs cover | {costs['covers']}: the rest was of processes that were killed |")
    return lines


def _co2_and_money(costs: Mapping[str, Any]) -> list[str]:
    lines = []
    if "co2_grams" in costs:
        lines.append(f"| carbon dioxide | {_least(costs)}{costs['co2_grams']:,.4g} g |")
    if "cost" in costs:
        cost = costs["cost"]
        money = cost if cost == NOT_MEASURED else f"{_least(costs)}{cost:,.4g} {costs['currency']}"
        lines.append(f"| cost | {money} |")
    return lines
