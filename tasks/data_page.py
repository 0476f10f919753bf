"""Findings about prepared data as one page of HTML that asks for nothing else.

Whatever comes from documents (texts, names, reasons) goes through ``shown``: it is hostile until then. The
page also forbids itself to run or to fetch anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lmcore.data.books import Books
from lmcore.data.findings import Cluster, Figure, Findings, RuleFound, Sample, SetAside
from tasks import pictures
from tasks.pictures import number

LANGUAGES_SHOWN = 15
SOURCES_OPEN = 3
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Of figures, by the end of their names; the first that fits.
_UNITS = {
    "share": "share (0 to 1)",
    "per_word": "per word",
    "chars": "characters",
    "chars_per_line": "characters",
    "words": "words",
    "lines": "lines",
    "sentences": "sentences",
}
_STYLE = Path(__file__).with_name("data_page.css")
# Control characters are shown by their pictures; HTML has no place for them.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


def shown(value: object) -> str:
    """Text of a document, or a name, as HTML: markup in it is text, and its direction stays inside."""
    return f'<bdi dir="auto">{_plain(value)}</bdi>'


def _plain(value: object) -> str:
    return escape(str(value).translate(_VISIBLE))


def page(findings: Findings) -> str:
    """The whole page."""
    sections = {
        "Funnel": _funnels(findings),
        "Figures and their thresholds": _figures(findings),
        "Lengths": _lengths(findings),
        "Languages": _languages(findings.languages),
        "Duplicates": _clusters(findings),
        "What each rule dropped": _samples(findings),
        "Tokens": _tokens(findings),
        "Masked": _counted(findings.masked, "Became placeholders of their kind.", "masked"),
        "Without a page": _counted(
            findings.without_page,
            "Records of web archives that hold no page, and are no documents.",
            "records",
        ),
        "Set aside": _set_aside(findings),
    }
    present = {title: body for title, body in sections.items() if body}
    anchors = {title: title.lower().replace(" ", "-") for title in present}
    contents = "".join(f'<a href="#{anchors[title]}">{title}</a>' for title in present)
    body = "".join(
        f'<section id="{anchors[title]}"><h2>{title}</h2>{body}</section>' for title, body in present.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head><body>"
        f"<header><h1>Data report</h1>{_tiles(findings)}<nav>{contents}</nav></header>{body}"
        "<footer>Excerpts are the documents with the smallest content hashes: the same ones however the "
        "corpus is cut into shards.</footer></body></html>\n"
    )


def _tiles(findings: Findings) -> str:
    books = findings.books
    tokens = sum(row.tokens for row in findings.tokens)
    text_bytes = sum(findings.split_bytes.values())
    kept = books["kept"] / max(1, books["documents_in"])
    tiles = [
        (number(books["documents_in"]), "documents in"),
        (number(books["kept"]), f"kept ({kept:.1%})"),
        (number(sum(books["dropped"].values()) + books["contaminated"]), "dropped by rules"),
        (number(books["duplicates"] + books["near_duplicates"]), "duplicates"),
        (number(tokens), "tokens"),
        (f"{number(text_bytes)}B", "of text kept"),
        (f"{text_bytes / max(1, tokens):.2f}", "bytes per token"),
        (number(books["quarantined"]), "set aside"),
    ]
    return '<div class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</div>"


def _tile(figure: str, label: str) -> str:
    return f'<div class="tile"><b>{figure}</b><span>{label}</span></div>'


# --- sections --------------------------------------------------------------------------------------


def _funnels(findings: Findings) -> str:
    quiet = [rule.name for figure in findings.figures for rule in figure.rules if not rule.drops]
    told = f" {len(quiet)} rules dropped nothing." if quiet else ""
    parts = [f"<p>Documents left after each step, and what it lost.{told}</p>"]
    if len(findings.sources) > 1:
        parts.append(f'<div class="card wide">{_funnel(findings.books, "all sources")}</div>')
    for name, books in findings.sources.items():
        is_open = " open" if len(findings.sources) <= SOURCES_OPEN else ""
        parts.append(
            f"<details{is_open}><summary><b>{shown(name)}</b><span>{books['kept']:,} of "
            f"{books['documents_in']:,} kept</span></summary>"
            f'<div class="card wide">{_funnel(books, name)}</div></details>'
        )
    return "".join(parts)


def _funnel(books: Mapping[str, Any], name: str) -> str:
    steps = pictures.losses(Books.from_json(books).funnel())
    return pictures.funnel(steps, f"documents of {name} left after each step")


def _figures(findings: Findings) -> str:
    cards = "".join(_card(figure) for figure in findings.figures)
    return (
        "<p>How many documents have which figure. A dashed line is a threshold; what is beyond it is "
        "dropped.</p>" + _legend("kept", "dropped") + f'<div class="grid">{cards}</div>'
    )


def _card(figure: Figure) -> str:
    limits = [(rule.limit, rule.below) for rule in figure.rules]
    name = figure.name.replace("_", " ")
    picture = pictures.histogram(
        figure.edges, figure.counts, limits, f"histogram of {name}", unit_of(figure.name)
    )
    rules = "".join(f"<li>{_rule(rule)}</li>" for rule in figure.rules) or "<li>no rule looks at it</li>"
    return f'<div class="card"><h3>{escape(name)}</h3>{picture}<ul>{rules}</ul></div>'


def unit_of(figure: str) -> str:
    """The unit of a stored figure, told by its name."""
    for end, unit in _UNITS.items():
        if figure.endswith(end):
            return unit
    return figure.replace("_", " ")


def _rule(rule: RuleFound) -> str:
    sign = "below" if rule.below else "above"
    others = f" of {rule.breaks:,} that break it" if rule.breaks != rule.drops else ""
    return f"<b>{escape(rule.name)}</b> {sign} {rule.limit:g}: {rule.drops:,} dropped{others}"


def _lengths(findings: Findings) -> str:
    lengths = findings.lengths
    picture = pictures.outlines(
        lengths.edges, lengths.counts, "documents by their characters", "characters of a document"
    )
    kinds = [kind for kind, counts in lengths.counts.items() if any(counts)]
    return f'<p>Characters of a document.</p><div class="card wide">{_legend(*kinds)}{picture}</div>'


def _languages(languages: Mapping[str, Sequence[int]]) -> str:
    if not languages:
        return ""
    rows = list(languages.items())
    others = rows[LANGUAGES_SHOWN:]
    rows = rows[:LANGUAGES_SHOWN]
    if others:
        kept, lost = (sum(counts[i] for _, counts in others) for i in (0, 1))
        rows.append((f"{len(others)} others", [kept, lost]))
    most = max(sum(counts) for _, counts in rows)
    return "<p>Documents in each language.</p>" + _table(
        ("language", "", "kept#", "not kept#"),
        [(shown(code), _bar(kept, lost, most), f"{kept:,}", f"{lost:,}") for code, (kept, lost) in rows],
    )


def _clusters(findings: Findings) -> str:
    lost = findings.books["duplicates"] + findings.books["near_duplicates"]
    if not lost:
        return ""
    about = f"<p>{lost:,} documents are like one of {findings.num_clusters:,} that stayed. The largest:</p>"
    return about + _table(
        ("document that stayed", "copies#", "much alike#"),
        [(_document(cluster), f"{cluster.equal:,}", f"{cluster.alike:,}") for cluster in findings.clusters],
    )


def _document(document: Cluster | Sample, why: str = "") -> str:
    return (
        f'<span class="id">{shown(document.doc_id)}</span>{why}'
        f"<pre>{_excerpt(document.text, document.num_chars)}</pre>"
    )


def _excerpt(text: str, num_chars: int) -> str:
    more = f" … {num_chars - len(text):,} more" if num_chars > len(text) else ""
    return _plain(text) + f"<i>{more}</i>"


def _samples(findings: Findings) -> str:
    rules = {rule.name: (figure.name, rule) for figure in findings.figures for rule in figure.rules}
    parts = []
    for name, samples in findings.samples.items():
        figure, rule = rules.get(name, ("language", None))
        many = f"{rule.drops:,} dropped" if rule else ""
        shown_samples = "".join(
            f'<div class="sample">{_document(sample, _why(figure, sample, rule))}</div>' for sample in samples
        )
        parts.append(
            f"<details><summary><b>{escape(name)}</b><span>{many}</span></summary>{shown_samples}</details>"
        )
    return "".join(parts)


def _why(figure: str, sample: Sample, rule: RuleFound | None) -> str:
    told = f"{figure.replace('_', ' ')} "
    if rule is None or not isinstance(sample.figure, float):
        told += f"{sample.figure} is not kept"
    else:
        told += f"{sample.figure:.4g} is {'below' if rule.below else 'above'} {rule.limit:g}"
    return f'<span class="why">{shown(told)}</span>'


def _tokens(findings: Findings) -> str:
    total = sum(row.tokens for row in findings.tokens) or 1
    rows = [
        (
            shown(row.source),
            row.split,
            f"{row.documents:,}",
            f"{row.tokens:,}",
            f"{row.tokens / total:.1%}",
            f"{row.tokens / max(1, row.documents):,.0f}",
            f"{row.chars / max(1, row.tokens):.2f}",
        )
        for row in findings.tokens
    ]
    headings = (
        *("source", "split", "documents#", "tokens#", "share#"),
        *("tokens per document#", "characters per token#"),
    )
    by_split = {
        split: sum(row.tokens for row in findings.tokens if row.split == split)
        for split, size in findings.split_bytes.items()
        if size
    }
    told = ", ".join(f"{findings.split_bytes[s] / max(1, n):.3f} ({s})" for s, n in by_split.items())
    about = f"<p>The token that ends each document is counted. Bytes per token: {told}.</p>"
    return about + _table(headings, rows)


def _counted(counts: Mapping[str, int], about: str, heading: str) -> str:
    if not counts:
        return ""
    rows = [(escape(kind), f"{many:,}") for kind, many in sorted(counts.items(), key=lambda item: -item[1])]
    return f"<p>{about}</p>" + _table(("kind", f"{heading}#"), rows)


def _set_aside(findings: Findings) -> str:
    if not findings.set_aside:
        return ""
    rows = [(_record(record), shown(record.reason)) for record in findings.set_aside]
    about = f"<p>{findings.books['quarantined']:,} records could not be read. Some of them:</p>"
    return about + _table(("record", "reason"), rows)


def _record(record: SetAside) -> str:
    place = "" if record.byte_offset is None else f" at byte {record.byte_offset:,}"
    name = f"{record.source}:{record.path} record {record.record}{place}"
    raw = f"<pre>{_plain(record.raw)}</pre>" if record.raw else ""
    return f'<span class="id">{shown(name)}</span>{raw}'


# --- parts -----------------------------------------------------------------------------------------


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; the headings of numbers end in #."""
    kinds = ["n" if heading.endswith("#") else "" for heading in headings]
    head = _row("th", kinds, [heading.rstrip("#") for heading in headings])
    body = "".join(_row("td", kinds, row) for row in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _row(tag: str, kinds: Sequence[str], cells: Sequence[str]) -> str:
    marked = zip(kinds, cells, strict=True)
    return "<tr>" + "".join(f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in marked) + "</tr>"


def _bar(kept: int, lost: int, most: int) -> str:
    parts = "".join(
        f'<i class="{kind}" style="width:{100 * many / max(1, most):.1f}%"></i>'
        for kind, many in (("kept", kept), ("dropped", lost))
    )
    return f'<div class="bar">{parts}</div>'


def _legend(*kinds: str) -> str:
    entries = "".join(f'<span><i class="{kind}"></i>{kind}</span>' for kind in kinds)
    return f'<div class="legend">{entries}</div>'
