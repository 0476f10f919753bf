"""Text of an evaluation set is found in documents, and they are dropped and listed."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.config import (
    DataConfig,
    DecontaminationConfig,
    EvaluationConfig,
    EvaluationSetConfig,
    QualityConfig,
    Recipe,
    SourceConfig,
    identify,
    parse,
)
from lmcore.data.documents import build_documents
from lmcore.data.minhash import ngram_hashes
from lmcore.data.prepare import DOCUMENTS_SETTINGS
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits
from lmcore.errors import ConfigError, DataError
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


# --- evaluation sets, which are not named twice ------------------------------------------------------


def recipe(corpus, *sets, **options):
    data = config(corpus).model_copy(update={"decontamination": DecontaminationConfig(**options)})
    return Recipe(data=data, evaluation=EvaluationConfig(sets=sets))


def build(settings, out):
    """Books of the splits, and names of the documents that hold evaluation text."""
    documents, splits = out / "documents", out / "splits"
    for folder in (out, documents, splits):
        folder.mkdir()
    build_documents(settings, take_inventory(settings), documents, silent)
    books = build_splits(settings, documents, splits, silent)["books"]
    rows = [row for p in (splits / "decisions").iterdir() for row in pq.read_table(p).to_pylist()]
    return books, {row["doc_id"] for row in rows if row["decision"] == "contaminated"}


@pytest.fixture
def quiz(corpus):
    return EvaluationSetConfig(name="quiz", path=f"{corpus}/sets/quiz.jsonl", text_field="question")


def test_what_is_evaluated_on_is_not_learned_without_a_word_about_it(corpus, quiz):
    books, listed = build(recipe(corpus, quiz).preparation, corpus / "out")
    assert listed == {"s:03.txt", "s:04.txt"}
    assert (books["documents_in"], books["contaminated"], books["kept"]) == (30, 2, 28)


def test_both_sentences_of_minimal_pairs_are_looked_for(corpus):
    good, bad = words(20), words(20)
    row = {"sentence_good": good, "sentence_bad": bad}
    pq.write_table(pa.Table.from_pylist([row]), corpus / "sets" / "pairs.parquet")
    for number, text in ((10, good), (11, bad)):
        path = corpus / "raw" / f"{number}.txt"
        path.write_text(f"{path.read_text()} {text}")
    pairs = EvaluationSetConfig(name="pairs", kind="minimal_pairs", path=f"{corpus}/sets/*.parquet")
    _, listed = build(recipe(corpus, pairs).preparation, corpus / "out")
    assert listed == {"s:10.txt", "s:11.txt"}


def test_another_set_decides_anew(corpus, quiz):
    before = take_inventory(recipe(corpus, quiz).preparation).digest
    text = (corpus / "raw" / "07.txt").read_text()
    (corpus / "sets" / "quiz.jsonl").write_text(json.dumps({"question": text}))
    settings = recipe(corpus, quiz).preparation
    assert take_inventory(settings).digest != before
    assert build(settings, corpus / "out")[1] == {"s:07.txt"}


def test_without_sets_nothing_is_another_input(corpus, quiz):
    plain = recipe(corpus)
    assert plain.preparation is plain.data
    assert take_inventory(plain.data).evaluation == ()
    off = recipe(corpus, quiz, evaluation_sets=False)
    assert off.preparation == off.data

    def chosen(one):
        return identify(*DOCUMENTS_SETTINGS, data=one.preparation).chosen

    assert chosen(off) == chosen(plain)
    # How much of a set is scored is nothing to the data.
    short = quiz.model_copy(update={"max_bytes": 9, "path": "elsewhere"})
    assert chosen(recipe(corpus, short)) == chosen(recipe(corpus, quiz)) != chosen(plain)


def test_a_name_of_two_texts_is_refused(corpus, quiz):
    values = recipe(corpus, quiz).model_dump()
    values["data"]["decontamination"]["sources"] = [{"name": "quiz", "kind": "files", "path": "x"}]
    with pytest.raises(ConfigError, match=r"needs a name of its own; found \['quiz', 'quiz'\]"):
        parse(Recipe, values, where="test")


def test_hashes_are_spread():
    hashes, _ = ngram_hashes(pa.array([words(20_000)], pa.large_string()), 13)
    assert len(np.unique(hashes)) > 19_000
    assert abs(np.mean(hashes < np.uint64(2**63)) - 0.5) < 0.02
