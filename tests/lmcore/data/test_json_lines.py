"""What is read fast is what orjson reads; what is not plain is left alone."""

import json

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmcore.data.json_lines import read_block

VALUES = (
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text() | st.lists(st.text())
)
RECORDS = st.dictionaries(st.sampled_from(["text", "t", "texts", "name", "\u00e9"]), VALUES)


def text_by_orjson(line):
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record.get("text") if isinstance(record, dict) else None


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.booleans())
def test_plain_lines_are_all_read(texts, ascii_only):
    lines = [json.dumps({"n": 1.5, "text": text, "ok": True}, ensure_ascii=ascii_only) for text in texts]
    found = list(read_block("".join(line + "\n" for line in lines).encode(), "text"))
    assert [line.text for line in found] == [text.encode() for text in texts]
    assert [line.num_chars for line in found] == [len(text) for text in texts]
    assert [line.end - line.start for line in found] == [len(line.encode()) for line in lines]


@settings(deadline=None, max_examples=500)
@given(
    st.lists(
        RECORDS.map(lambda record: json.dumps(record).encode())
        | st.binary(max_size=40)
        | st.text('{}":,\\ tex0du8\u00e9\U0001f600', max_size=30).map(lambda text: text.encode("utf-8")),
        max_size=5,
    )
)
@example(
    [
        b'{"text":"a","text":"b"}',
        b'{"text":"\\ud800"}',
        b'{"text":"\\ud83d\\ude00"}',
        b'{"text":"\xed\xa0\x80"}',
    ]
)
@example(
    [
        b'{"text":"a"} x',
        b'{"text":"\xc0\x80"}',
        b'{"text":"a","n":01}',
        b'{"text":"a","n":1.}',
        b'{"text":"a"',
    ]
)
@example([b'{"text":"\xf4\x90\x80\x80"}', b'{"text":"a","n":nul}', b'{"text":"a\tb"}', b'{"text":"a",}', b""])
def test_what_is_taken_is_what_orjson_takes(lines):
    lines = [line.replace(b"\n", b"") for line in lines]
    found = list(read_block(b"\n".join([*lines, b""]), "text"))
    assert len(found) == len(lines)
    for line, one in zip(lines, found, strict=True):
        if one.text is not None:
            assert one.text.decode() == text_by_orjson(line)
            assert one.num_chars == len(one.text.decode())
