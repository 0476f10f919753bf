"""Fields in fields, and ids of any type: the same in JSON lines and in Parquet."""

import datetime
import decimal
import hashlib
import json
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import LimitsConfig, SourceConfig
from lmcore.data.fields import field_of
from lmcore.data.record import BadRecordError
from lmcore.data.records import Quarantined, read_records, text_of
from lmcore.data.sources import SourceFile
from lmcore.errors import DataError

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.fixture
def read(tmp_path):
    def read(name, content, **options):
        path = tmp_path / name
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in content))
        raw = path.read_bytes()
        file = SourceFile("s", str(path), name, len(raw), hashlib.sha256(raw).hexdigest())
        source = SourceConfig(name="s", kind="files", path=str(path), **options)
        found = list(read_records(file, source, LimitsConfig()))
        fast = list(read_records(file, source, LimitsConfig(), as_bytes=True))
        assert [getattr(one, "reason", None) or text_of(one) for one in fast] == [
            getattr(one, "reason", None) or text_of(one) for one in found
        ]
        return found

    return read


def in_both(read, records, **options):
    """What both readers give, which must be one: texts and ids, None for what is quarantined."""
    results = []
    for name, content in (("a.jsonl", records), ("a.parquet", pa.Table.from_pylist(records))):
        found = read(name, content, **options)
        results.append([None if isinstance(one, Quarantined) else (text_of(one), one.id) for one in found])
    assert results[0] == results[1]
    return results[0]


def test_a_dotted_name_leads_into_fields(read):
    records = [
        {"meta": {"text": "deep", "id": 7, "more": {"body": "deeper"}}, "n": 1},
        {"meta": {"text": "second", "id": 8, "more": {"body": "x"}}, "n": 2},
    ]
    assert in_both(read, records, text_field="meta.text", id_field="meta.id") == [
        ("deep", "7"),
        ("second", "8"),
    ]
    assert in_both(read, records, text_field="meta.more.body", id_field="n") == [("deeper", "1"), ("x", "2")]


def test_a_field_of_the_whole_name_wins_at_every_level(read):
    records = [{"meta.text": "whole", "meta": {"text": "in it"}, "a": {"b.c": "dotted", "b": {"c": "no"}}}]
    assert in_both(read, records, text_field="meta.text") == [("whole", "")]
    assert in_both(read, records, text_field="a.b.c") == [("dotted", "")]
    assert in_both(read, [{"a.b": {"c": "parted"}, "a": {"x": "1"}}], text_field="a.b.c") == [("parted", "")]


def test_a_record_without_the_field_in_between_is_set_aside(read):
    records = [{"meta": {"text": "deep"}}, {"meta": None}, {"meta": {"text": None}}, {"meta": {"text": "b"}}]
    assert in_both(read, records, text_field="meta.text") == [("deep", ""), None, None, ("b", "")]
    *_, bad = read("a.jsonl", [{"meta": {"body": "x", "n": 1}}], text_field="meta.text")
    assert bad.reason == "no field 'meta.text': 'meta' is an object of 'body', 'n'"
    *_, bad = read("a.jsonl", [{"meta": 5}], text_field="meta.text")
    assert bad.reason == "no field 'meta.text': 'meta' is no object but int"


def test_numbers_lead_into_lists_of_json(read):
    record = {"messages": [{"content": "first"}, {"content": "second"}], "id": [["x", "y"]]}
    (found,) = read("a.jsonl", [record], text_field="messages.1.content", id_field="id.0.1")
    assert (found.text, found.id) == ("second", "y")
    (bad,) = read("a.jsonl", [record], text_field="messages.2.content")
    assert bad.reason == "no field 'messages.2.content': 'messages' is a list of 2"


def test_a_list_or_an_object_is_no_text_and_the_reason_says_what_to_name(read):
    for name in ("a.jsonl", "a.parquet"):
        record = {"paragraphs": ["a", "b"], "body": {"raw": "x"}}
        content = [record] if name == "a.jsonl" else pa.Table.from_pylist([record])
        (bad,) = read(name, content, text_field="paragraphs")
        assert "not text but list of 2; join its texts before" in bad.reason
        (bad,) = read(name, content, text_field="body")
        assert bad.reason == "field 'body' is not text but dict; name a field in it, as body.raw"


def test_a_wrong_name_in_parquet_is_refused_with_all_that_is_there(read):
    table = pa.Table.from_pylist([{"meta": {"body": "x", "in": {"n": 1}}, "id": 1}])
    for name in ("meta.text", "text", "meta.body.x", "id.x"):
        with pytest.raises(DataError, match=r"meta\.body, meta\.in\.n, id"):
            read("a.parquet", table, text_field=name)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab.01"), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "a.b", "0"]), JSON_VALUES, max_size=4), st.data())
def test_a_name_made_of_keys_without_dots_leads_where_they_lead(record, data):
    value, keys = record, []
    while isinstance(value, (dict, list)) and value:
        key = data.draw(st.sampled_from(list(value if isinstance(value, dict) else range(len(value)))))
        value = value[key]
        keys.append(str(key))
        if data.draw(st.booleans()):
            break
    name = ".".join(keys)
    if not any("." in key for key in every_key(record)) and name:
        assert field_of(record, name) == value
        with pytest.raises(BadRecordError):
            field_of(record, f"{name}.nothing")


def every_key(value):
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from every_key(inner)


# --- ids -------------------------------------------------------------------------------------------

IDS = [
    (7, "7"),
    (-(2**63), str(-(2**63))),
    (1.0, "1"),
    (-0.0, "0"),
    (2.0**52, str(2**52)),
    ("", None),
    ("a/b", "a/b"),
    ("\u6c34", "\u6c34"),
    (0.5, None),
    (1e300, None),
    (True, None),
    (None, None),
    ({"a": 1}, None),
    ([1, 2], None),
]


@pytest.mark.parametrize(("value", "expected"), IDS)
def test_an_id_of_any_type_is_one_text_in_both_formats_or_is_set_aside(read, value, expected):
    (found,) = in_both(read, [{"text": "t", "id": value}], id_field="id")
    assert found == (expected and ("t", expected))


def test_integers_of_any_size_are_ids_in_full(read):
    for value in (2**64, 10**40, -(10**25)):
        for record in ({"id": value}, {"in": {"id": value}}):
            (found,) = read(
                "a.jsonl", [{"text": "t", **record}], id_field="id" if "id" in record else "in.id"
            )
            assert found.id == str(value)
    (found,) = read(
        "a.parquet", pa.table({"text": ["t"], "id": pa.array([2**64 - 1], pa.uint64())}), id_field="id"
    )
    assert found.id == str(2**64 - 1)


PARQUET_IDS = [
    (pa.array([UUID.bytes], pa.binary(16)), str(UUID)),
    (pa.array([UUID.bytes], pa.uuid()), str(UUID)),
    (pa.array([b"ab"], pa.binary(2)), "0x6162"),
    (pa.array([b"a\xff"], pa.binary()), "0x61ff"),
    (pa.array([b"ab"], pa.large_binary()), "ab"),
    (pa.array([b"a"], pa.binary()).dictionary_encode(), "a"),
    (pa.array(["v"], pa.string_view()), "v"),
    (pa.array([decimal.Decimal("1.500")], pa.decimal128(10, 3)), "1.5"),
    (pa.array([decimal.Decimal("100")], pa.decimal256(60, 0)), "100"),
    (pa.array([datetime.date(2020, 1, 2)]), "2020-01-02"),
    (pa.array([1], pa.int64()).cast(pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    (pa.array([0], pa.int64()).cast(pa.timestamp("s", "Europe/Berlin")), "1970-01-01T00:00:00.000Z"),
    (pa.array([1], pa.int64()).cast(pa.time64("ns")), "00:00:00.000000001"),
    (pa.array([3.0], pa.float32()), "3"),
    (pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), None),
    (pa.array([2**62], pa.int64()).cast(pa.timestamp("us")), None),
    (pa.array([2**62], pa.int64()).cast(pa.duration("ns")), None),
    (pa.array([None], pa.null()), None),
    (pa.array([[1]]), None),
    (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), None),
    (pa.array([float("nan")]), None),
]


@pytest.mark.parametrize(
    ("column", "expected"), PARQUET_IDS, ids=lambda value: str(getattr(value, "type", ""))
)
def test_an_id_of_any_type_of_arrow_is_a_text_or_is_set_aside(read, column, expected):
    text = pa.array(["t"] * len(column))
    nested = pa.StructArray.from_arrays([column], names=["id"])
    for table, name in (
        (pa.table({"text": text, "id": column}), "id"),
        (pa.table({"text": text, "m": nested}), "m.id"),
    ):
        (found,) = read("a.parquet", table, id_field=name)
        if expected is None:
            assert found.reason.startswith(f"field '{name}' names no record")
        else:
            assert (found.text, found.id) == ("t", expected)


@pytest.mark.parametrize(
    ("column", "expected"), PARQUET_IDS, ids=lambda value: str(getattr(value, "type", ""))
)
def test_a_text_column_of_any_type_of_arrow_is_text_or_is_set_aside(read, column, expected):
    (found,) = read("a.parquet", pa.table({"text": column}))
    is_text = any(name in str(column.type) for name in ("string", "binary"))
    assert isinstance(found, Quarantined) or is_text


def test_values_that_stand_in_no_struct_are_null(read):
    table = pa.table({"m": pa.array([{"text": "a"}, None, {"text": "b"}])})
    first, bad, last = read("a.parquet", table, text_field="m.text")
    assert (first.text, last.text) == ("a", "b")
    assert bad.reason == "field 'm.text' is not text but NoneType"
