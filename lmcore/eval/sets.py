"""Evaluation sets: their files, and the texts and minimal pairs that are in them.

Texts are normalised as documents are, and read whole: a record that cannot be read is an error, because a
figure over the rest would not be that of the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lmcore.config import EvaluationConfig, EvaluationSetConfig, LimitsConfig, SourceConfig
from lmcore.data.records import Record, read_records, text_of
from lmcore.data.sources import LINES_SUFFIXES, SourceFile, find_files
from lmcore.data.text import normalise
from lmcore.errors import DataError

_MAX_RECORD_BYTES = LimitsConfig().max_record_bytes
_TABLE_SUFFIXES = (*LINES_SUFFIXES, ".parquet")


@dataclass(frozen=True)
class Pair:
    """A minimal pair.

    Attributes:
        good: The sentence that should be likelier.
        bad: The other one.
        group: What it is about; empty: the set has no groups.
    """

    good: str
    bad: str
    group: str = ""


@dataclass(frozen=True)
class _Item:
    """A record, its text normalised."""

    index: int
    id: str
    text: str


def find_sets(config: EvaluationConfig) -> tuple[SourceFile, ...]:
    """List and digest the files of every set; ``SourceFile.source`` is the name of the set.

    Raises:
        DataError: a set matches nothing, holds a file of another kind, or a file cannot be read.
    """
    return find_files([SourceConfig(name=s.name, kind="files", path=s.path) for s in config.sets]).files


def check_sets(config: EvaluationConfig, files: Iterable[SourceFile]) -> None:
    """Read every set once, so that what is wrong with it is told before a model is trained.

    Raises:
        DataError: a set holds nothing to score, or a record cannot be read.
    """
    for wanted in config.sets:
        if wanted.kind == "text":
            read_texts(wanted, files)
        else:
            read_pairs(wanted, files)


def read_texts(wanted: EvaluationSetConfig, files: Iterable[SourceFile]) -> list[str]:
    """Read the texts of ``wanted`` in ``files`` up to its ``max_bytes``, at least one; empty ones go.

    Raises:
        DataError: there is no text, or a record cannot be read.
    """
    texts: list[str] = []
    num_bytes = 0
    (source,) = wanted.sources
    for text in (record.text for file in files_of(wanted, files) for record in _records(file, source)):
        num_bytes += len(text.encode())
        if wanted.max_bytes and texts and num_bytes > wanted.max_bytes:
            break
        if text:
            texts.append(text)
    if not texts:
        raise _nothing(wanted, "text")
    return texts


def read_pairs(wanted: EvaluationSetConfig, files: Iterable[SourceFile]) -> list[Pair]:
    """Read the pairs of ``wanted`` in ``files`` up to its ``max_pairs``.

    Raises:
        DataError: there is no pair, a sentence is empty, or a record cannot be read.
    """
    pairs: list[Pair] = []
    for pair in (pair for file in files_of(wanted, files) for pair in _pairs(file, wanted)):
        pairs.append(pair)
        if len(pairs) == wanted.max_pairs:
            break
    if not pairs:
        raise _nothing(wanted, "pair")
    return pairs


def files_of(wanted: EvaluationSetConfig, files: Iterable[SourceFile]) -> list[SourceFile]:
    """Those of ``files`` that belong to ``wanted``."""
    return [file for file in files if file.source == wanted.name]


def _pairs(file: SourceFile, wanted: EvaluationSetConfig) -> Iterator[Pair]:
    if file.suffix not in _TABLE_SUFFIXES:
        raise DataError(
            f"evaluation set {wanted.name!r} matches a file that cannot hold pairs",
            expected=", ".join(_TABLE_SUFFIXES),
            found=file.name,
            remedy="Narrow its path, or set its kind to text.",
        )
    good, bad = wanted.sources
    # The group is read as if it named the record: a word or a number.
    good = good.model_copy(update={"id_field": wanted.group_field})
    for one, other in zip(_records(file, good), _records(file, bad), strict=True):
        if not (one.text and other.text):
            raise DataError(
                f"evaluation set {wanted.name!r} has a pair with an empty sentence",
                expected=f"text in {wanted.good_field} and {wanted.bad_field}",
                found=f"none in record {one.index} of {file.name}",
                remedy="Mend the file.",
            )
        yield Pair(one.text, other.text, one.id)


def _records(file: SourceFile, source: SourceConfig) -> Iterator[_Item]:
    limits = LimitsConfig(max_record_bytes=max(_MAX_RECORD_BYTES, file.num_bytes))
    for record in read_records(file, source, limits):
        if not isinstance(record, Record):
            raise DataError(
                f"evaluation set {file.source!r} has a record that cannot be read",
                expected="every record, so that the figure is that of the set",
                found=f"{file.name} record {record.index}: {record.reason}",
                remedy="Mend the file, or name its fields in evaluation.sets.",
            )
        yield _Item(record.index, record.id, normalise(text_of(record)))


def _nothing(wanted: EvaluationSetConfig, what: str) -> DataError:
    return DataError(
        f"evaluation set {wanted.name!r} holds no {what}",
        expected=f"at least one {what}",
        found=f"none in the files at {wanted.path!r}",
        remedy="Correct its path.",
    )
