"""The books: every document that came in is accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmcore.errors import DataError


@dataclass
class Books:
    """Counts of documents, for one shard, one source or the corpus.

    Attributes:
        documents_in: Records that the readers met, good or bad.
        quarantined: Records that could not be read.
        passed: Records that could be read: documents.
        dropped: Documents that each quality rule dropped, by rule.
        contaminated: Documents that hold text of an evaluation set.
        duplicates: Documents with the text of an earlier one.
        near_duplicates: Documents much like an earlier one.
        train: Documents kept for training.
        validation: Documents kept and held out.
        test: Documents kept and held out to the end.
        without_page: Records of web archives that hold no page, by what they hold; none is a document.
    """

    documents_in: int = 0
    quarantined: int = 0
    passed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    contaminated: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0
    without_page: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        """Documents in the splits."""
        return self.train + self.validation + self.test

    def check_intake(self, where: str) -> None:
        """Raise DataError unless in = quarantined + passed."""
        intake = {"quarantined": self.quarantined, "passed": self.passed}
        self._balance(where, "documents in", self.documents_in, intake)

    def check(self, where: str) -> None:
        """Raise DataError unless in = kept + dropped + duplicates + quarantined, and the steps between."""
        self.check_intake(where)
        dropped = {f"dropped by {rule}": count for rule, count in sorted(self.dropped.items())}
        split = {
            "contaminated": self.contaminated,
            "duplicates": self.duplicates,
            "near duplicates": self.near_duplicates,
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        self._balance(where, "documents passed", self.passed, {**dropped, **split})

    @staticmethod
    def _balance(where: str, name: str, total: int, parts: Mapping[str, int]) -> None:
        if total != sum(parts.values()):
            raise DataError(
                f"the books of {where} do not balance",
                expected=f"{total} {name}",
                found=" + ".join(f"{count} {part}" for part, count in parts.items())
                + f" = {sum(parts.values())}",
                remedy="This is a defect of the program: please report it with this message.",
            )

    def funnel(self) -> list[tuple[str, int]]:
        """Documents left after each step, in order: labels and counts."""
        left = self.documents_in
        steps = [("documents in", left)]
        losses = {"readable": self.quarantined}
        losses |= {f"after {rule}": self.dropped[rule] for rule in sorted(self.dropped)}
        if self.contaminated:
            losses["uncontaminated"] = self.contaminated
        losses["distinct"] = self.duplicates
        if self.near_duplicates:
            losses["unlike others"] = self.near_duplicates
        for label, loss in losses.items():
            left -= loss
            steps.append((label, left))
        steps += [("train", self.train), ("validation", self.validation)]
        return [*steps, ("test", self.test)] if self.test else steps

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a summary or a file."""
        return {
            "documents_in": self.documents_in,
            "quarantined": self.quarantined,
            "dropped": dict(sorted(self.dropped.items())),
            "passed": self.passed,
            "contaminated": self.contaminated,
            "duplicates": self.duplicates,
            "near_duplicates": self.near_duplicates,
            "kept": self.kept,
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
            **({"without_page": dict(sorted(self.without_page.items()))} if self.without_page else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Books:
        """Rebuild from ``to_json``."""
        named = ("dropped", "without_page")
        counts = {name: value for name, value in values.items() if name not in (*named, "kept")}
        return cls(**{name: Counter(values.get(name, {})) for name in named}, **counts)

    @classmethod
    def total(cls, parts: Iterable[Books]) -> Books:
        """Sum of ``parts``."""
        whole = cls()
        for part in parts:
            whole.documents_in += part.documents_in
            whole.quarantined += part.quarantined
            whole.dropped += part.dropped
            whole.passed += part.passed
            whole.contaminated += part.contaminated
            whole.duplicates += part.duplicates
            whole.near_duplicates += part.near_duplicates
            whole.train += part.train
            whole.validation += part.validation
            whole.test += part.test
            whole.without_page += part.without_page
        return whole
