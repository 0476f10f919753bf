"""Evaluation sets are read whole, or refused before anything is scored."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.config import EvaluationConfig, EvaluationSetConfig, parse
from lmcore.data.sources import digest_of
from lmcore.errors import ConfigError, DataError
from lmcore.eval.sets import Pair, check_sets, find_sets, read_pairs, read_texts

ROWS = [
    {"UID": "number", "sentence_good": "The mills turn.", "sentence_bad": "The mills turns."},
    {"UID": "number", "sentence_good": "A mill turns.", "sentence_bad": "A mill turn."},
    {"UID": "order", "sentence_good": "e\u0301t\u00e9 is over.", "sentence_bad": "Is over e\u0301t\u00e9."},
]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def pairs_of(path, **fields):
    wanted = EvaluationSetConfig(name="mini", kind="minimal_pairs", path=str(path), **fields)
    return read_pairs(wanted, find_sets(EvaluationConfig(sets=(wanted,))))


def texts_of(path, **fields):
    wanted = EvaluationSetConfig(name="texts", path=str(path), **fields)
    return read_texts(wanted, find_sets(EvaluationConfig(sets=(wanted,))))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_pairs_are_read_with_their_groups_and_normalised(tmp_path, suffix):
    path = write(tmp_path / f"pairs{suffix}", ROWS)
    found = pairs_of(path, group_field="UID")
    assert found[0] == Pair("The mills turn.", "The mills turns.", "number")
    assert found[2] == Pair("\u00e9t\u00e9 is over.", "Is over \u00e9t\u00e9.", "order")
    assert pairs_of(path, max_pairs=2) == [
        Pair(row["sentence_good"], row["sentence_bad"]) for row in ROWS[:2]
    ]


def test_texts_are_whole_ones_up_to_a_limit_and_at_least_one(tmp_path):
    path = write(tmp_path / "texts.jsonl", [{"text": text} for text in ("abc", "", "de", "f")])
    assert texts_of(path) == ["abc", "de", "f"]
    assert texts_of(path, max_bytes=5) == ["abc", "de"]
    assert texts_of(path, max_bytes=1) == ["abc"]


def test_a_set_is_known_by_what_its_files_hold(tmp_path):
    (tmp_path / "other").mkdir()
    rows = [{"text": "abc"}]

    def digest(path):
        sets = (EvaluationSetConfig(name="texts", path=str(path)),)
        return digest_of(find_sets(EvaluationConfig(sets=sets)))

    first = digest(write(tmp_path / "texts.jsonl", rows))
    assert digest(write(tmp_path / "other" / "texts.jsonl", rows)) == first
    assert digest(write(tmp_path / "texts.jsonl", [*rows, *rows])) != first


@pytest.mark.parametrize(
    ("name", "rows", "fields", "told"),
    [
        (
            "a.parquet",
            ROWS,
            {"good_field": "good"},
            "no column 'good': found UID, .*Name columns of the file",
        ),
        ("a.jsonl", ROWS, {"good_field": "good"}, "expected every record.*found a.jsonl record 0: no field"),
        ("a.jsonl", ROWS, {"group_field": "of"}, "field 'of' names no record"),
        ("a.jsonl", [], {}, "'mini' holds no pair: expected at least one pair, found none"),
        ("a.parquet", [*ROWS[:1], ROWS[1] | {"sentence_bad": ""}], {}, "empty sentence.*record 1 of a.par"),
        ("a.jsonl", [*ROWS, {"sentence_good": "cut"}], {}, "record 3: no field 'sentence_bad'"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(tmp_path, name, rows, fields, told):
    path = write(tmp_path / name, rows)
    with pytest.raises(DataError, match=told):
        pairs_of(path, **fields)


def test_files_that_hold_no_pairs_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("The mill turns.")
    with pytest.raises(DataError, match=r"cannot hold pairs: expected \.jsonl, .* found a\.txt"):
        pairs_of(tmp_path / "a.txt")


def test_a_set_without_text_or_files_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    sets = (EvaluationSetConfig(name="none", path=str(tmp_path / "empty.txt")),)
    config = EvaluationConfig(sets=sets)
    with pytest.raises(DataError, match="'none' holds no text: expected at least one text"):
        check_sets(config, find_sets(config))
    with pytest.raises(DataError, match="source 'texts' matches no file"):
        texts_of(tmp_path / "elsewhere.txt")


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ([{"name": "a", "path": "x"}, {"name": "a", "path": "y"}], "needs a name of its own"),
        ([{"name": "a b", "path": "x"}], "sets.0.name"),
        ([{"name": "a", "path": ""}], "sets.0.path"),
        ([{"name": "a"}], "sets.0.path"),
        ([{"name": "a", "path": "x", "max_pairs": 3}], "'text' takes no max_pairs; set max_bytes instead"),
        ([{"name": "a", "path": "x", "kind": "minimal_pairs", "max_bytes": 3}], "takes no max_bytes"),
        ([{"name": "a", "path": "x", "kind": "minimal_pairs", "bad_field": "sentence_good"}], "must differ"),
        ([{"name": "a", "path": "s3://u:p@host/x"}], "password or key"),
    ],
)
def test_settings_that_make_no_set_are_refused(sets, told):
    with pytest.raises(ConfigError, match=told):
        parse(EvaluationConfig, {"sets": sets}, where="test")
