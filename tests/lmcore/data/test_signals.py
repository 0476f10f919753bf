import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import C4LineRules, QualityConfig
from lmcore.data.quality import PROFILES, TEXT_SIGNALS, broken_rule_of, rules_in
from lmcore.data.signals import STOP_WORDS, measure, measure_code, measure_text
from lmcore.data.words import words_of
from tests.lmcore.data.odd_documents import documents

RECORDED = json.loads((Path(__file__).parent / "datatrove.json").read_text())
ODD = documents(len(RECORDED))
EASY = st.text(st.sampled_from("ab ab .!?\n\n-#…é{[1]中"), max_size=120)


def measured(texts, rules=None):
    return measure_text(pa.array(texts, pa.large_string()), rules)


@pytest.mark.parametrize("group", PROFILES["web"])
def test_decisions_are_those_that_datatrove_was_recorded_to_make(group):
    config = QualityConfig(profile="web")
    found = measure(pa.array(ODD, pa.large_string()), config).signals
    rules = rules_in(group, getattr(config, group))
    ours = broken_rule_of(rules, found, len(ODD)).to_pylist()
    asked = [(rule, theirs[group]) for rule, theirs in zip(ours, RECORDED, strict=True) if group in theirs]
    assert len(asked) > 250
    assert sum(theirs is not None for _, theirs in asked) > 50
    assert [rule is not None for rule, _ in asked] == [theirs is not None for _, theirs in asked]


# --- the definitions, written for a reader ---------------------------------------------------------


def repeated(items):
    """How many of ``items`` came before, and their characters."""
    seen, found = set(), []
    for item in items:
        found += [item] if item in seen else []
        seen.add(item)
    return len(found), sum(map(len, found))


def top_gram(words, n):
    grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    return max((len(gram) * count for gram, count in grams.most_common(1)), default=0)


def repeated_grams(words, n):
    seen, chars, i = set(), 0, 0
    while i <= len(words) - n:
        gram = tuple(words[i : i + n])
        if gram in seen:
            chars += len("".join(gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return chars


def expected_of(text):
    size, words = max(len(text), 1), [word for word, _ in words_of(text)]
    lines, paragraphs = re.split("\n+", text), re.split("\n{2,}", text.strip())
    ends = text.splitlines()
    expected = {
        "chars": len(text),
        "duplicate_line_share": repeated(lines)[0] / len(lines),
        "duplicate_line_char_share": repeated(lines)[1] / size,
        "duplicate_paragraph_share": repeated(paragraphs)[0] / len(paragraphs),
        "duplicate_paragraph_char_share": repeated(paragraphs)[1] / size,
        "hashes_per_word": text.count("#") / max(len(words), 1),
        "ellipses_per_word": (text.count("...") + text.count("…")) / max(len(words), 1),
        "bullet_line_share": sum(line.lstrip().startswith(("•", "-")) for line in ends) / max(len(ends), 1),
        "ellipsis_line_share": sum(line.rstrip().endswith(("...", "…")) for line in ends) / max(len(ends), 1),
        "alphabetic_word_share": sum(any(map(str.isalpha, word)) for word in words) / max(len(words), 1),
        "stop_words": len(set(words) & set(STOP_WORDS)),
    }
    # The most frequent n-gram is the first of several; a Counter keeps that order.
    expected |= {f"top_{n}_gram_char_share": top_gram(words, n) / size for n in range(2, 5)}
    return expected | {
        f"duplicate_{n}_gram_char_share": repeated_grams(words, n) / size for n in range(5, 11)
    }


@settings(deadline=None, max_examples=300)
@given(
    EASY
    | st.builds(
        "".join, st.lists(st.sampled_from(["the mill ", "of ", "grain. ", "\n", "\n\n", "- "]), max_size=80)
    )
)
def test_figures_are_those_of_their_definitions(text):
    found = measured([text]).signals
    for name, value in expected_of(text).items():
        assert found[name][0] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("text", ODD[:60])
def test_figures_of_longer_documents_too(text):
    found = measured([text]).signals
    for name, value in expected_of(text).items():
        assert found[name][0] == pytest.approx(value, abs=1e-12), name


def test_a_document_does_not_depend_on_its_neighbours():
    rules = C4LineRules()
    whole = measured(ODD, rules)
    assert set(whole.signals) == {"chars", *TEXT_SIGNALS}
    for start in range(0, 60, 7):
        part = measured(ODD[start : start + 3], rules)
        assert part.texts.to_pylist() == whole.texts.to_pylist()[start : start + 3]
        for name in whole.signals:
            assert (part.signals[name] == whole.signals[name][start : start + 3]).all()
    sliced = measure_text(pa.array(ODD, pa.large_string()).slice(50, 5), rules)
    assert sliced.texts.to_pylist() == whole.texts.to_pylist()[50:55]


def test_c4_takes_lines_out_and_says_nothing_else_changed():
    text = (
        "  Too short.\nThis line may stay here [12] for good.\nTurn Javascript on to see it.\n"
        "We use cookies for all of it.\nRead the terms of use first.\n"
        + "x" * 1_001
        + " a b c\nThe end of it.\n"
    )
    kept = "This line may stay here  for good.\nThe end of it."
    found = measured([text, "none of it\nis enough"], C4LineRules())
    assert found.texts.to_pylist() == [kept, "none of it"]
    assert found.signals["chars"].tolist() == [len(kept), len("none of it")]
    assert found.signals["sentences"].tolist() == [2, 1]
    strict = measured([text, "no end\nnot here either"], C4LineRules(require_end_mark=True, min_line_words=1))
    assert "Too short." in strict.texts[0].as_py()
    assert strict.texts[1].as_py() == ""


# --- code ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_figures_of_code_are_those_of_their_definitions(texts):
    found = measure_code(pa.array(texts, pa.large_string())).signals
    for i, text in enumerate(texts):
        lines = text.split("\n")
        assert found["chars"][i] == len(text)
        assert found["line_chars"][i] == max(map(len, lines))
        assert found["mean_line_chars"][i] == sum(map(len, lines)) / len(lines)
        assert found["alphanumeric_share"][i] == sum(map(str.isalnum, text)) / max(1, len(text))


def test_generated_files_and_licences_are_seen():
    licence = "# Copyright (c) the authors\n# Licensed under these terms\n\n"
    texts = [
        "// Code generated by protoc. DO NOT EDIT.\npackage a\n",
        "def f():\n    return 1\n",
        licence + "x = 1\n",
        "/* All rights reserved */ int a;\n",
        "x = 1\n" + licence,
        "#!/bin/sh\n# no more than a remark\necho a\n",
    ]
    found = measure_code(pa.array(texts, pa.large_string())).signals
    assert found["generated"].tolist() == [1, 0, 0, 0, 0, 0]
    expected = np.array([0, 0, len(licence), len("/* All rights reserved */"), 0, 0])
    assert found["licence_share"] == pytest.approx(expected / np.array(list(map(len, texts))))
