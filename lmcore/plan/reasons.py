"""Why a layout is taken, and what speaks against another, in a line."""

from __future__ import annotations

from lmcore.plan.estimate import Estimate
from lmcore.units import BYTES, TIMES, number, told, unit_for

ALIKE = 0.005  # a difference that is not worth a word
TELLS = 0.03  # a smaller one is no reason to take a layout that is less simple: predictions err by more


def why_taken(taken: Estimate, others: list[Estimate], num_layouts: int) -> str:
    """What it needs, and how far it is ahead of the ``others``."""
    memory = f"{told(taken.memory.total, BYTES, 2)} at the worst moment ({taken.memory.moment})"
    fastest = f"the fastest of {num_layouts} layouts"
    ahead = others[0].time.total / taken.time.total - 1 if others else 0.0
    if others and ahead <= ALIKE:
        near = f"within {TELLS:.0%} (predictions are no nearer) of {fastest}"
        return f"the simplest that fits {near}: {memory}"
    return f"{fastest} that fits: {memory}" + f"; {ahead:.1%} ahead of the next kind" * (ahead > ALIKE)


def why_slower(taken: Estimate, other: Estimate) -> str:
    """What of the time of ``other`` grows most over that of ``taken``."""
    slower = other.time.total / taken.time.total - 1
    mine, theirs = _parts(taken), _parts(other)
    grown = {name: theirs[name] - mine.get(name, 0.0) for name in theirs}
    name = max(grown, key=lambda part: grown[part])
    if slower <= ALIKE or grown[name] <= 0:
        return "as fast, and less simple" if slower >= -ALIKE else f"{-slower:.1%} faster, but less simple"
    unit, size = unit_for([theirs[name]], TIMES)
    instead = number(mine[name] / size) if mine.get(name) else "nothing"
    return f"{slower:.1%} slower: {name} {number(theirs[name] / size)} {unit} instead of {instead}"


def _parts(one: Estimate) -> dict[str, float]:
    time = one.time
    parts = {
        "products take": time.products,
        "attention takes": time.attention,
        "memory traffic takes": time.memory,
        "the optimizer takes": time.optimizer,
        "idle stages cost": time.bubble,
    }
    return parts | {f"messages of {axis} cost": seconds for axis, seconds in time.exposed.items()}


def why_too_large(other: Estimate, room: float) -> str:
    """What of the memory of ``other`` is largest."""
    memory = other.memory
    parts = {
        name: getattr(memory, name)
        for name in ("parameters", "gradients", "optimizer", "gathered", "activations", "logits")
    }
    name = max(parts, key=lambda part: parts[part])
    unit, size = unit_for([memory.total], BYTES)
    over, there, part = (number(value / size, 2) for value in (memory.total, room, parts[name]))
    return f"does not fit: {over} {unit} of {there}, {part} of them {name}"
