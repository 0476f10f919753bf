"""Text of an evaluation set is found in documents, and they are dropped and listed."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.config import DataConfig, DecontaminationConfig, QualityConfig, SourceConfig
from lmcore.data.documents import build_documents
from lmcore.data.minhash import ngram_hashes
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits
from lmcore.errors import DataError
from lmcore.progress import silent

DRAW = random.Random(2)
WORDS = ["".join(DRAW.choices("abcdefghij", k=5)) for _ in range(400)]


def words(count):
    return " ".join(DRAW.choices(WORDS, k=count))


def test_ngrams_are_those_of_words_in_lower_case_whatever_stands_between():
    texts = [
        "The mill, 12 wheels -- and a RIVER",
        "the mill 7 wheels\nand a river!",
        "mill the 12 wheels",
        "x",
    ]
    hashes, counts = ngram_hashes(pa.array(texts, pa.large_string()), 3)
    assert counts.tolist() == [5, 5, 2, 0]
    assert hashes[:5].tolist() == hashes[5:10].tolist()
    assert not set(hashes[10:].tolist()) & set(hashes[:5].tolist())


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "raw").mkdir()
    questions = [words(20) for _ in range(5)] + ["too short to be looked for"]
    rows = [json.dumps({"question": text}) for text in questions]
    (tmp_path / "sets" / "quiz.jsonl").write_text("\n".join(rows))
    texts = [words(200) for _ in range(30)]
    first = questions[0].split()
    texts[3] += " " + questions[1].upper().replace(" ", ",\n")  # all of one
    texts[4] += " " + " ".join(first[4:17])  # 13 words of one
    texts[5] += " " + " ".join(first[4:16])  # 12 are not enough
    for number, text in enumerate(texts):
        (tmp_path / "raw" / f"{number:02d}.txt").write_text(text)
    return tmp_path


def config(corpus, **options):
    quiz = SourceConfig(name="quiz", kind="files", path=f"{corpus}/sets/*.jsonl", text_field="question")
    return DataConfig(
        sources=(SourceConfig(name="s", kind="files", path=f"{corpus}/raw/*.txt"),),
        quality=QualityConfig(profile="none"),
        decontamination=DecontaminationConfig(sources=(quiz,), **options),
    )


def test_documents_that_hold_evaluation_text_are_dropped_and_listed(corpus):
    settings = config(corpus)
    inventory = take_inventory(settings)
    documents, splits = corpus / "documents", corpus / "splits"
    documents.mkdir()
    splits.mkdir()
    found = build_documents(settings, inventory, documents, silent)
    assert (found["evaluation_items"], found["evaluation_items_too_short"]) == (6, 1)
    assert found["evaluation_ngrams"] == 5 * 8
    summary = build_splits(settings, documents, splits, silent)
    assert summary["contaminated"] == summary["books"]["contaminated"] == 2
    assert summary["books"]["kept"] == 28
    rows = [row for p in (splits / "decisions").iterdir() for row in pq.read_table(p).to_pylist()]
    listed = {row["doc_id"]: row["rule"] for row in rows if row["decision"] == "contaminated"}
    assert listed == {f"s:{name}.txt": "decontamination.max_ngrams" for name in ("03", "04")}
    (again := corpus / "again").mkdir()
    loose = build_splits(config(corpus, max_ngrams=1), documents, again, silent)
    assert loose["contaminated"] == 1  # the one that holds a single n-gram is let in


def test_other_evaluation_sets_are_another_input(corpus):
    before = take_inventory(config(corpus)).digest
    path = corpus / "sets" / "quiz.jsonl"
    path.write_text(path.read_text() + "\n" + json.dumps({"question": words(15)}))
    assert take_inventory(config(corpus)).digest != before


def test_an_evaluation_set_that_cannot_be_read_whole_is_an_error(corpus):
    path = corpus / "sets" / "quiz.jsonl"
    path.write_text(path.read_text() + '\n{"question": "cut')
    settings = config(corpus)
    (corpus / "documents").mkdir()
    with pytest.raises(DataError, match=r"evaluation set 'quiz' .* record 6: broken JSON"):
        build_documents(settings, take_inventory(settings), corpus / "documents", silent)


def test_hashes_are_spread():
    hashes, _ = ngram_hashes(pa.array([words(20_000)], pa.large_string()), 13)
    assert len(np.unique(hashes)) > 19_000
    assert abs(np.mean(hashes < np.uint64(2**63)) - 0.5) < 0.02
