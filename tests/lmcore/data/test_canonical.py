"""Texts that differ by white space at the ends of lines alone are one text: for copies and for the split."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import DataConfig, QualityConfig, SourceConfig
from lmcore.data.canonical import WHITE_SPACE, canonical, canonical_texts
from lmcore.data.dedup import content_hash
from lmcore.data.documents import build_documents
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits, read_split
from lmcore.errors import DataError
from lmcore.progress import silent

LINES = ["Text of the mill and river.", "  indented line of it", "last line, the river again"]
ENDS = {
    "a line end": "{}\n",
    "line ends": "{}\n\n\n",
    "a carriage return": "{}\r\n",
    "spaces and tabs": "{} \t  ",
    "no-break spaces": "{}\u00a0\u202f",
    "an ideographic space": "\u3000{}\u3000",
    "a byte order mark": "\ufeff{}",
    "a byte order mark behind": "{}\ufeff",
    "zero-width spaces": "{}\u200b\u2060",
    "leading line ends": "\n\n{}",
    "leading spaces": "   {}",
}
WITHIN = {
    "blanks at the ends of lines": " \n",
    "no-break spaces at the ends of lines": "\u00a0\n",
    "carriage returns": "\r\n",
    "blank lines": "\n\n",
    "lines of blanks": "\n  \t\n",
}


def split(tmp_path, texts, **options):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = SourceConfig(name="a", kind="files", path=str(tmp_path / "a.jsonl"))
    config = DataConfig(sources=(source,), quality=QualityConfig(profile="none"), workers=1, **options)
    for name in ("documents", "splits"):
        (tmp_path / name).mkdir()
    build_documents(config, take_inventory(config), tmp_path / "documents", silent)
    summary = build_splits(config, tmp_path / "documents", tmp_path / "splits", silent)
    kept = [
        {document.text for document in read_split(tmp_path / "documents", tmp_path / "splits", one)}
        for one in ("train", "validation")
    ]
    return summary, *kept


def test_two_hundred_texts_with_and_without_a_line_end_are_two_hundred(tmp_path):
    texts = [f"Text number {i} of the mill and river." for i in range(200)]
    both = [text + end for text in texts for end in ("", "\n")]
    summary, train, validation = split(tmp_path, both, validation_fraction=0.2)
    assert (summary["documents"], summary["duplicates"]) == (200, 200)
    assert train | validation == set(texts)
    assert train.isdisjoint(validation)


@pytest.mark.parametrize("form", ENDS.values(), ids=ENDS.keys())
def test_white_space_at_the_ends_makes_no_other_text(form):
    text = "\n".join(LINES)
    assert content_hash(form.format(text)) == content_hash(text)


@pytest.mark.parametrize("line_end", WITHIN.values(), ids=WITHIN.keys())
def test_blanks_at_the_ends_of_lines_and_blank_lines_make_no_other_text(line_end):
    text = line_end.join(LINES).replace("\r\n", "\n")  # documents have new lines alone
    assert content_hash(text) == content_hash("\n".join(LINES))


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b", "a  b"), ("if x:\n  y", "if x:\ny"), ("a\nb", "a b"), ("a\nb", "ab"), ("a", "a."), ("", "0")],
)
def test_what_stands_inside_a_line_counts(one, other):
    assert content_hash(one) != content_hash(other)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(st.sampled_from("ab.\n中é\u0e01\x0e" + WHITE_SPACE), max_size=150), max_size=5))
def test_the_compiled_form_is_that_of_plain_python(texts):
    array = pa.array(["x", *texts, "y"], pa.large_string())
    assert canonical_texts(array).to_pylist() == [canonical(text) for text in ["x", *texts, "y"]]
    assert canonical_texts(array.slice(1, len(texts))).to_pylist() == [canonical(text) for text in texts]


def test_lines_of_any_length_are_whole():
    draw = random.Random(0)
    texts = ["\n".join("x" * draw.randrange(200) + " " for _ in range(5)) for _ in range(50)]
    texts.append("y" * 1_000)
    assert canonical_texts(pa.array(texts, pa.large_string())).to_pylist() == list(map(canonical, texts))


def test_copies_that_are_kept_stay_on_one_side(tmp_path):
    forms = [*ENDS.values()]
    texts = [f"Text number {i} of the mill." for i in range(60)]
    summary, train, validation = split(
        tmp_path,
        [form.format(text) for text in texts for form in forms],
        exact_dedup=False,
        validation_fraction=0.3,
    )
    assert summary["documents"] == len(texts) * len(forms)
    assert {canonical(text) for text in train}.isdisjoint({canonical(text) for text in validation})


def test_copies_that_are_kept_are_held_out_together_where_nothing_else_is(tmp_path):
    texts = [f"Text {i}.{end}" for end in ("", "\n") for i in range(3)]
    for fraction in (1e-9, 1 - 1e-9):
        folder = tmp_path / str(fraction)
        folder.mkdir()
        summary, train, validation = split(
            folder, texts, exact_dedup=False, validation_fraction=fraction, shard_bytes=1
        )
        assert "draw" in summary["empty_split_remedy"]
        assert min(summary["train_documents"], summary["validation_documents"]) == 2
        assert {canonical(text) for text in train}.isdisjoint({canonical(text) for text in validation})


def test_copies_of_one_text_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match=r"expected at least 2 distinct documents, found 1\."):
        split(tmp_path, ["Text.", "Text.\n", " Text."], exact_dedup=False)


def test_the_white_space_is_all_that_python_knows():
    assert {c for c in map(chr, np.arange(0x110000)) if c.isspace()} <= set(WHITE_SPACE)
