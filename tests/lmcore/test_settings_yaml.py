"""A value means the same in a file and behind --set, and what is written is read again."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import load_recipe
from lmcore.errors import ConfigError
from lmcore.settings_yaml import (
    SettingsError,
    decode_settings,
    dump_settings,
    read_setting,
    read_settings,
)

REFUSED = "refused"
SOURCES = "data: {sources: [{name: a, kind: python_stdlib}]}\n"

SCALARS = [
    *(("", None), ("~", None), ("null", None), ("NULL", None), ("nul", "nul")),
    *(("true", True), ("False", False), ("TRUE", True), ("tRUE", "tRUE")),
    *(("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("y", "y"), ("=", "=")),
    *(("0", 0), ("-0", 0), ("100", 100), ("+12", 12), ("-3", -3), ("0x1F", 31), ("1_000", 1000)),
    *(("1e3", 1000.0), ("1E3", 1000.0), ("1e-3", 0.001), ("1.5e+2", 150.0), (".5", 0.5), ("5.", 5.0)),
    *(("1_000.5", 1000.5), ("0.0100", 0.01), ("00.5", 0.5), ("-.inf", -math.inf), (".Inf", math.inf)),
    *((text, REFUSED) for text in ("0100", "08", "00", "-010", "+07", "0o17", "0b11", "-0x1f", "0_1", "007")),
    *((text, text) for text in ("1:30", "190:20:30.15", "12:30:45", "2024-01-01", "2024-13-45", "1__0")),
    *((text, text) for text in ("2001-12-14t21:59:43Z", "1e", "1.2.3", "0x", "0xg", "e3", ".", "_1")),
    *((f'"{text}"', text) for text in ("123", "0100", "1e3", "yes", "null", "", "1:30", "# a", "a: b")),
    *((f"'{text}'", text) for text in ("123", "true", "*.jsonl", "~")),
    *((r'"class A:\n"', "class A:\n"), (r'"\t\"é\u00e9"', '\t"éé'), (r"'a\n'", r"a\n"), ("'it''s'", "it's")),
    *(
        ("[a, b]", ["a", "b"]),
        ("[1, '1', 1e1]", [1, "1", 10.0]),
        ("{a: 1}", {"a": 1}),
        ("[]", []),
        ("{}", {}),
    ),
    *(("{no: 1, on: 2}", {"no": 1, "on": 2}), ("[0100]", REFUSED), ("{a: 1, a: 2}", REFUSED)),
    *(
        (text, REFUSED)
        for text in ('"open', "'open", "[a, b", "{a: 1", '"a" b', '"\\q"', "!!python/name:os.x")
    ),
    *(("!!str 123", "123"), ("!!int '0100'", 100), ("!!binary aGk=", REFUSED), ("!!float abc", REFUSED)),
    *((f"{'9' * 5000}", REFUSED), ("[" * 5000, REFUSED)),
]


def value_of(read, text):
    try:
        return read(text)
    except SettingsError:
        return REFUSED


def in_file(text):
    return read_settings(f"key: {text}\n")["key"]


@pytest.mark.parametrize(("text", "expected"), SCALARS, ids=[text[:24] or "empty" for text, _ in SCALARS])
def test_a_value_is_the_same_in_a_file_and_behind_set(text, expected):
    found = value_of(in_file, text), value_of(read_setting, text)
    assert found == (expected, expected)
    assert {type(value) for value in found} == {type(expected)}


@given(st.one_of(st.text(), st.from_regex(r"[-+0-9_.:eExXoObBaftn]{1,8}", fullmatch=True)))
def test_no_text_changes_when_it_is_written_and_read(text):
    written = dump_settings({"a": text, "b": [text]})
    try:
        old = yaml.safe_load(written)
    except yaml.YAMLError:  # characters that no YAML can hold are escaped: nothing may be refused
        pytest.fail(written)
    assert read_settings(written) == old == {"a": text, "b": [text]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False), st.lists, max_leaves=5
    )
)
def test_no_number_changes_when_it_is_written_and_read(value):
    written = dump_settings([value])
    assert read_settings(written) == yaml.safe_load(written) == [value]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: 1\nb:\n\tc: 2\n", "line 3, column 1; indent by spaces"),
        ("a: 1\nb: 0100\n", r"'0100'.*write 100 .*\"0100\" at line 2, column 4"),
        ("a: 0o17\n", r"write 15 .*line 1"),
        ("a: 0b101\n", r"write 5 .*line 1"),
        ("a: -010\n", r"write -10 .*line 1"),
        ("a: 1\nb: {c: 2, c: 3}\n", r"'c' comes twice at line 2, column 11"),
        ("a: &x [*x]\n", "refers to what it is itself a part of"),
        ("a: !!binary aGk=\n", r"tag '!!binary'"),
    ],
)
def test_the_place_and_the_remedy_are_named(text, hint):
    with pytest.raises(SettingsError, match=hint):
        read_settings(text)


@pytest.mark.parametrize(
    "link", ["[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]", "{{<<: [{0}, {0}, {0}, {0}]}}"]
)
def test_a_few_lines_cannot_stand_for_billions_of_values(link):
    first = "a0: &a0 {x: 1}\n"
    bomb = first + "".join(f"a{n + 1}: &a{n + 1} {link.format(f'*a{n}')}\n" for n in range(30))
    with pytest.raises(SettingsError, match="aliases make more than"):
        read_settings(bomb)


def test_a_few_aliases_and_merges_are_read():
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\n"
    assert read_settings(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_ends_of_lines_of_any_editor_are_read(encoding, end):
    content = f"a: é{end}b:{end}  c: 2{end}".encode(encoding)
    assert read_settings(decode_settings(content)) == {"a": "é", "b": {"c": 2}}


def test_another_encoding_is_refused_with_its_line():
    with pytest.raises(SettingsError, match=r"line 2; save it as UTF-8"):
        decode_settings("a: 1\nb: é\n".encode("latin-1"))


@pytest.mark.parametrize("text", ["*.jsonl", "%20", "@x", "`a`", "data/*.txt", "def f(x): {", "a: b: c"])
def test_behind_set_what_begins_as_no_quoted_text_needs_no_quotes(text):
    assert read_setting(text) == text


@pytest.mark.parametrize("text", ["# all", "a # b", "'a' # b", "[a] # b", "a\nb", "&a", "def f(x):"])
def test_behind_set_nothing_is_passed_over(text):
    with pytest.raises(SettingsError, match="quotes"):
        read_setting(text)


# --- in a recipe -----------------------------------------------------------------------------------


def load(tmp_path, text="", *overrides):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(SOURCES + text)
    return load_recipe(recipe, overrides)


@pytest.mark.parametrize("value", ["1e3", "1000", "1_000", "1000.0", "+1000", "0x3e8"])
def test_a_number_of_steps_by_either_way(tmp_path, value):
    steps = load(tmp_path, f"train: {{steps: {value}}}\n").train.steps
    assert steps == load(tmp_path, "", f"train.steps={value}").train.steps == 1000


@pytest.mark.parametrize(
    "value", ["0100", "1:30", "0o17", "yes", "2024-01-01", "1.5", "1e400", ".inf", "null", "[1]"]
)
def test_what_is_no_plain_number_is_no_number_of_steps(tmp_path, value):
    for text, overrides in ((f"train: {{steps: {value}}}\n", ()), ("", (f"train.steps={value}",))):
        with pytest.raises(ConfigError):
            load(tmp_path, text, *overrides)


def test_quoted_texts_reach_the_settings_as_yaml_reads_them(tmp_path):
    recipe = load(
        tmp_path,
        "evaluation: {prompts: [a, b, c]}\n",
        r'evaluation.prompts.0="class A:\n"',
        'evaluation.prompts.1="123"',
        "evaluation.prompts.2='true'",
        "data.sources.0.kind=files",
        'data.sources.0.path="data/*.jsonl"',
    )
    assert recipe.evaluation.prompts == ("class A:\n", "123", "true")
    assert recipe.data.sources[0].path == "data/*.jsonl"
    assert load(tmp_path, "", 'evaluation.prompts=[a, "1", "x: y"]').evaluation.prompts == ("a", "1", "x: y")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("123", r"looks like a number needs quotes: \"123\", or --set 'evaluation.prompts.0=\"123\"'"),
        ("1e3", "looks like a number needs quotes"),
        ("true", r"looks like true or false needs quotes: \"true\""),
        ("class A: pass", r"for a table, which needs \{\} .*quotes"),
        ("[a, b]", "looks like a list needs quotes"),
        ("", r"an empty text is \"\""),
        ("# a", "takes all of it for a comment"),
        ("0100", "write 100 if that is meant"),
        ('"open', "cannot be read"),
    ],
)
def test_a_text_that_needs_quotes_is_told_so(tmp_path, value, hint):
    with pytest.raises(ConfigError, match=hint):
        load(tmp_path, "evaluation: {prompts: [a]}\n", f"evaluation.prompts.0={value}")
