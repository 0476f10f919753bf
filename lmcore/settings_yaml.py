"""YAML of recipes and of ``--set``: one reader, by the core schema of YAML 1.2, and a writer that agrees.

PyYAML reads YAML 1.1, where ``0100`` is 64, ``1:30`` is 90, ``no`` is false and ``1e3`` is a text. Here a
plain scalar means what YAML 1.2 says (https://yaml.org/spec/1.2.2, section 10.3): ``1:30``, ``no`` and
``2024-01-01`` are texts, ``1e3`` is a number. A number that the two versions read differently is refused.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

MAX_NODES = 100_000  # aliases counted each time that they are used
_CORE = "tag:yaml.org,2002:"
_AMBIGUOUS = "!ambiguous"
_QUOTE = 'put it into quotes if it is a text: "{}"'

# The first that a plain scalar matches says what it is. Digits may be grouped by `_`, as in YAML 1.1.
_RESOLVERS: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (_AMBIGUOUS, r"[-+]?0[0-9_]+|[-+]?0o[0-7_]+|[-+]?0b[01_]+|[-+]0x[0-9a-fA-F_]+", "-+0"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|\d+(?:_\d+)*(?:\.\d*)?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


class SettingsError(ValueError):
    """A text that is no YAML, or that means different things to different readers."""


def _add_resolvers(kind: Any) -> None:
    for name, pattern, firsts in _RESOLVERS:
        tag = name if name == _AMBIGUOUS else _CORE + name
        starts = ["" if first == "\0" else first for first in firsts]
        kind.add_implicit_resolver(tag, re.compile(rf"(?:{pattern})\Z", re.ASCII), starts)


class _Loader(yaml.SafeLoader):
    """Builds plain values alone, and refuses a key that comes twice: YAML silently takes the last."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as its parent has it
    yaml_constructors: dict[Any, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key is not a word", key)
            if key.value in seen:
                raise _problem(f"the key {key.value!r} comes twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    try:
        return int(text, 16 if text.startswith("0x") else 10)
    except ValueError:
        raise _problem("a number with too many digits, or none", node) from None


def _float(loader: Any, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    try:
        return float(re.sub(r"\.(inf|nan)$", r"\1", text))
    except ValueError:
        raise _problem("no number", node) from None


def _bool(loader: Any, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node)).lower()
    if text not in ("true", "false"):
        raise _problem("neither true nor false", node)
    return text == "true"


def _ambiguous(_loader: Any, node: yaml.ScalarNode) -> Any:
    digits = node.value.replace("_", "")
    sign, digits = ("-" if digits[0] == "-" else ""), digits.lstrip("-+")
    base = {"o": 8, "b": 2, "x": 16}.get(digits[1])
    plain = int(digits[2:], base) if base else digits.lstrip("0") or "0"
    shown = f"{sign}{plain}" if len(str(plain)) < len(digits) + 8 else "the number"
    raise _problem(
        f"{node.value!r} is one number to some readers of YAML and another, or a text, to others: "
        f"write {shown} if that is meant, or {_QUOTE.format(node.value)}",
        node,
    )


def _unknown_tag(_loader: Any, node: yaml.Node) -> Any:
    raise _problem(f"the tag {node.tag.replace(_CORE, '!!')!r} is not known here", node)


for _name, _build in {
    "null": yaml.SafeLoader.construct_yaml_null,
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": yaml.SafeLoader.construct_yaml_str,
    "seq": yaml.SafeLoader.construct_yaml_seq,
    "map": yaml.SafeLoader.construct_yaml_map,
}.items():
    _Loader.add_constructor(_CORE + _name, _build)
_Loader.add_constructor(_AMBIGUOUS, _ambiguous)
_Loader.yaml_constructors[None] = _unknown_tag
_add_resolvers(_Loader)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that this reader, or one of YAML 1.1, would take for something else."""


_add_resolvers(_Dumper)


def read_settings(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        SettingsError: it is not YAML, or holds what cannot be read safely; names the line and column.
    """
    return _read(text)[0]


def read_setting(text: str) -> Any:
    """Return the value of the text behind ``--set a.b=``: what YAML reads there.

    What begins as no quoted text, list or table and is no YAML is a text as it stands, such as ``*.txt``.

    Raises:
        SettingsError: it begins as a quoted text, a list or a table and does not end as one; it is a list or
            table without brackets; or YAML would pass over a part of it, or fold its lines.
    """
    try:
        value, node = _read(text)
    except SettingsError as error:
        of_a_value = isinstance(error.__cause__, yaml.constructor.ConstructorError)
        if of_a_value or text.lstrip()[:1] in tuple("\"'[{|>"):
            raise
        return text
    if problem := _misread(text, node):
        raise SettingsError(f"{problem}; {_QUOTE.format('...')}")
    return value


def _misread(text: str, node: yaml.Node | None) -> str:
    """Say what could not stand behind a key in one line of a file, or would lose something there."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None and not node.value):
        return "YAML takes all of it for a comment or a mark" if text.strip() else ""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        kind, brackets = ("table", "{}") if isinstance(node, yaml.MappingNode) else ("list", "[]")
        return f"YAML takes it for a {kind}, which needs {brackets} around it here"
    style = getattr(node, "style", None)
    if style not in ("|", ">") and text[node.end_mark.index :].strip():
        return "YAML takes its end for a comment"
    if isinstance(node, yaml.ScalarNode) and style is None and "\n" in text.strip():
        return "YAML makes one line of its lines, which need \\n between them"
    return ""


def dump_settings(values: Any, *, ascii_only: bool = False) -> str:
    """Write ``values`` as YAML that this reader and those of YAML 1.1 read alike."""
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only)
    # What YAML and Python take for more ends of lines is escaped, as all that is not ASCII then is.
    if not ascii_only and re.search(r"[\x85\u2028\u2029\ufeff]", text):
        return dump_settings(values, ascii_only=True)
    return text


def decode_settings(content: bytes) -> str:
    """Decode a file of settings: UTF-8, or UTF-16 and UTF-32 that begin with their mark (BOM).

    Raises:
        SettingsError: it is of another encoding.
    """
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\x00\x00", "utf-32"),
        (b"\x00\x00\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
        (b"", "utf-8"),
    ):
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                line = content[: error.start].count(b"\n") + 1
                raise SettingsError(
                    f"bytes that are no {encoding} at line {line}; save it as UTF-8"
                ) from None
    raise AssertionError("every content begins with nothing")


def _read(text: str) -> tuple[Any, yaml.Node | None]:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None
            _check_size(node)
            return loader.construct_document(node), node
        finally:
            loader.dispose()
    except RecursionError:
        raise SettingsError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(_place(error)) from error


def _check_size(root: yaml.Node) -> None:
    """Refuse aliases that refer to themselves, or of which a few lines stand for billions of values."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise _problem("an alias refers to what it is itself a part of", node)
        if not known:
            sizes[id(node)] = None
            known = sizes[id(node)] = 1 + sum(size(child) for child in _children(node))
            if known > MAX_NODES:
                raise _problem(f"aliases make more than {MAX_NODES:,} values of it", node)
        return known

    size(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _problem(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def _place(error: Exception) -> str:
    """The problem in one line, with the line and column that it is at."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None:
        return " ".join(str(error).replace('"<unicode string>", ', "").split())
    mark = error.problem_mark or error.context_mark
    at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    tab = "; indent by spaces" if "'\\t'" in error.problem else ""
    return " ".join(f"{error.problem}{at}{tab}".split())
