import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.content_lists import TooDeepError, keep_content
from lmcore.data.html import main_text

ITEMS = [f"The miller lifts stone {i} and dresses it with a pick." for i in range(3)]
LINK = '<a href="/x">corn and flour</a>'


def ul(items=ITEMS, attributes=""):
    return f"<ul{attributes}>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def kept(page, items=ITEMS):
    text = main_text(page)
    return [item in text for item in items]


PATHS = [
    "",
    "div",
    "main",
    "main article",
    "div div",
    "div section article",
    "div div div div div div",
    'div id="mw-content-text"|div class="mw-parser-output"',
    'div class="container"|div id="content"|article class="post"',
    "table|tr|td",
    "form",
    "center",
]


def wrapped(inner, path):
    tags = path.split("|") if "|" in path or "=" in path else path.split()
    for tag in reversed(tags):
        inner = f"<{tag}>{inner}</{tag.split()[0]}>"
    return f"<html><body>{inner}</body></html>"


KINDS = {
    "p": "<p>{}</p>",
    "ul": "<ul><li>{}</li></ul>",
    "UL": "<UL CLASS=x><LI>{}</UL>",
    "ol": "<ol><li>{}</li></ol>",
    "ul in ul": "<ul><li>First<ul><li>{}</li></ul></li></ul>",
    "ul in ol": "<ol><li>First<ul><li>{}</li></ul></li></ol>",
    "ul of p": "<ul><li><p>{}</p></li></ul>",
    "dl": "<dl><dt>Stone</dt><dd>{}</dd></dl>",
    "table": "<table><caption>Stones</caption><tr><td>{}</td></tr></table>",
    "pre": "<pre>{}</pre>",
    "code": "<pre><code>{}</code></pre>",
    "blockquote": "<blockquote><p>{}</p></blockquote>",
    "figure": "<figure><pre>{}</pre></figure>",
    "figcaption": "<figure><img src=a><figcaption>{}</figcaption></figure>",
    "details": "<details><summary>Stones</summary>{}</details>",
    "summary": "<details><summary>{}</summary><p>More</p></details>",
    "ul in details": "<details><summary>Stones</summary><ul><li>{}</li></ul></details>",
    "ul in blockquote": "<blockquote><ul><li>{}</li></ul></blockquote>",
    "address": "<address>{}</address>",
    "section": "<section>{}</section>",
    **{f"h{i}": f"<h{i}>{{}}</h{i}>" for i in range(1, 7)},
}


@pytest.mark.parametrize("path", PATHS)
def test_content_stays_whatever_element_it_is_in(path):
    page = wrapped("".join(part.format(f"{kind}: {ITEMS[0]}") for kind, part in KINDS.items()), path)
    text = main_text(page)
    assert [kind for kind in KINDS if f"{kind}: {ITEMS[0]}" not in text] == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "items",
    [
        [f"{item} See {LINK}, too." for item in ITEMS],
        [f"{LINK} {item}" for item in ITEMS],
        [ITEMS[0], f"{ITEMS[1]} <ul><li>{LINK} {ITEMS[2]}</li></ul>"],
    ],
)
def test_lists_with_links_stay(path, items):
    page = wrapped("<p>The mill.</p>" + ul(items), path)
    assert all(kept(page))
    assert main_text(page).count("corn and flour") == "".join(items).count("corn and flour")


@pytest.mark.parametrize("path", ["", "div", "main", "main article", "div div div div"])
@pytest.mark.parametrize(
    "around", ["{}", "<nav>{}</nav>", "<header><nav>{}</nav></header>", "<aside>{}</aside>"]
)
def test_menus_go(path, around):
    menu = around.format(ul([f'<a href="/{i}">Menu entry {i}</a>' for i in range(9)]))
    text = main_text(wrapped(menu + f"<p>{ITEMS[0]}</p>" + ul(ITEMS[1:]), path))
    assert "Menu entry" not in text
    assert all(item in text for item in ITEMS)


def test_breadcrumbs_and_footers_go():
    crumbs = ul(['<a href="/">Home</a>', '<a href="/docs">Documents</a>', "Mills"])
    footer = f"<footer>{ul(['Imprint of the mill', 'Copyright'])}</footer>"
    assert main_text(f"<body>{crumbs}<p>{ITEMS[0]}</p>{footer}") == ITEMS[0]


def test_what_scripts_and_comments_write_is_left_alone():
    hidden = (
        "<script>document.write('<ul><li>no <a href=x>y</a></li>');</script><!-- <ul><nav> -->"
        "<style>/* <ul> */</style><textarea><ul><li>field</textarea><title><ul></title>"
    )
    page = f"<body>{hidden}{ul()}<SCRIPT>'</ul><div><div><div>'</SCRIPT>{ul(['Later, ' + ITEMS[0]])}"
    assert all(
        hidden_part in keep_content(page) for hidden_part in re.findall(r"<script>.*?</script>", hidden)
    )
    text = main_text(page)
    assert all(item in text for item in [*ITEMS, f"Later, {ITEMS[0]}"])
    assert "no y" not in text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>It was on <time>5 May</time>, early.</p>", "It was on 5 May, early."),
        (
            "<ul><li><TIME datetime=x>1066</TIME >: a battle of the mill</li></ul>",
            "1066: a battle of the mill",
        ),
        ("<p>Words of the mill.</p><div><time>5 May</time></div>", "Words of the mill."),
    ],
)
def test_dates_stay_in_sentences_alone(page, text):
    assert main_text(f"<body>{page}").strip(" \u2022") == text


def test_indentation_of_lists_is_as_it_was():
    page = (
        f"<body><p>A</p><ul><li>{ITEMS[0]}<ul><li>{ITEMS[1]}</li></ul></li><li>{ITEMS[2]}</li></ul><p>B</p>"
    )
    assert main_text(page) == f"A\n\n  \u2022 {ITEMS[0]}\n    \u2022 {ITEMS[1]}\n  \u2022 {ITEMS[2]}\n\nB"


@pytest.mark.parametrize("tag", ["div", "ul", "BLOCKQUOTE", "Section"])
def test_elements_nested_without_end_are_refused(tag):
    with pytest.raises(TooDeepError):
        keep_content(f"<{tag}>" * 600)
    keep_content(f"<{tag}>x</{tag}>" * 600)


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_a_page_that_is_no_good_html_keeps_its_words(seed, size):
    draw = random.Random(seed)
    markup = [
        "<ul>",
        "</ul>",
        "<li>",
        "</li>",
        "<div>",
        "</div>",
        "<p>",
        "<time>",
        "</time>",
        "<a href=x>",
        "</a>",
    ]
    words = [f"word{i}" for i in range(size)]
    page = "".join(draw.choice(markup) + word + " " for word in words)
    changed = keep_content(page)
    assert re.findall(r"word\d+", changed) == words
    assert re.sub(r"<[^>]*>|x+(?=</script>)", "", changed) == re.sub(r"<[^>]*>", "", page)


@pytest.mark.parametrize("path", PATHS)
def test_a_menu_element_is_a_list(path):
    page = wrapped(ul().replace("ul>", "menu>") + f"<p>{ITEMS[0]} Later</p>", path)
    assert main_text(page) == main_text(page.replace("menu>", "ul>"))
    assert all(kept(page))
