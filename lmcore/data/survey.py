"""A survey of a recipe's sources before a run: a sample is read, each suspicion is reported with its remedy.

The sample is bounded in files, records, bytes and seconds. It is cleaned, masked and measured as in the
documents stage, so the reported rules are those of the run.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow.parquet as pq

from lmcore.config import DataConfig, DecontaminationConfig, LanguageConfig, SourceConfig
from lmcore.data.documents import measure_rows
from lmcore.data.language import identify
from lmcore.data.privacy import KINDS, mask
from lmcore.data.quality import broken_rules, rules_of
from lmcore.data.records import Quarantined, read_records, text_of
from lmcore.data.sources import LINES_SUFFIXES, SourceFile, sample_files
from lmcore.data.streams import BrokenStreamError, chunks
from lmcore.data.text import may_be_mojibake
from lmcore.errors import DataError

MAX_FILES, MAX_RECORDS_PER_FILE = 40, 200
MAX_TEXT_PER_FILE, MAX_TEXT = 4_000_000, 40_000_000  # characters
MAX_SECONDS = 60.0
_DIGESTED_BYTES = 64 << 20
_HEAD_BYTES = 1 << 18
_FEW = 5  # examples of anything

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One observation: its state, what was found, and the remedy if it is not well."""

    state: State
    found: str
    remedy: str = ""


@dataclass
class Survey:
    """What a sample of one source shows.

    Attributes:
        source: Its name.
        files: Files of the source.
        num_bytes: Their bytes, as stored.
        sampled: Files, and parts of large ones, of which something was read.
        suffixes: These by suffix.
        fields: Fields or columns of records, with how many of the looked-at records have them.
        records: Records that were read; quarantined ones excluded.
        quarantined: Records that cannot be read, by reason.
        chars: Characters of each record.
        languages: Records by language (ISO 639), of those that were identified.
        dropped: Records by the rule that would drop them.
        masked: Records that hold something of each kind of ``data.privacy``.
        findings: What looks wrong, and what does not.
    """

    source: str
    files: int = 0
    num_bytes: int = 0
    sampled: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    records: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    chars: list[int] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {
            name: getattr(self, name) for name in ("source", "files", "num_bytes", "sampled", "records")
        }
        counters = ("suffixes", "fields", "quarantined", "languages", "dropped", "masked")
        values |= {name: dict(getattr(self, name).most_common()) for name in counters}
        values["median_chars"] = statistics.median(self.chars) if self.chars else None
        return values | {"findings": [vars(finding) for finding in self.findings]}


def survey(config: DataConfig) -> list[Survey]:
    """Read a sample of every source of ``config``, in at most ``MAX_SECONDS`` and one file more."""
    end = time.monotonic() + MAX_SECONDS
    return [_survey(config, source, end) for source in config.sources]


def _survey(config: DataConfig, source: SourceConfig, end: float) -> Survey:
    found = Survey(source.name)
    try:
        files, found.files, found.num_bytes = sample_files(source, MAX_FILES, _DIGESTED_BYTES)
    except DataError as error:
        found.findings.append(Finding("failed", str(error)))
        return found
    texts: list[str] = []
    for file in files:
        if time.monotonic() >= end or sum(found.chars) >= MAX_TEXT:
            break
        found.sampled += 1
        found.suffixes[file.suffix] += 1
        if not file.start:
            found.fields.update(_fields(file))
        texts += _read(found, config, file, source)
    if texts:
        _measure(found, config, source, texts)
    found.findings += _findings(found, config, source, texts)
    return found


def _read(found: Survey, config: DataConfig, file: SourceFile, source: SourceConfig) -> list[str]:
    texts: list[str] = []
    size = 0
    try:
        for number, record in enumerate(read_records(file, source, config.limits)):
            if isinstance(record, Quarantined):
                found.quarantined[_kind_of(record.reason)] += record.num_records
            else:
                texts.append(text_of(record))
                size += len(texts[-1])
            if number + 1 >= MAX_RECORDS_PER_FILE or size >= MAX_TEXT_PER_FILE:
                break
    except DataError as error:
        found.findings.append(Finding("failed", str(error)))
    found.records += len(texts)
    found.chars += map(len, texts)
    return texts


def _kind_of(reason: str) -> str:
    """A reason without the places that differ from record to record."""
    return reason.split(" at byte ")[0].split(": line ")[0].split(" (char ")[0]


def _fields(file: SourceFile) -> Iterator[str]:
    """Fields of the first records of a file of JSON lines, or columns of a Parquet file."""
    try:
        with file.open() as stream:
            if file.suffix == ".parquet":
                yield from pq.read_schema(stream).names
            elif file.suffix in LINES_SUFFIXES:
                head = next(chunks(stream, file.suffix), b"")[:_HEAD_BYTES]
                for line in head.split(b"\n")[:_FEW]:
                    record = orjson.loads(line)
                    yield from record if isinstance(record, dict) else ()
    except (BrokenStreamError, ValueError, OSError):
        return  # reading the records reports it


def _measure(found: Survey, config: DataConfig, source: SourceConfig, texts: list[str]) -> None:
    """Clean, mask and measure ``texts`` as a run would; count what its rules would drop."""
    alone = config.model_copy(update={"decontamination": DecontaminationConfig()})
    rows = [(str(number), source.name, "", number, text) for number, text in enumerate(texts)]
    table = measure_rows(rows, alone, Path()).table
    rules = rules_of(alone.quality)
    for number in broken_rules(rules, table).tolist():
        if number >= 0:
            found.dropped[rules[number].name] += 1
    cleaned = table["text"].to_pylist()
    looked_at = [text for text in cleaned if text.strip()][:: max(1, len(cleaned) // 400)]
    found.languages.update(identify(looked_at, LanguageConfig(enabled=True))[0])
    for kind in dict.fromkeys(kind.name for kind in KINDS):
        of_kind = [one for one in KINDS if one.name == kind]
        found.masked[kind] = sum(bool(_count(text, of_kind)) for text in looked_at)


def _count(text: str, kinds: list[Any]) -> int:
    counted: Counter[str] = Counter()
    mask(text, kinds, counted)
    return counted.total()


# --- what looks wrong ------------------------------------------------------------------------------


def _findings(found: Survey, config: DataConfig, source: SourceConfig, texts: list[str]) -> Iterator[Finding]:
    yield from _broken(found, config, source)
    if not texts:
        yield Finding("failed", "no record of the sample can be read", "Mend what is named above.")
        return
    yield from _losses(found, config)
    yield from _texts(config, source, texts)
    yield from _languages(found, config)
    yield from _private(found, config)


def _broken(found: Survey, config: DataConfig, source: SourceConfig) -> Iterator[Finding]:
    total = found.quarantined.total()
    share = total / max(1, total + found.records)
    for reason, count in found.quarantined.most_common(_FEW):
        state: State = "failed" if share > config.limits.max_quarantined else "warning"
        yield Finding(
            state,
            f"{count} of {total + found.records} records cannot be read: {reason}",
            _remedy(found, reason, source),
        )


def _remedy(found: Survey, reason: str, source: SourceConfig) -> str:
    if reason.startswith("no field") and found.fields:
        names = ", ".join(name for name, _ in found.fields.most_common(10))
        return f"Set text_field of source {source.name!r} to one of: {names}."
    if reason.startswith("not UTF-8"):
        return f"Set encoding of source {source.name!r}, or convert its files."
    if "limits." in reason:
        return "Raise that limit if such records are wanted."
    return "Mend the files, or raise data.limits.max_quarantined if the loss is acceptable."


def _losses(found: Survey, config: DataConfig) -> Iterator[Finding]:
    total = found.dropped.total()
    share = total / found.records
    worst = ", ".join(f"{rule} {count}" for rule, count in found.dropped.most_common(_FEW))
    profile = config.quality.profile
    if share > 0.5:
        remedy = "Loosen the rules named, or choose another data.quality.profile; `none` drops nothing."
        yield Finding(
            "failed" if share == 1 else "warning",
            f"profile {profile} would drop {share:.0%}: {worst}",
            remedy,
        )
    else:
        yield Finding("ok", f"profile {profile} would drop {share:.0%}" + (f": {worst}" if worst else ""))


def _texts(config: DataConfig, source: SourceConfig, texts: list[str]) -> Iterator[Finding]:
    def share(holds: Any) -> float:
        return sum(map(bool, map(holds, texts))) / len(texts)

    chars = list(map(len, texts))
    if max(chars) > 1_000_000:
        yield Finding("ok", f"the largest record has {max(chars) / 1e6:.1f} million characters")
    if (few := share(lambda text: len(text.strip()) < 20)) > 0.05:
        yield Finding(
            "warning",
            f"{few:.0%} of the records have under 20 characters",
            "Look at them: `gristmill inspect`.",
        )
    distinct = len({text.strip() for text in texts})
    if distinct < 0.8 * len(texts):
        remedy = "" if config.exact_dedup else "Set data.exact_dedup=true."
        yield Finding(
            "warning", f"{1 - distinct / len(texts):.0%} of the records are copies of others", remedy
        )
    if source.text_format == "plain" and (html := share(_looks_like_html)) > 0.2:
        remedy = f"Set text_format: html of source {source.name!r}, which takes the main text."
        yield Finding("warning", f"{html:.0%} of the records look like HTML", remedy)
    if not config.text.repair_mojibake and (spoilt := share(may_be_mojibake)) > 0.01:
        remedy = "Set data.text.repair_mojibake=true."
        yield Finding("warning", f"{spoilt:.0%} of the records may hold mojibake, such as Ã© of é", remedy)
    if (lost := share(lambda text: text.count("\ufffd") > 2)) > 0.01:
        remedy = "They were decoded wrongly before; find their original, or drop them."
        yield Finding("warning", f"{lost:.0%} of the records hold replacement characters (U+FFFD)", remedy)


def _looks_like_html(text: str) -> bool:
    head = text[:4_000].lower()
    return head.lstrip().startswith("<") and head.count("</") > 2


def _languages(found: Survey, config: DataConfig) -> Iterator[Finding]:
    total = found.languages.total()
    if not total or config.quality.profile == "code":
        return
    most = ", ".join(f"{code} {count / total:.0%}" for code, count in found.languages.most_common(_FEW))
    other = 1 - found.languages["en"] / total
    is_english = config.quality.profile in ("prose", "gopher", "c4", "fineweb", "web")
    if other > 0.2 and is_english:
        remedy = "Compare what it drops by language, or set data.language.keep, or profile none."
        yield Finding(
            "warning", f"languages: {most}; profile {config.quality.profile} was made for English", remedy
        )
    else:
        yield Finding("ok", f"languages: {most}")


def _private(found: Survey, config: DataConfig) -> Iterator[Finding]:
    for kind, count in found.masked.items():
        if count and not getattr(config.privacy, kind):
            remedy = f"Set data.privacy.{kind}=true to mask them."
            yield Finding("ok", f"{count} records of the sample hold {kind}", remedy)
