"""A model is registered once, and the best is champion, however many processes register at once.

Processes of one home take turns by a lock. Of those on other machines, which share only a server, the lock
knows nothing: each looks again after it wrote, and all of them come to the same end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from lmcore.config import GateConfig
from lmcore.errors import DataError, GristmillError, ServiceError
from lmcore.eval import gate
from lmcore.eval.gate import Decision, Measured
from lmcore.home import Home
from lmcore.locks import locked
from lmcore.store import sha256_json, write_atomically
from tasks.runs import RECORD, RunRecord
from tasks.tracking import Tracker
from tasks.tracking_registry import Candidate, ModelVersion, Registry

PENDING = "registration.json"
BEAT = "gristmill.beat"  # the version that one was preferred to; "none": there was no champion
MOST_COMPARISONS = 5

Measure = Callable[[ModelVersion], Measured]


class Registered(BaseModel):
    """What became of a model: its version and aliases, and why."""

    model_name: str
    model_version: str | None
    aliases: list[str]
    promoted: bool
    reason: str


class Pending(BaseModel):
    """A registration that MLflow did not take: its flow's run directory keeps it for ``gristmill sync``."""

    candidate: Candidate
    evaluation_run: str
    gate: GateConfig

    def write(self, run_dir: Path) -> None:
        """Keep it."""
        write_atomically(run_dir / PENDING, self.model_dump_json(indent=1))


@contextlib.contextmanager
def in_turn(home: Home, name: str, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Be the only process of ``home`` that registers models called ``name``."""
    with locked(home.root / "locks" / f"register-{sha256_json(name)[:16]}.lock", on_wait):
        yield


def enrol(
    registry: Registry, config: GateConfig, candidate: Candidate, evaluation_run: Path, measure: Measure
) -> Registered:
    """Register a model as challenger, and make it champion when the gate passes.

    Args:
        registry: Where.
        config: What a challenger must do.
        candidate: The model.
        evaluation_run: Run directory that the version is linked to.
        measure: Returns the champion's score on the candidate's data.

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    version = _register_once(registry, candidate, evaluation_run)
    if "champion" in version.aliases:
        reason = f"version {version.version} is the champion already"
        return _outcome(registry, version, promoted=False, reason=reason)
    registry.challenge(version)
    try:
        decision, champion = _decide(registry, config, candidate, measure)
    except ServiceError:
        raise
    except GristmillError as error:  # without the champion's figure there is nothing to win against
        decision, champion = Decision(passed=False, reason=str(error)), None
    registry.note(version, {"gristmill.gate": decision.reason})
    registry.describe(version, f"**Gate:** {decision.reason}.")
    if decision.passed and (better := _crown_the_best(registry, version, champion)):
        reason = (
            f"version {better.version}, registered at the same time, is better: "
            f"{better.bits_per_byte:.4f} bits per byte against {version.bits_per_byte:.4f}"
        )
        registry.note(version, {"gristmill.gate": reason})
        return _outcome(registry, version, promoted=False, reason=reason)
    return _outcome(registry, version, promoted=decision.passed, reason=decision.reason)


def register_pending(tracker: Tracker) -> list[Registered]:
    """Register what earlier runs could not, oldest first; return what became of each.

    Raises:
        ServiceError: MLflow still does not take it.
    """
    registry, done = Registry(tracker), []
    found = [path for path in tracker.home.runs.glob(f"*/{PENDING}") if (path.parent / RECORD).exists()]
    told = sorted((RunRecord.read(path.parent).started, path) for path in found)
    for _, path in told:
        if RunRecord.read(path.parent).place != tracker.place:
            continue
        pending = Pending.model_validate_json(path.read_text(encoding="utf-8"))
        candidate, run_dir = pending.candidate, Path(pending.evaluation_run)
        run_dir = run_dir if (run_dir / RECORD).exists() else path.parent
        with in_turn(tracker.home, candidate.name):
            done.append(enrol(registry, pending.gate, candidate, run_dir, _as_it_was(candidate)))
        path.unlink(missing_ok=True)
    return done


def _as_it_was(candidate: Candidate) -> Measure:
    """The champion's score when it was registered, where it is of the same data."""

    def measure(champion: ModelVersion) -> Measured:
        if champion.data_digest != candidate.data_digest:
            raise DataError(
                f"version {champion.version}, the champion, was measured on other text or in another way",
                remedy="`gristmill run` with the same recipe measures it again, and compares",
            )
        return Measured(bits_per_byte=champion.bits_per_byte, data_digest=champion.data_digest)

    return measure


def _register_once(registry: Registry, candidate: Candidate, evaluation_run: Path) -> ModelVersion:
    """Register the model; where another process did the same meanwhile, the older version stays."""
    before = {version.version for version in registry.all_versions(candidate.name)}
    version = registry.register(candidate, evaluation_run)
    same = [
        known
        for known in registry.all_versions(candidate.name)
        if known.model_digest == candidate.model_digest
    ]
    # Of twins that an earlier release registered, the champion speaks for both.
    first = min(
        same, key=lambda known: ("champion" not in known.aliases, int(known.version)), default=version
    )
    if first.version != version.version and version.version not in before:
        registry.remove(version)
    return first


def _decide(
    registry: Registry, config: GateConfig, candidate: Candidate, measure: Measure
) -> tuple[Decision, ModelVersion | None]:
    """Compare with the champion, and anew if there is another one by then."""
    challenger = Measured(bits_per_byte=candidate.bits_per_byte, data_digest=candidate.data_digest)
    for _ in range(MOST_COMPARISONS):
        champion = registry.champion(candidate.name)
        decision = gate.decide(challenger, measure(champion) if champion else None, config)
        if not decision.passed or _number(registry.champion(candidate.name)) == _number(champion):
            break
    return decision, champion


def _crown_the_best(
    registry: Registry, version: ModelVersion, rival: ModelVersion | None
) -> ModelVersion | None:
    """Make ``version`` champion; return the better one that is champion instead, if there is one.

    Each process says whom its model beat before it moves the alias, and looks after that for others that
    beat the same: the last one to look sees all of them.
    """
    registry.mark(version, BEAT, _number(rival))
    registry.crown(version)
    others = [
        other
        for other in registry.all_versions(version.name)
        if registry.marked(other, BEAT) == _number(rival) and other.data_digest == version.data_digest
    ]
    best = min(others, key=lambda other: (other.bits_per_byte, int(other.version)), default=version)
    if best.version == version.version or best.bits_per_byte >= version.bits_per_byte:
        return None
    registry.crown(best)
    return best


def _number(version: ModelVersion | None) -> str:
    return version.version if version else "none"


def _outcome(registry: Registry, version: ModelVersion, *, promoted: bool, reason: str) -> Registered:
    return Registered(
        model_name=version.name,
        model_version=version.version,
        aliases=registry.aliases(version),
        promoted=promoted,
        reason=reason,
    )
