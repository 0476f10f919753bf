import collections
import json

import pyarrow.parquet as pq
import pytest

from lmcore.config import CodeRules, DataConfig, NearDedupConfig, QualityConfig, SourceConfig
from lmcore.data.books import Books
from lmcore.data.dedup import content_hash
from lmcore.data.documents import build_documents, nothing_left
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits, document_files, read_split, split_of_shard
from lmcore.errors import DataError
from lmcore.progress import silent

TEXTS = [
    f"document number {i} says that {i * i} is the square of {i}, which is so and remains so"
    for i in range(120)
]


@pytest.fixture
def corpus(tmp_path):
    """Source b repeats some documents of source a, and a repeats some of its own."""
    for name, texts in {"a": TEXTS[:80] + TEXTS[:10], "b": TEXTS[70:]}.items():
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / f"{name}1.jsonl").write_text("\n".join(lines[:50]))
        (tmp_path / f"{name}2.jsonl").write_text("\n".join(lines[50:]))
    return tmp_path


def build(corpus, out, **options):
    sources = [SourceConfig(name=n, kind="files", path=f"{corpus}/{n}?.jsonl") for n in "ab"]
    options = {"sources": sources, "validation_fraction": 0.2, "shard_bytes": 1, "workers": 1} | options
    config = DataConfig(**options)
    for name in ("documents", "splits"):
        (out / name).mkdir(parents=True)
    build_documents(config, take_inventory(config), out / "documents", silent)
    return build_splits(config, out / "documents", out / "splits", silent)


def texts_of(out, split):
    return [document.text for document in read_split(out / "documents", out / "splits", split)]


def test_each_text_is_in_one_split_once(corpus, tmp_path):
    summary = build(corpus, tmp_path / "out")
    train, validation = (texts_of(tmp_path / "out", split) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(TEXTS)
    assert (summary["documents"], summary["duplicates"]) == (120, 20)
    assert summary["validation_documents"] == len(validation)
    assert summary["funnel"][-1] == ["validation", len(validation)]
    assert summary["sources"]["b"]["duplicates"] == 10


def test_rules_are_counted_by_name_and_looked_up_without_the_text(corpus, tmp_path):
    summary = build(corpus, tmp_path / "out")
    assert summary["books"]["dropped"] == {}
    assert min(map(len, TEXTS)) < 80 < max(map(len, TEXTS))
    for shard in document_files(tmp_path / "out/documents"):
        pq.write_table(pq.read_table(shard).drop_columns("text"), shard)
    (tmp_path / "again").mkdir()
    config = DataConfig(quality=QualityConfig(code=CodeRules(max_line_chars=80)))
    again = build_splits(config, tmp_path / "out/documents", tmp_path / "again", silent)
    assert again["documents"] == sum(len(text) <= 80 for text in TEXTS)
    assert set(again["books"]["dropped"]) == {"code.max_line_chars"}
    rows = pq.read_table(tmp_path / "again/decisions").to_pylist()
    assert all((row["rule"] == "code.max_line_chars") == (row["decision"] == "dropped") for row in rows)
    assert ["after code.max_line_chars", 140 - again["books"]["dropped"]["code.max_line_chars"]] in again[
        "funnel"
    ]


def test_an_empty_corpus_is_an_error_that_names_the_rules(corpus, tmp_path):
    with pytest.raises(DataError, match=r"140 read, 140 dropped by code\.min_chars"):
        build(corpus, tmp_path / "out", quality=QualityConfig(code=CodeRules(min_chars=10_000)))
    lost = Books(documents_in=3, quarantined=1, passed=2, dropped=collections.Counter({"code.min_chars": 2}))
    assert "1 quarantined. Loosen" in str(nothing_left(lost))
    assert "1 quarantined, for example a:x. Loosen" in str(nothing_left(lost, ["a:x"]))


def test_a_name_of_two_texts_is_refused(tmp_path):
    for names in (("x", "y"), ("x", "x")):
        rows = [{"text": text, "id": name} for text, name in zip(TEXTS[:2], names, strict=True)]
        lines = [
            json.dumps(row) for row in [*rows, rows[0]]
        ]  # the same text under the same name is no matter
        (tmp_path / f"{''.join(names)}.jsonl").write_text("\n".join(lines))
    source = {"name": "a", "kind": "files", "id_field": "id"}
    good = SourceConfig(**source, path=str(tmp_path / "xy.jsonl"))
    assert build(tmp_path, tmp_path / "good", sources=[good])["documents"] == 2
    bad = SourceConfig(**source, path=str(tmp_path / "xx.jsonl"))
    with pytest.raises(DataError, match=r"1 names of several, first a:x.*id_field"):
        build(tmp_path, tmp_path / "bad", sources=[bad])


def test_the_first_of_equal_documents_stays(corpus, tmp_path):
    build(corpus, tmp_path / "out")
    rows = [
        row
        for path in sorted((tmp_path / "out/splits/decisions").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    originals = {row["doc_id"]: row["duplicate_of"] for row in rows if row["decision"] == "duplicate"}
    assert originals["a:a2.jsonl#30"] == "a:a1.jsonl#0"
    assert originals["b:b1.jsonl#0"] == "a:a2.jsonl#20"
    assert len(originals) == 20
    assert all(row["duplicate_of"] is None for row in rows if row["decision"] != "duplicate")


def test_a_copy_of_a_near_duplicate_is_of_what_stays(tmp_path):
    words = ["".join(chr(97 + int(digit)) for digit in f"{i * i:06d}") for i in range(300)]
    first, alike = " ".join(words), " ".join([*words[:-1], "another"])
    rows = [{"text": text, "id": f"{i}"} for i, text in enumerate((first, alike, "text", alike, "text"))]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = SourceConfig(name="a", kind="files", id_field="id", path=str(tmp_path / "a.jsonl"))
    for exact in (True, False):
        out = tmp_path / f"exact-{exact}"
        near = NearDedupConfig(enabled=True)
        profile = QualityConfig(profile="none")
        build(tmp_path, out, sources=[source], near_dedup=near, quality=profile, exact_dedup=exact)
        decided = pq.read_table(out / "splits/decisions").to_pylist()
        lost = {row["doc_id"]: row["duplicate_of"] for row in decided if row["duplicate_of"]}
        assert lost == {"a:1": "a:0", "a:3": "a:0"} | ({"a:4": "a:2"} if exact else {})
        assert next(row["decision"] for row in decided if row["doc_id"] == "a:3") == (
            "duplicate" if exact else "near_duplicate"
        )


def test_duplicates_stay_on_one_side_when_they_are_kept(corpus, tmp_path):
    summary = build(corpus, tmp_path / "out", exact_dedup=False)
    train, validation = (texts_of(tmp_path / "out", split) for split in ("train", "validation"))
    assert not set(train) & set(validation)
    assert collections.Counter(train + validation) == collections.Counter(TEXTS + TEXTS[:10] + TEXTS[70:80])
    assert summary["duplicates"] == 0


def test_documents_of_a_shard_come_in_the_order_of_their_hashes(corpus, tmp_path):
    build(corpus, tmp_path / "out", shard_bytes=10**9)
    for shard in document_files(tmp_path / "out/documents"):
        decisions = tmp_path / "out/splits/decisions" / shard.name
        found = [content_hash(t) for t in split_of_shard(shard, decisions, "train")["text"].to_pylist()]
        assert found == sorted(found)
        some = split_of_shard(shard, decisions, "train", 0.5)["content_hash"].to_pylist()
        assert some == [one for one in found if one < b"\x80"]


def test_the_split_does_not_depend_on_shards(corpus, tmp_path):
    fine = build(corpus, tmp_path / "fine")
    coarse = build(corpus, tmp_path / "coarse", shard_bytes=10**9)
    assert fine["shards"] > coarse["shards"]
    assert fine["validation_digest"] == coarse["validation_digest"]
    assert fine["train_digest"] == coarse["train_digest"]
    other = build(corpus, tmp_path / "other", split_seed=1)
    assert other["validation_digest"] != fine["validation_digest"]


def test_a_tiny_corpus_still_has_both_splits_and_says_how(corpus, tmp_path):
    (corpus / "a1.jsonl").write_text(json.dumps({"text": TEXTS[0]}))
    (corpus / "a2.jsonl").write_text(json.dumps({"text": TEXTS[1]}))
    source = SourceConfig(name="a", kind="files", path=f"{corpus}/a?.jsonl")
    summary = build(corpus, tmp_path / "out", sources=[source], validation_fraction=1e-9)
    assert (summary["train_documents"], summary["validation_documents"]) == (1, 1)
    assert "held out" in summary["empty_split_remedy"]
    (corpus / "a2.jsonl").unlink()
    with pytest.raises(DataError, match="at least 2 distinct documents, found 1"):
        build(corpus, tmp_path / "one", sources=[source])


def test_decisions_of_other_documents_are_refused(corpus, tmp_path):
    build(corpus, tmp_path / "out")
    decisions = tmp_path / "out/splits/decisions"
    (decisions / "00000.parquet").write_bytes((decisions / "00001.parquet").read_bytes())
    with pytest.raises(DataError, match="are of other documents"):
        texts_of(tmp_path / "out", "train")


def test_a_document_lost_on_the_way_is_noticed(corpus, tmp_path):
    build(corpus, tmp_path / "out")
    shard = tmp_path / "out/documents/documents/00001.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.slice(1), shard)
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError, match=r"the books of shard 00001 \(a\) do not balance"):
        build_splits(DataConfig(), tmp_path / "out/documents", tmp_path / "again", silent)
