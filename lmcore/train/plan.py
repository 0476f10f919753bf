"""Which sequences a run reads, and in what order: from its settings and where documents begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmcore.config import TrainConfig
from lmcore.data.amount import too_little
from lmcore.data.loader import PackedSequences, Samples, Windows
from lmcore.data.mixture import Mixture, Share
from lmcore.data.packing import Joined, Packing, pack
from lmcore.data.tokens import TokenDataset
from lmcore.errors import ConfigError, DataError


@dataclass(frozen=True)
class SourcePlan:
    """What a run takes from one source.

    Attributes:
        name: Of the source; empty: all documents together.
        share: Of the run's tokens.
        epochs: Passes over its sequences.
        padding: Share of the places of its sequences that hold no token.
    """

    name: str
    share: float
    epochs: float
    padding: float

    def __str__(self) -> str:
        who = f"source {self.name}: {self.share:.1%} of the tokens" if self.name else "all documents"
        return f"{who}, {self.epochs:.2f} epochs, {self.padding:.2%} padding"


@dataclass(frozen=True)
class Plan:
    """What a run reads.

    Attributes:
        samples: The sequences.
        order: Which of them is at each place; None: all of them, shuffled anew in each epoch.
        sources: What is taken from each source.
        warning: That the text is too little; or empty.
    """

    samples: Samples
    order: Mixture | None
    sources: tuple[SourcePlan, ...]
    warning: str = ""

    @property
    def values(self) -> dict[str, float]:
        """The plan as metrics: ``data/epochs/<source>`` and the like."""
        found: dict[str, float] = {}
        for source in self.sources:
            place = f"/{source.name}" if source.name else ""
            found[f"data/epochs{place}"] = source.epochs
            found[f"data/padding{place}"] = source.padding
            found |= {f"data/share{place}": source.share} if place else {}
        return found


def plan_samples(dataset: TokenDataset, config: TrainConfig, vocab_size: int = 0) -> Plan:
    """Plan a run of ``config`` over ``dataset``; ids must be below ``vocab_size`` (0: not checked).

    Raises:
        ConfigError: the mixture names a source that has no documents, or too small a weight.
        DataError: the sources may not give as much as the run takes, or the tokens are damaged.
    """
    num_places = config.steps * config.global_batch_size
    if config.mixture:
        packing, mixture, left_out = _mix(dataset, config)
        _check_enough(mixture, config)
        samples = _packed(dataset, packing, config, vocab_size)
        return Plan(samples, mixture, _taken(packing, mixture, num_places, left_out))
    if config.packing == "best_fit":
        every = np.arange(dataset.num_documents, dtype=np.int64)
        packing = pack(dataset.document_offsets, every, config.seq_len, config.packing)
        samples, padding = _packed(dataset, packing, config, vocab_size), packing.padding
    else:
        mask = config.document_mask
        samples = Windows(dataset, config.seq_len, document_mask=mask, vocab_size=vocab_size)
        padding = 0.0
    taken = SourcePlan("", 1.0, num_places / max(1, len(samples)), padding)
    return Plan(samples, None, (taken,), too_little(config, dataset.num_tokens))


def _packed(dataset: TokenDataset, packing: Packing, config: TrainConfig, vocab_size: int) -> PackedSequences:
    return PackedSequences(dataset, packing, document_mask=config.document_mask, vocab_size=vocab_size)


def _mix(dataset: TokenDataset, config: TrainConfig) -> tuple[Joined, Mixture, list[str]]:
    """The sequences of the sources, one source after another, their mixture, and the sources left out."""
    names, source_of = dataset.document_sources()
    asked = [share.source for share in config.mixture]
    if missing := [name for name in asked if name not in names]:
        raise ConfigError(
            "train.mixture names a source that has no documents",
            expected=f"one of {', '.join(names)}",
            found=", ".join(missing),
            remedy="Correct the name, or leave the source out.",
        )
    packing = Joined(
        [
            pack(
                dataset.document_offsets,
                np.flatnonzero(source_of == names.index(name)),
                config.seq_len,
                config.packing,
            )
            for name in asked
        ]
    )
    shares = [
        Share(
            part.source,
            first,
            len(packed),
            # Weights are of tokens and turns are of sequences, which one source may fill less than another.
            part.weight * len(packed) / packed.num_tokens,
            None if part.max_epochs is None else int(part.max_epochs * len(packed)),
        )
        for part, packed, first in zip(config.mixture, packing.parts, packing.firsts, strict=True)
    ]
    return packing, Mixture(shares, config.seed), sorted(set(names) - set(asked))


def _check_enough(mixture: Mixture, config: TrainConfig) -> None:
    size, available = config.global_batch_size, mixture.num_places
    if available is not None and available < config.steps * size:
        raise DataError(
            "the sources of train.mixture are used up before the end of the training",
            expected=f"{config.steps * size} sequences for {config.steps} steps",
            found=f"{available} in "
            + ", ".join(f"{part.max_epochs:g} epochs of {part.source}" for part in config.mixture),
            remedy=f"Raise max_epochs, or lower train.steps to {available // size}.",
        )


def _taken(
    packing: Joined, mixture: Mixture, num_places: int, left_out: Sequence[str]
) -> tuple[SourcePlan, ...]:
    given: list[int] = mixture.given(num_places).tolist()
    parts = list(zip(mixture.shares, packing.parts, given, strict=True))
    tokens = {share.source: number * part.num_tokens / len(part) for share, part, number in parts}
    plans = [
        SourcePlan(
            share.source, tokens[share.source] / sum(tokens.values()), number / len(part), part.padding
        )
        for share, part, number in parts
    ]
    return (*plans, *(SourcePlan(name, 0.0, 0.0, 0.0) for name in left_out))
