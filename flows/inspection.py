"""``gristmill inspect``: documents of a recipe, printed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from flows.explain import built
from lmcore.config import Recipe
from lmcore.data import browse
from lmcore.data.decoding import Decoder
from lmcore.data.quality import decision_rules
from lmcore.data.splits import SPLITS
from lmcore.data.tokens import TokenDataset
from lmcore.errors import DataError
from lmcore.home import Home
from lmcore.progress import silent
from lmcore.store import Artifact, Store
from tasks.data_report import PAGE, build_report, report_stage

CHARS_SHOWN = 1_000


def show_documents(recipe: Recipe, wanted: browse.Wanted, limit: int, *, tokens: bool) -> None:
    """Print the first ``limit`` documents that are ``wanted``; with ``tokens`` as they were encoded.

    Raises:
        StorageError: the recipe's data has not been prepared.
        DataError: there can be none: no source, rule or document has the name.
    """
    found = built(recipe, "tokens" if tokens else "splits")
    console, rules = Console(), decision_rules(recipe.preparation)
    shown = 0
    seen = browse.documents(found["documents"].path, found["splits"].path, wanted)
    for document in itertools.islice(seen, limit):
        text = document.text
        if tokens and document.decision in SPLITS:
            split = found["tokens"].path / document.decision
            text = _decoded(split, found["tokenizer"].path, document.doc_id)
        _print(console, f"{document.doc_id}  {document.decision}", document.why(rules), text)
        shown += 1
    if not shown:
        console.print(_why_none(found["splits"], wanted, [rule.name for rule in rules]), highlight=False)
        return
    _say_how_many(shown, browse.count(found["documents"].path, found["splits"].path, wanted), "documents")


def _why_none(splits: Artifact, wanted: browse.Wanted, rules: Sequence[str]) -> str:
    """That no document is as asked for, and what there is instead.

    Raises:
        DataError: there can be none: no source, rule or document has the name.
    """
    there = browse.tally(splits.path)
    sources, decisions, by_rule = sorted(splits.summary["sources"]), Counter(), Counter()
    for (decision, rule), number in there.items():
        decisions[decision] += number
        by_rule.update({rule: number} if rule else {})
    if wanted.source and wanted.source not in sources:
        raise _no_name("source", wanted.source, sources)
    dropped = f"rules that dropped some: {_listed(by_rule)}" if by_rule else "no rule dropped any"
    if wanted.rule and not any(rule.startswith(wanted.rule) for rule in by_rule):
        if not any(rule.startswith(wanted.rule) for rule in rules):
            raise _no_name(
                "rule", wanted.rule, sorted({*rules, *by_rule}), f"{dropped[0].upper()}{dropped[1:]}."
            )
        return f"no document was dropped by {wanted.rule}; {dropped}"
    if wanted.decision and not decisions[wanted.decision]:
        return f"no document is {wanted.decision}; there are {_listed(decisions)}"
    if wanted.doc_id and not (wanted.decision or wanted.rule or wanted.source):
        raise DataError(
            "no document has such a name",
            expected="a part of one, such as gristmill inspect shows above each text",
            found=repr(wanted.doc_id),
        )
    return f"no document fits all options together; there are {_listed(decisions)}; {dropped}"


def _no_name(what: str, name: str, known: Sequence[str], remedy: str = "") -> DataError:
    return DataError(
        f"no document is like that: there is no {what} {name!r}",
        expected=f"one of {', '.join(known)}" if known else "none: nothing is dropped",
        found=repr(name),
        remedy=remedy,
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items(), key=lambda one: -one[1]))


def show_set_aside(recipe: Recipe, source: str, limit: int) -> None:
    """Print the first ``limit`` records (of ``source``; empty: any) that could not be read, and why.

    Raises:
        StorageError: the recipe's data has not been prepared.
        DataError: there is no source of this name.
    """
    console = Console()
    sources = [one.name for one in recipe.preparation.sources]
    if source and source not in sources:
        raise _no_name("source", source, sources)
    documents = built(recipe, "documents")["documents"].path
    for row in itertools.islice(browse.set_aside(documents, source), limit):
        place = "" if row["byte_offset"] is None else f" at byte {row['byte_offset']:,}"
        title = f"{row['source']}:{row['path']} record {row['record']}{place}"
        _print(console, title, row["reason"], row["raw"].decode("utf-8", "backslashreplace"))
    there = browse.count_set_aside(documents, source)
    _say_how_many(min(limit, there), there, "records that could not be read")


def show_report(recipe: Recipe) -> None:
    """Print where the page about the data is; it is drawn if it is not there.

    Raises:
        StorageError: the recipe's data has not been prepared.
    """
    found = built(recipe, "tokens")
    stages = (found["documents"], found["splits"], found["tokens"])
    artifact = Store(Home.here().store).ensure(
        report_stage(recipe.preparation, *stages),
        lambda out: build_report(recipe.preparation, *stages, out, silent),
    )
    Console().print(str(artifact.path / PAGE), highlight=False, markup=False, soft_wrap=True)


def _decoded(split: Path, tokenizer: Path, doc_id: str) -> str:
    """The tokens of a document, put back together, with a mark between two."""
    dataset, decoder = TokenDataset(split), Decoder(tokenizer)
    number = next(i for i in range(dataset.num_documents) if dataset.doc_id(i) == doc_id)
    pieces: Iterator[str] = (
        decoder.decode(one).decode("utf-8", "backslashreplace") for one in dataset.document(number)[:, None]
    )
    return f"{len(dataset.document(number)):,} tokens: " + "|".join(pieces)


def _say_how_many(shown: int, there: int, what: str) -> None:
    more = "; --limit shows more" if shown < there else ""
    Console(stderr=True).print(f"{shown:,} of {there:,} {what}{more}", highlight=False)


def _print(console: Console, title: str, why: str, text: str) -> None:
    cut = text[:CHARS_SHOWN] + (f"\n... {len(text) - CHARS_SHOWN:,} more" if len(text) > CHARS_SHOWN else "")
    console.print(
        Panel(Text(cut), title=Text(title), title_align="left", subtitle=Text(why), border_style="dim")
    )
