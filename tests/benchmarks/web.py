"""Print what is kept of web pages by element kind, and how fast they are read, beside resiliparse alone.

python tests/benchmarks/web.py [--mb N] [--times N] [--real FOLDER ...] [--main TAG|#ID]

Recall is the share of the main content's pieces of text of a kind that are in the extracted text; menus kept
is that of the pieces outside of it. "before" is resiliparse's ``main_content=True, alt_texts=False``. Pages
are generated, each kind at each depth, or real ones (``--real``), whose main content is the named element's.
Speed is that of the documents step on 2 workers in MB of HTML a second, as a ratio to one thread of
resiliparse on the same pages in the same run; each of the N times they take turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from lmcore.config import DataConfig, LimitsConfig, QualityConfig, SourceConfig
from lmcore.data.documents import build_documents
from lmcore.data.sources import take_inventory
from lmcore.progress import silent

WORDS = [
    "the",
    "mill",
    "by",
    "river",
    "turns",
    "its",
    "wheel",
    "and",
    "stone",
    "grinds",
    "corn",
    "to",
    "flour",
    "for",
    "bread",
    "when",
    "water",
    "is",
    "high",
    "in",
    "spring",
    "miller",
    "carries",
    "every",
    "sack",
    "up",
    "narrow",
    "stairs",
    "before",
    "dawn",
    "then",
    "rests",
    "until",
    "evening",
    "while",
    "children",
    "play",
]
SOURCES = ("*.html", "*.warc", "*.warc.gz")
KINDS = [
    "p",
    "ul",
    "ol",
    "dl",
    "table",
    "pre",
    "blockquote",
    "h2",
    "h5",
    "figcaption",
    "details",
    "nested",
    "time",
    "ul-links",
]
_BLOCKS = {
    *[
        "p",
        "li",
        "dt",
        "dd",
        "td",
        "th",
        "pre",
        "blockquote",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "figcaption",
        "summary",
        "details",
        "caption",
        "div",
    ]
}
_AROUND = {"nav", "footer", "aside", "header"}
_VOID = {
    *["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
}
_MENU = re.compile(r" menu \d+$")  # of generated pages
_UNSEEN = {*["script", "style", "template", "noscript", "title", "button", "select", "textarea"]}


# --- corpora ---------------------------------------------------------------------------------------


def sentence(draw: random.Random, words: int = 14) -> str:
    """A sentence that hardly any other is like."""
    return f"{' '.join(draw.choices(WORDS, k=words)).capitalize()} {draw.randrange(10**6)}."


def content(kind: str, draw: random.Random) -> str:
    """Some content in elements of ``kind``."""
    one = lambda: sentence(draw)  # noqa: E731
    linked = f'<a href="/{draw.randrange(999)}">{" ".join(draw.choices(WORDS, k=5))}</a>'
    return {
        "p": f"<p>{one()}</p>",
        "ul": f"<ul><li>{one()}</li><li>{one()}</li></ul>",
        "ul-links": f"<ul><li>{linked} {one()}</li><li>{one()} {linked}</li></ul>",
        "ol": f"<ol><li>{one()}</li><li>{one()}</li></ol>",
        "dl": f"<dl><dt>{one()}</dt><dd>{one()}</dd></dl>",
        "table": f"<table><tr><th>{one()}</th><td>{one()}</td></tr></table>",
        "pre": f"<pre><code>{one()}</code></pre>",
        "blockquote": f"<blockquote>{one()}</blockquote>",
        "h2": f"<h2>{one()}</h2>",
        "h5": f"<h5>{one()}</h5>",
        "figcaption": f"<figure><img src=a.png alt=no><figcaption>{one()}</figcaption></figure>",
        "details": f"<details><summary>{one()}</summary><p>{one()}</p></details>",
        "nested": f"<ul><li>{one()}<ul><li>{one()}<ol><li>{one()}</li></ol></li></ul></li></ul>",
        "time": f"<p>{one()} On <time>{draw.randrange(28)} May</time> {one()}</p>",
    }[kind]


def page(draw: random.Random, kinds: list[str], depth: int, pieces: int) -> str:
    """A page with menus around ``pieces`` of content, ``depth`` elements below the body."""
    menu = "".join(f'<li><a href="/{i}">{draw.choice(WORDS)} menu {i}</a></li>' for i in range(12))
    path = ["main", "article", *["div"] * 9][:depth]
    inner = "".join(content(draw.choice(kinds), draw) for _ in range(pieces))
    for tag in reversed(path):
        inner = f"<{tag} class=x-{tag}>{inner}</{tag}>"
    script = f"<script>var a = '<ul><li>{draw.random()}';{'f(1);' * 200}</script>"
    return (
        f"<!DOCTYPE html><html><head><meta charset=utf-8><title>Mill</title>{script}</head><body>"
        f"<header><nav><ul>{menu}</ul></nav></header><ul class=top>{menu}</ul>{inner}"
        f"<aside><ul>{menu}</ul></aside><footer><p>Imprint of the mill</p><ul>{menu}</ul></footer>"
    )


def _links(draw: random.Random, name: str, count: int) -> str:
    items = (
        f'<li class="{name}__item {name}__item--level-{i % 3}" id="{name}-{i}" data-at="{draw.random()}">'
        f'<a class="{name}__link" href="https://mill.example/{name}/{i}?ref={draw.randrange(99)}">'
        f"<span class=icon></span>{draw.choice(WORDS)} {draw.choice(WORDS)}</a></li>"
        for i in range(count)
    )
    return f'<ul class="{name}__list">{"".join(items)}</ul>'


def web_page(draw: random.Random) -> str:
    """A page as sites have them: a fifth of its bytes is text."""
    style = "".join(f".c{i}{{margin:{i}px;color:#{draw.randrange(4096):03x}}}" for i in range(120))
    script = "".join(f'window.q=window.q||[];q.push({{"k{i}":{draw.random()}}});' for i in range(80))
    blocks = []
    for number in range(draw.randrange(10, 60)):
        kind = draw.choice(["p"] * 12 + KINDS)
        text = "".join(f"<p>{paragraph(draw)}</p>" for _ in range(2)) if kind == "p" else content(kind, draw)
        blocks.append(
            f'<div class="block block-{number % 7} grid__cell" data-id="{draw.randrange(10**8)}">'
            f'<div class="block__inner"><span id="anchor-{number}" class="anchor"></span>{text}</div></div>'
        )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>The mill</title>'
        f"<style>{style}</style><script>{script}</script></head>"
        f'<body class="home wp-theme"><div id="wrapper" class="wrapper">'
        f'<header class="masthead"><nav class="primary">{_links(draw, "menu", 25)}</nav></header>'
        f'<div class="row"><main id="content"><article class="entry">{"".join(blocks)}</article></main>'
        f'<aside class="sidebar">{_links(draw, "widget", 20)}</aside></div>'
        f'<footer class="site-footer">{_links(draw, "foot", 25)}</footer></div><script>{script}</script>'
    )


def paragraph(draw: random.Random) -> str:
    """Three sentences with some links and emphasis."""
    linked = f'<a href="/a/{draw.randrange(10**6)}" class="ref">{draw.choice(WORDS)}</a>'
    return f"{sentence(draw)} The <em>{draw.choice(WORDS)}</em> and {linked} go on. {sentence(draw, 20)}"


def pages(num_bytes: int, seed: int = 0) -> Iterator[bytes]:
    """Yield pages of ``num_bytes`` of HTML in all: the same for the same numbers."""
    draw = random.Random(seed)
    written = 0
    while written < num_bytes:
        made = web_page(draw).encode()
        written += len(made)
        yield made


def write_html(folder: Path, num_bytes: int, seed: int = 0) -> None:
    """Write a corpus of .html files."""
    for number, made in enumerate(pages(num_bytes, seed)):
        (folder / f"{number:06d}.html").write_bytes(made)


def write_warc(path: Path, num_bytes: int, seed: int = 0) -> None:
    """Write one archive; if its name ends in .gz, each record alone is compressed."""
    pack: Callable[[bytes], bytes] = gzip.compress if path.suffix == ".gz" else bytes
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    with path.open("wb") as file:
        for number, made in enumerate(pages(num_bytes, seed)):
            fields = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://mill.example/{number}\r\n"
                "Content-Type: application/http; msgtype=response\r\n"
                f"Content-Length: {len(head + made)}\r\n\r\n"
            )
            file.write(pack(fields.encode() + head + made + b"\r\n\r\n"))


# --- what is kept ----------------------------------------------------------------------------------


class _Pieces(HTMLParser):
    """Pieces of visible text with the block that they are in, inside and outside of the main content."""

    def __init__(self, main: str) -> None:
        super().__init__()
        self._main = main
        self._open: list[tuple[str, str]] = []
        self.found: list[tuple[str, bool, str]] = []  # kind, whether main, text
        self._held: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS or tag in _AROUND or tag in ("ul", "ol", "tr", "section", "article", "br"):
            self._flush()
        if tag not in _VOID:
            self._open.append((tag, dict(attrs).get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS or tag in _AROUND:
            self._flush()
        while tag in [name for name, _ in self._open] and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(tag in _UNSEEN for tag, _ in self._open):
            self._held.append(data)

    def _flush(self) -> None:
        text, self._held = " ".join("".join(self._held).split()), []
        names = [tag for tag, _ in self._open]
        if len(text) < 12:
            return
        lists = [tag for tag in names if tag in ("ul", "ol")]
        block = next((tag for tag in reversed(names) if tag in _BLOCKS), "body")
        kind = f"{lists[-1]} li" + " nested" * (len(lists) > 1) if block == "li" and lists else block
        around = bool(_AROUND & {*names}) or _MENU.search(text) is not None
        inside = (
            any(self._main in (tag, f"#{name}") for tag, name in self._open) if self._main else not around
        )
        self.found.append((kind, inside and not around, text))


def recall(html: list[str], main: str, extract: Callable[[str], str]) -> dict[str, tuple[int, int]]:
    """Pieces that are in the extracted text, and all, by kind; those around the content as "menus kept"."""
    kept: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for source in html:
        parser = _Pieces(main)
        parser.feed(source)
        text = "".join(extract(source).split())
        for kind, inside, piece in parser.found:
            name = kind if inside else "menus kept"
            total[name] += 1
            kept[name] += "".join(piece.split()) in text
    return {kind: (kept[kind], total[kind]) for kind in sorted(total)}


def plain_resiliparse(source: str) -> str:
    """The extractor as it is."""
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(source, main_content=True, alt_texts=False)


def show_recall(name: str, html: list[str], main: str) -> None:
    """Print the table of recall, before and after."""
    from lmcore.data.html import main_text

    before, after = recall(html, main, plain_resiliparse), recall(html, main, main_text)
    print(f"\n{name}: {len(html)} pages\n{'kind':<16} {'pieces':>8} {'before':>8} {'after':>8}")
    for kind, (kept, total) in after.items():
        if total >= 5:
            print(f"{kind:<16} {total:8,} {before[kind][0] / total:8.3f} {kept / total:8.3f}")


def matrix() -> list[str]:
    """Generated pages: each kind alone at each depth."""
    draw = random.Random(1)
    # In a list of its own the extractor's rules see each kind; a paragraph beside it is what pages have.
    return [
        page(draw, [kind, kind, "p"], depth, 12) for kind in KINDS for depth in range(9) for _ in range(3)
    ]


# --- speed -----------------------------------------------------------------------------------------


def timed(do: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and those of processors: this process's, and those of its children that ended meanwhile."""
    start, before = time.perf_counter(), sum(os.times()[:4])
    do()
    return time.perf_counter() - start, sum(os.times()[:4]) - before


def alone(html: list[str]) -> None:
    """One thread of resiliparse."""
    for source in html:
        plain_resiliparse(source)


def documents(path: str, workers: int) -> None:
    """The documents step on the files at ``path``."""
    source = SourceConfig(name="s", kind="files", path=path)
    settings = {"sources": (source,), "quality": QualityConfig(profile="none"), "workers": workers}
    config = DataConfig.model_validate(settings | {"limits": LimitsConfig(max_quarantined=1)})
    with tempfile.TemporaryDirectory() as out:
        build_documents(config, take_inventory(config), Path(out), silent)


def show_speed(num_bytes: int, times: int, workers: int) -> None:
    """Print MB/s of each kind of source, the ratio to resiliparse alone, and how busy processors are.

    The ratio of processor time is what a machine that nobody else uses could come to.
    """
    html = [made.decode() for made in pages(num_bytes)]
    size = sum(map(len, html)) / 1e6
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "first").mkdir()
        write_html(folder / "first", 100_000)
        documents(f"{folder}/first/*.html", 1)  # compiles
        write_html(folder, num_bytes)
        write_warc(folder / "a.warc", num_bytes)
        write_warc(folder / "a.warc.gz", num_bytes)
        runs: dict[str, Callable[[], object]] = {"resiliparse": lambda: alone(html)}
        runs |= {name: lambda name=name: documents(f"{folder}/{name}", workers) for name in SOURCES}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(times):
            for name, do in runs.items():
                taken[name].append(timed(do))
    base, base_busy = (statistics.median(of) for of in zip(*taken["resiliparse"], strict=True))
    print(f"\n{size:.1f} MB of HTML, {workers} workers, median of {times}")
    print(f"{'':<12} {'MB/s':>7} {'times':>7} {'cores':>7} {'by processor time':>18}")
    for name, of in taken.items():
        seconds, busy = (statistics.median(values) for values in zip(*of, strict=True))
        most = base_busy / busy * (workers if name != "resiliparse" else 1)
        print(f"{name:<12} {size / seconds:7.1f} {base / seconds:7.2f} {busy / seconds:7.2f} {most:18.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=float, default=60, help="0: no speed")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--real", type=Path, action="append", help="folder of .html files; none: generated")
    parser.add_argument("--main", default="main", help="what real pages have their content in")
    options = parser.parse_args()
    if options.real:
        paths = sorted(path for folder in options.real for path in folder.rglob("*.html") if path.is_file())
        html = [path.read_text("utf-8", "replace") for path in paths]
        show_recall("real", html, options.main)
        return
    show_recall("generated", matrix(), "")
    if options.mb:
        show_speed(int(options.mb * 1e6), options.times, options.workers)


if __name__ == "__main__":
    main()
