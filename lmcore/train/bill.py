"""What steps took, in joules, carbon dioxide and money; of what is not measured nothing is said but that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmcore.config import CostsConfig

NOT_MEASURED = "not measured"
JOULES_PER_KWH = 3.6e6
SHARE = "perf/share/"
START = "start"  # the part that came before the first step of an attempt


@dataclass(frozen=True)
class Spent:
    """What some steps took, over all processes.

    Attributes:
        tokens: That they trained on.
        seconds: How long they were.
        num_devices: GPUs, or processes on CPU.
        gpu_joules: Of all GPUs; None: not measured on each of them.
        cpu_joules: Of all machines' processors and memory; None: not measured on each.
        on_gpus: Whether GPUs do the work: without theirs the energy is not measured.
    """

    tokens: int
    seconds: float
    num_devices: int
    gpu_joules: float | None
    cpu_joules: float | None
    on_gpus: bool

    @property
    def joules(self) -> float | None:
        """All that is measured, if what does the work is."""
        if (self.gpu_joules if self.on_gpus else self.cpu_joules) is None:
            return None
        return (self.gpu_joules or 0.0) + (self.cpu_joules or 0.0)

    @property
    def energy(self) -> str:
        """By what it is measured, in words."""
        if self.joules is None:
            return NOT_MEASURED
        meters = {"NVML": self.gpu_joules, "RAPL": self.cpu_joules}
        return " and ".join(name for name, joules in meters.items() if joules is not None)

    def cost(self, config: CostsConfig) -> float | str | None:
        """Money by the prices of ``config``; in words if one cannot be applied; None without prices."""
        devices, electricity = config.price_per_device_hour, config.price_per_kwh
        if devices is None and electricity is None:
            return None
        total = (devices or 0.0) * self.num_devices * self.seconds / 3600
        if electricity is not None:
            if self.joules is None:
                return NOT_MEASURED
            total += electricity * self.joules / JOULES_PER_KWH
        return total

    def values(self, config: CostsConfig) -> dict[str, float]:
        """As metrics: ``energy/...`` where it is measured, and ``perf/cost`` by the prices."""
        found: dict[str, float] = {}
        for name, part in (("gpu", self.gpu_joules), ("cpu", self.cpu_joules)):
            if self.joules is not None and part is not None:
                found[f"energy/{name}_joules"] = part
        if self.joules is not None:
            found["energy/joules"] = self.joules
            if self.tokens:  # at the start meters are opened later than time begins
                found["energy/watts"] = self.joules / self.seconds if self.seconds else 0.0
            if self.tokens and self.joules:
                found["energy/tokens_per_joule"] = self.tokens / self.joules
            if config.grams_co2_per_kwh is not None:
                found["energy/co2_grams"] = config.grams_co2_per_kwh * self.joules / JOULES_PER_KWH
        cost = self.cost(config)
        return found | ({"perf/cost": cost} if isinstance(cost, float) else {})


@dataclass
class Bill:
    """Adds up rows of kind ``costs``; steps that were done twice were paid for twice.

    An attempt that was killed had no time to tell of its last steps: how many of all the rows cover is told.

    Args:
        tokens_per_step: Over all processes.
    """

    tokens_per_step: int

    def __post_init__(self) -> None:
        self._seconds = self._memory = 0.0
        self._attempts = self._starts = 0
        self._steps = self._covered = 0  # that were done, those that were done again too
        self._step = 0  # that the run has come to
        self._shares: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._energies: list[str] = []
        self._costs: list[str] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Take note of a row of any kind."""
        if row["kind"] in ("start", "resume"):
            self._attempts += 1
            self._step = row["step"]
        elif row["kind"] in ("step", "costs"):
            self._steps += max(0, row["step"] - self._step)
            self._step = max(self._step, row["step"])
        if row["kind"] == "costs":
            self._add_costs(row)

    def _add_costs(self, row: Mapping[str, Any]) -> None:
        values, seconds = row["values"], row["seconds"]
        self._seconds += seconds
        self._covered += row["steps"]
        self._starts += not row["steps"]
        self._memory = max(self._memory, values.get("perf/peak_memory_bytes", 0.0))
        for name, value in values.items():
            if name.startswith(SHARE):
                part = name.removeprefix(SHARE)
                self._shares[part] = self._shares.get(part, 0.0) + value * seconds
        for name in ("energy/joules", "energy/co2_grams", "perf/cost"):
            if name in values:
                self._sums[name] = self._sums.get(name, 0.0) + values[name]
        _note(self._energies, row.get("energy", NOT_MEASURED))
        _note(self._costs, "measured" if "perf/cost" in values else row.get("cost", "not priced"))

    def told(self, currency: str) -> dict[str, Any]:
        """Return the sums for ``result.json``; empty without a row.

        Energy and cost are said of all that rows tell of or not at all; ``covers`` says in words what they do
        not tell of. Tokens per joule are those that the run has come to, each once.
        """
        if not self._seconds:
            return {}
        told: dict[str, Any] = {
            "seconds": self._seconds,
            "shares": {part: value / self._seconds for part, value in self._shares.items()},
            "peak_memory_bytes": self._memory,
            "steps_done": self._steps,
            "steps_covered": self._covered,
            "attempts": self._attempts,
            "attempts_covered": self._starts,
            "tokens_repeated": (self._steps - self._step) * self.tokens_per_step,
            "energy": NOT_MEASURED if NOT_MEASURED in self._energies else ", ".join(self._energies),
        }
        if self._covered < self._steps or self._starts < self._attempts:
            told["covers"] = (
                f"{self._covered:,} of {self._steps:,} steps, the start of {self._starts:,} of "
                f"{self._attempts:,} attempts"
            )
        if told["energy"] != NOT_MEASURED:
            told["joules"] = joules = self._sums.get("energy/joules", 0.0)
            told["tokens_per_joule"] = self._step * self.tokens_per_step / joules if joules else None
            if "energy/co2_grams" in self._sums:
                told["co2_grams"] = self._sums["energy/co2_grams"]
        if "perf/cost" in self._sums or NOT_MEASURED in self._costs:
            whole = self._costs == ["measured"]
            told |= {"cost": self._sums["perf/cost"] if whole else NOT_MEASURED, "currency": currency}
        return told


def bill_of(rows: Iterable[Mapping[str, Any]], tokens_per_step: int, currency: str) -> dict[str, Any]:
    """Return what all attempts at a run cost together, by the rows of its events."""
    bill = Bill(tokens_per_step)
    for row in rows:
        bill.add(row)
    return bill.told(currency)


def _note(words: list[str], word: str) -> None:
    if word not in words:
        words.append(word)
