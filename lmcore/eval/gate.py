"""The gate: whether a challenger takes the champion's place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lmcore.config import GateConfig

# A gain of 0.1 asked for and 1.9 - 1.8 gained are the same to a person, but not to fp64.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Measured:
    """A model's score, and what it was measured on.

    Attributes:
        bits_per_byte: Less is better.
        data_digest: Of the held-out text.
        remark: What people should know of how it came about; or empty.
    """

    bits_per_byte: float
    data_digest: str
    remark: str = ""


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes champion, and why, as a sentence without a final dot."""

    passed: bool
    reason: str


def decide(challenger: Measured, champion: Measured | None, gate: GateConfig) -> Decision:
    """Decide whether ``challenger`` takes the place of ``champion``, or of nobody.

    It must be at least ``gate.min_improvement`` better on the same data, and strictly better unless that
    is negative. What is not a number never passes. The remark on the champion's score is part of the reason.
    """
    score = challenger.bits_per_byte
    if not math.isfinite(score):
        return Decision(False, f"the challenger's score is not a number: {score} bits per byte")
    if gate.max_bits_per_byte is not None and not score <= gate.max_bits_per_byte:
        return Decision(
            False,
            f"the challenger needs {score:.4f} bits per byte, more than the limit of "
            f"{gate.max_bits_per_byte:.4f}",
        )
    if champion is None:
        return Decision(True, f"the first model, with {score:.4f} bits per byte, has no champion to beat")
    if challenger.data_digest != champion.data_digest:
        return Decision(
            False,
            "the challenger and the champion were measured on different data "
            f"({challenger.data_digest[:12]} and {champion.data_digest[:12]}), so their "
            f"{score:.4f} and {champion.bits_per_byte:.4f} bits per byte cannot be compared",
        )
    compared = _compare(score, champion.bits_per_byte, gate.min_improvement)
    return replace(compared, reason=f"{compared.reason} ({champion.remark})") if champion.remark else compared


def _compare(score: float, rival: float, wanted: float) -> Decision:
    if math.isnan(rival):
        return Decision(False, f"the champion's score is not a number to compare {score:.4f} with")
    gain = rival - score
    better = f"{abs(gain):.4f} {'better' if gain > 0 else 'worse'} than" if gain else "exactly"
    scores = f"{score:.4f} bits per byte, {better} the champion's {rival:.4f}"
    asked = f", where a gain of {wanted:.4f} is asked for" if wanted else ""
    if not gain >= wanted - _ROUNDING or (gain <= 0 and wanted >= 0):
        return Decision(False, f"{scores}{asked}: it does not take its place")
    return Decision(True, f"{scores}{asked}: it takes its place")
