import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import DataConfig, LanguageConfig, QualityConfig, SourceConfig
from lmcore.data.documents import build_documents
from lmcore.data.language import _identifier, identify
from lmcore.data.prepare import documents_libraries
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits
from lmcore.errors import ConfigError
from lmcore.progress import silent
from tests.lmcore.data.languages import ARTICLE_1

ENABLED = LanguageConfig(enabled=True)


def test_languages_are_told_apart_with_certainty():
    codes, scores = identify(list(ARTICLE_1.values()), ENABLED)
    assert codes == list(ARTICLE_1)
    assert all(0.85 < score <= 1 for score in scores)


def test_what_is_no_language_is_said_to_be_none():
    codes, scores = identify(["", "ok", "1234567890 0x1f", "{}[]();"], ENABLED)
    assert codes == ["und", "und", "zxx", "und"]
    assert max(scores[:2]) < 0.02


def test_only_the_start_is_looked_at():
    text = ARTICLE_1["de"] + ARTICLE_1["ko"] * 100
    assert identify([text], LanguageConfig(enabled=True, max_chars=100))[0] == ["de"]
    assert identify([text], ENABLED)[0] == ["ko"]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.text(max_size=80), st.sampled_from(list(ARTICLE_1.values()))), max_size=4),
    st.data(),
)
def test_languages_and_scores_are_those_of_py3langid(texts, data):
    texts = [text + data.draw(st.text(max_size=20)) for text in texts]
    texts += [texts[0].upper()] if texts else []
    codes, scores = identify(texts, ENABLED)
    for text, code, score in zip(texts, codes, scores, strict=True):
        expected, probability = _identifier().classify(text)
        assert score == pytest.approx(probability, abs=2e-4)
        close = sorted(p for _, p in _identifier().rank(text))[-2:]
        assert code == expected or close[1] - close[0] < 1e-4 or abs(score - 0.02) < 1e-3


@pytest.fixture
def corpus(tmp_path):
    texts = [f"{text} ({i})" for text in ARTICLE_1.values() for i in range(3)] + ["", "7 8 9"]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:40]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[40:]))
    return tmp_path


def config(corpus, **language):
    return DataConfig(
        sources=(SourceConfig(name="s", kind="files", path=f"{corpus}/*.jsonl"),),
        quality=QualityConfig(profile="none"),
        language=LanguageConfig(**language),
        shard_bytes=1,
        workers=1,
    )


def build(settings, out):
    for name in ("documents", "splits"):
        (out / name).mkdir(parents=True)
    build_documents(settings, take_inventory(settings), out / "documents", silent)
    return build_splits(settings, out / "documents", out / "splits", silent)


def decide(settings, documents, out):
    out.mkdir()
    return build_splits(settings, documents, out, silent)


def test_each_document_is_stored_with_its_language(corpus, tmp_path):
    build(config(corpus, enabled=True), tmp_path / "out")
    table = pq.read_table(tmp_path / "out/documents/documents")
    assert table["language"].to_pylist()[:-2] == [code for code in ARTICLE_1 for _ in range(3)]
    codes, scores = identify(table["text"].to_pylist(), ENABLED)
    assert (codes, scores) == (table["language"].to_pylist(), table["language_score"].to_pylist())
    build(config(corpus), tmp_path / "without")
    plain = pq.read_table(tmp_path / "without/documents/documents")
    assert plain.equals(table.drop_columns(["language", "language_score"]))


def test_rules_drop_by_what_is_stored_and_the_books_balance(corpus, tmp_path):
    whole = build(config(corpus, enabled=True), tmp_path / "out")
    assert whole["books"]["dropped"] == {"empty": 1}
    documents = tmp_path / "out/documents"
    kept = decide(config(corpus, enabled=True, keep=("en", "ka")), documents, tmp_path / "kept")
    assert kept["documents"] == 6
    assert kept["books"]["dropped"] == {"empty": 1, "language.keep": len(ARTICLE_1) * 3 - 6 + 1}
    sure = decide(config(corpus, enabled=True, min_score=0.5), documents, tmp_path / "sure")
    assert sure["books"]["dropped"] == {"empty": 1, "language.min_score": 1}
    both = decide(config(corpus, enabled=True, keep=("en",), min_score=0.99), documents, tmp_path / "both")
    assert set(both["books"]["dropped"]) == {"empty", "language.keep"}


def test_a_language_that_cannot_be_told_is_refused_before_any_work(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"language\.keep.*found 'EN'.*Write one of: .*, en,"):
        build(config(corpus, enabled=True, keep=("EN",)), tmp_path / "out")
    assert not (tmp_path / "out/documents/documents").exists()


def test_a_rule_without_languages_is_refused():
    with pytest.raises(ValueError, match="set enabled to true"):
        LanguageConfig(keep=("en",))


def test_the_classifier_decides_bytes_only_where_it_is_asked(corpus):
    inventory = take_inventory(config(corpus))
    assert "py3langid" not in documents_libraries(config(corpus), inventory)
    assert "py3langid" in documents_libraries(config(corpus, enabled=True), inventory)
