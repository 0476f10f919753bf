import json
from collections import Counter

import pytest

from lmcore.config import CodeRules, DataConfig, QualityConfig, SourceConfig
from lmcore.data import documents as documents_stage
from lmcore.data.browse import Wanted, count, count_set_aside, documents, set_aside, tally
from lmcore.data.quality import rules_of
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits
from lmcore.progress import silent

QUALITY = QualityConfig(code=CodeRules(min_chars=20))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browse")
    rows = {"a": ["short", *(f"a document of number {i}, {i}" for i in range(20))]}
    rows["b"] = [*rows["a"][5:8], "also short", *(f"another document, number {i}" for i in range(20))]
    for name, texts in rows.items():
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, "{broken"]))
    config = DataConfig(
        sources=[SourceConfig(name=n, kind="files", path=f"{folder}/{n}.jsonl") for n in "ab"],
        quality=QUALITY,
        validation_fraction=0.2,
        workers=1,
    )
    for name in ("documents", "splits"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_stage, "ROW_GROUP_TEXT", 100)  # several groups
        documents_stage.build_documents(config, take_inventory(config), folder / "documents", silent)
    build_splits(config, folder / "documents", folder / "splits", silent)
    return folder / "documents", folder / "splits", rows


def found(built, **wanted):
    return list(documents(*built[:2], Wanted(**wanted)))


def test_every_document_is_there_once_with_its_text(built):
    seen = {document.doc_id: document.text for document in found(built)}
    assert seen == {
        f"{name}:{name}.jsonl#{i}": text for name, texts in built[2].items() for i, text in enumerate(texts)
    }
    assert len(found(built)) == len(seen)


def test_what_is_wanted_is_what_comes(built):
    everything = found(built)
    for wanted, fits in (
        ({"decision": "train"}, lambda d: d.decision == "train"),
        ({"decision": "validation", "source": "b"}, lambda d: (d.decision, d.source) == ("validation", "b")),
        ({"rule": "code.min"}, lambda d: d.rule == "code.min_chars"),
        ({"doc_id": "jsonl#1"}, lambda d: "jsonl#1" in d.doc_id),
        ({"rule": "code", "doc_id": "b:"}, lambda d: d.rule and d.source == "b"),
    ):
        expected = [document for document in everything if fits(document)]
        assert expected, wanted
        assert found(built, **wanted) == expected
        assert count(*built[:2], Wanted(**wanted)) == len(expected)


def test_all_documents_are_counted_by_decision_and_rule(built):
    counts = tally(built[1])
    everything = found(built)
    assert counts == Counter((document.decision, document.rule) for document in everything)
    assert counts["dropped", "code.min_chars"] == 2


def test_why_is_told_with_figure_and_limit(built):
    rules = rules_of(QUALITY)
    dropped = found(built, decision="dropped")
    assert [document.why(rules) for document in dropped] == [
        "code.min_chars: chars 5 is below 20",
        "code.min_chars: chars 10 is below 20",
    ]
    duplicates = found(built, decision="duplicate")
    assert [document.why(rules) for document in duplicates] == [f"like a:a.jsonl#{i}" for i in (5, 6, 7)]
    assert found(built, decision="train")[0].why(rules) == ""


def test_records_that_were_set_aside_are_shown_as_they_are(built):
    rows = list(set_aside(built[0]))
    assert count_set_aside(built[0]) == len(rows)
    assert list(set_aside(built[0], "b")) == rows[1:]
    assert count_set_aside(built[0], "b") == 1
    assert [(row["source"], row["record"], row["raw"]) for row in rows] == [
        ("a", 21, b"{broken"),
        ("b", 24, b"{broken"),
    ]
