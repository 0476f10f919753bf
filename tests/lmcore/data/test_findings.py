"""What the report tells is what the books say, however the corpus was cut."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from lmcore.config import (
    CodeRules,
    DataConfig,
    DecontaminationConfig,
    LanguageConfig,
    LimitsConfig,
    NearDedupConfig,
    PrivacyConfig,
    QualityConfig,
    SourceConfig,
)
from lmcore.data import findings as found_in
from lmcore.data import prepare
from lmcore.data.findings import gather
from lmcore.data.tally import OUTCOMES
from lmcore.progress import silent
from lmcore.store import Artifact

WORDS = (
    "mill",
    "stone",
    "grain",
    "flour",
    "water",
    "wheel",
    "sack",
    "miller",
    "river",
    "bread",
    "oven",
    "field",
)
RULES = {"min_chars": 40, "max_line_chars": 400, "max_mean_line_chars": 1_000, "min_alphanumeric_share": 0.5}
QUALITY = QualityConfig(code=CodeRules(**RULES))


def sentence(draw, words=30):
    return " ".join(draw.choice(WORDS, words))


def texts(source):
    """Good ones, short ones, ones of signs, copies, and ones that differ in their last word."""
    draw = np.random.default_rng(len(source))
    good = [sentence(draw) for _ in range(60)]
    short = [f"short {source} {i}" for i in range(8)] + ["", ""]
    signs = ["?!;: " * (20 + i) for i in range(7)]
    long = ["a" * 401, "b" * 500]
    copies = [good[0]] * 3 + [good[1]] * 2
    alike = [f"{good[2]} {word}" for word in WORDS[:4]]
    return [
        *good,
        *short,
        *signs,
        *long,
        *copies,
        *alike,
        alike[0],
        "write to jane.doe@example.org " + good[3],
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("findings")
    for source in ("a", "bb"):
        lines = [json.dumps({"text": text}) for text in texts(source)]
        lines.insert(5, "{broken")
        for number in range(4):
            (folder / f"{source}-{number}.jsonl").write_text("\n".join(lines[number::4]))
    (folder / "exam.jsonl").write_text(json.dumps({"text": texts("a")[10]}))
    return folder


def build(corpus, out, **options):
    """Every stage but the tokenizer, which is brought; then the findings."""
    sources = [SourceConfig(name=n, kind="files", path=f"{corpus}/{n}-*.jsonl") for n in ("a", "bb")]
    exam = SourceConfig(name="exam", kind="files", path=f"{corpus}/exam.jsonl")
    config = DataConfig(
        **{
            "sources": sources,
            "quality": QUALITY,
            "near_dedup": NearDedupConfig(enabled=True, num_bands=20, band_rows=4),
            "privacy": PrivacyConfig(emails=True),
            "language": LanguageConfig(enabled=True),
            "decontamination": DecontaminationConfig(sources=[exam]),
            "limits": LimitsConfig(max_quarantined=0.5),
            "validation_fraction": 0.2,
            "test_fraction": 0.1,
            "tokenizer": {"vocab_size": 300},
            "workers": 1,
            "shard_bytes": 1,
        }
        | options
    )
    made = {}
    for stage in ("documents", "splits", "tokenizer", "tokens"):
        path = out / stage
        path.mkdir(parents=True)
        inputs = [made[name].path for name in ("documents", "splits", "tokenizer") if name in made]
        summary = {
            "documents": lambda p=path: prepare.build_documents(
                config, prepare.take_inventory(config), p, silent
            ),
            "splits": lambda p=path, i=inputs: prepare.build_splits(config, *i, p, silent),
            "tokenizer": lambda p=path, i=inputs: prepare.build_tokenizer(config, *i, p, silent),
            "tokens": lambda p=path, i=inputs: prepare.build_tokens(config, *i, p, silent),
        }[stage]()
        made[stage] = Artifact(stage, "0" * 64, path, "built", "", 0.0, summary)
    return gather(config, made["documents"], made["splits"], made["tokens"], out, silent), made


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    return build(corpus, tmp_path_factory.mktemp("built"))


def test_counts_are_those_of_the_books(built):
    findings, made = built
    books = made["splits"].summary["books"]
    assert all(books[name] for name in ("quarantined", "duplicates", "near_duplicates", "contaminated"))
    assert findings.books == books
    assert findings.sources == made["splits"].summary["sources"]
    drops = {rule.name: rule.drops for figure in findings.figures for rule in figure.rules if rule.drops}
    assert drops == books["dropped"] | {"decontamination.max_ngrams": books["contaminated"]}
    sums = {name: sum(counts) for name, counts in findings.lengths.counts.items()}
    assert sums == {
        "kept": books["kept"],
        "dropped": sum(books["dropped"].values()) + books["contaminated"],
        "duplicate": books["duplicates"] + books["near_duplicates"],
    }
    kept, lost = np.sum(list(findings.languages.values()), axis=0)
    assert (kept, kept + lost) == (books["kept"], books["passed"])


def test_every_histogram_holds_every_document(built):
    findings, made = built
    passed = made["splits"].summary["books"]["passed"]
    assert len(findings.figures) > 6
    for figure in findings.figures:
        assert sum(figure.counts) == passed, figure.name
        for rule in figure.rules:
            bars = zip(figure.edges, figure.edges[1:], figure.counts, strict=False)
            beyond = [n for low, high, n in bars if (high <= rule.limit if rule.below else low > rule.limit)]
            assert sum(beyond) == rule.breaks, rule.name
            assert rule.drops <= rule.breaks


def test_tokens_are_those_of_the_splits(built):
    findings, made = built
    summary = made["tokens"].summary
    for split in ("train", "validation", "test"):
        rows = [row for row in findings.tokens if row.split == split]
        assert [row.source for row in rows] == ["a", "bb"]
        assert sum(row.tokens for row in rows) == summary[f"{split}_tokens"]
        assert sum(row.documents for row in rows) == summary[f"{split}_documents"]
        # Texts are ASCII, so that characters are bytes.
        assert sum(row.chars for row in rows) == summary[f"{split}_bytes"] == findings.split_bytes[split]


def test_clusters_hold_all_that_is_like_the_one_that_stayed(built):
    findings, made = built
    books = made["splits"].summary["books"]
    largest = {cluster.doc_id: (cluster.equal, cluster.alike) for cluster in findings.clusters}
    assert list(largest.values()) == sorted(largest.values(), key=sum, reverse=True)
    assert findings.num_clusters == len(largest) == 8
    assert sum(equal for equal, _ in largest.values()) == books["duplicates"]
    assert sum(alike for _, alike in largest.values()) == books["near_duplicates"]
    first = findings.clusters[0]
    # A copy of a document that is much like another one counts with that one.
    assert (first.equal, first.alike) == (1, 4)
    assert first.text.startswith(texts(first.source)[2])


def test_samples_are_what_the_rules_dropped(built):
    findings, _ = built
    everything = {text for source in ("a", "bb") for text in texts(source)}
    samples = findings.samples
    assert set(samples) == {
        *("empty", "code.min_chars", "code.max_line_chars", "code.min_alphanumeric_share"),
        "decontamination.max_ngrams",
    }
    assert [len(samples[rule]) for rule in sorted(samples)] == [2, 5, 5, 1, 1]
    for sample in samples["code.min_chars"]:
        assert sample.text in everything
        assert sample.figure == sample.num_chars == len(sample.text) < 40
    assert {sample.num_chars for sample in samples["code.max_line_chars"]} <= {401, 500}
    assert all(len(sample.text) == 300 for sample in samples["code.max_line_chars"])
    assert samples["empty"][0].text == ""


def test_what_was_masked_and_set_aside_is_told(built):
    findings, _ = built
    assert findings.masked == {"emails": 2}
    assert {(record.source, record.raw) for record in findings.set_aside} == {
        ("a", "{broken"),
        ("bb", "{broken"),
    }


def test_findings_do_not_depend_on_the_shards(corpus, built, tmp_path):
    fine, made = built
    coarse, other = build(corpus, tmp_path, shard_bytes=10**9)
    assert len(list((made["documents"].path / "documents").iterdir())) == 8
    assert len(list((other["documents"].path / "documents").iterdir())) == 2
    assert coarse == fine


def test_texts_are_read_of_what_is_shown_alone(built, tmp_path, monkeypatch):
    _, made = built
    read = pq.ParquetFile.read_row_group
    with_text = []

    def spy(self, group, columns=None, **options):
        table = read(self, group, columns, **options)
        with_text.extend(table.column("doc_id").to_pylist() if "text" in table.column_names else [])
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    monkeypatch.setattr(found_in, "SAMPLES_OF_A_RULE", 0)
    monkeypatch.setattr(found_in, "LARGEST_CLUSTERS", 1)
    config = DataConfig(quality=QUALITY, language=LanguageConfig(enabled=True))
    findings = gather(config, made["documents"], made["splits"], made["tokens"], tmp_path, silent)
    assert len(with_text) < made["splits"].summary["books"]["passed"] / 2
    assert findings.clusters[0].doc_id in with_text


def test_a_corpus_without_losses_has_findings_too(tmp_path):
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": f"number {i} " * 9}) for i in range(20)))
    source = SourceConfig(name="c", kind="files", path=f"{tmp_path}/c.jsonl")
    plain = {name: DataConfig.model_fields[name].default for name in ("near_dedup", "privacy", "language")}
    options = plain | {"decontamination": DecontaminationConfig(), "quality": QualityConfig(profile="none")}
    findings, _ = build(tmp_path, tmp_path / "out", sources=[source], **options)
    assert (findings.samples, findings.clusters, findings.languages, findings.set_aside) == ({}, [], {}, [])
    assert [figure.name for figure in findings.figures] == ["chars"]
    assert set(findings.lengths.counts) == set(OUTCOMES)
