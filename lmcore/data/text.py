"""Clean text: one spelling for what reads the same, and at will no traces of a wrong encoding.

Order matters. Mojibake is repaired first, because control characters are part of it. Controls go before NFC,
because taking one out can bring a letter next to its accent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache

from lmcore.config import TextConfig

_CONTROLS = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)]
_ASCII_CONTROLS = bytes(code for code in _CONTROLS if code < 0x80)
# U+0080 to U+009F. Beginning with one certain byte, it is looked for five times as fast as a run of them.
_OTHER_CONTROL = re.compile(rb"\xc2[\x80-\x9f]")
# Carriage return, vertical tab, form feed and next line (UAX 14); the last two end a line in files of old.
_OTHER_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85]")
_BYTE_ORDER_MARK = "\ufeff"

NO_WIDTH = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_JOINERS = "\u200c\u200d"
_NO_WIDTH_RUN = re.compile(f"[{NO_WIDTH}]+")
# Letters, marks and emoji of scripts that joiners are made for: not Latin, nor spaces and punctuation.
_JOINED = re.compile("[^\0-\u036f\u1e00-\u1eff\u2000-\u206f\u3000-\u303f\\s]")
# After a virama (Unicode's combining class 9) a joiner has a meaning at the end of a word too.
_VIRAMA = 9


def clean(text: str, config: TextConfig) -> str:
    """Return ``text`` normalised, after what ``config`` asks for; ``normalise`` alone by default."""
    if text.isascii():
        return normalise(text)
    if config.repair_mojibake:
        text = _repair(text)
    if config.drop_zero_width and any(character in text for character in NO_WIDTH):
        text = _NO_WIDTH_RUN.sub(_what_joins, text)
    return normalise(text)


def normalise(text: str) -> str:
    r"""Return ``text`` in NFC with ``\n`` line ends and no control characters but ``\t`` and ``\n``.

    Surrogate pairs are joined, lone ones become U+FFFD, and byte order marks at the start go. Idempotent.
    """
    if any(end in text for end in "\r\x0b\x0c\x85"):  # many times as fast as the expression
        text = _OTHER_LINE_END.sub("\n", text)
    if text.isascii():
        # bytes.translate runs at about 1 GB/s; a regular expression at a tenth of that.
        return text.encode("ascii").translate(None, _ASCII_CONTROLS).decode("ascii")
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:  # surrogates
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        raw = text.encode("utf-8")
    # On bytes, this takes a third of the time of an expression over characters.
    clean = raw.translate(None, _ASCII_CONTROLS)
    if _OTHER_CONTROL.search(clean):
        clean = _OTHER_CONTROL.sub(b"", clean)
    if len(clean) < len(raw):
        text = clean.decode("utf-8")
    text = text.lstrip(_BYTE_ORDER_MARK)
    return _change_lines(text, _may_change_in_nfc(), _in_nfc)


def _in_nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _change_lines(text: str, tell_tale: re.Pattern[str], change: Callable[[str], str]) -> str:
    """``change`` those lines of ``text`` in which ``tell_tale``, which holds no line end, is found."""
    parts, done = [], 0
    while found := tell_tale.search(text, done):
        start, end = text.rfind("\n", 0, found.start()) + 1, text.find("\n", found.start())
        end = end if end >= 0 else len(text)
        parts += text[done:start], change(text[start:end])
        done = end
    return "".join((*parts, text[done:])) if parts else text


@cache
def _may_change_in_nfc() -> re.Pattern[str]:
    """``changed_by_nfc``, looked for: five times as fast as the form is checked."""
    return re.compile(f"[{ranges(changed_by_nfc())}\U00010000-\U0010ffff]")


@cache
def changed_by_nfc() -> frozenset[int]:
    """Code points without which, and without any beyond U+FFFF, a text is in NFC.

    They are those that NFC replaces, those that it may put into another order, and those that it may join
    to the one before: marks, and the second letters of pairs that are one character composed. Those beyond
    U+FFFF are not looked at: `re` would look them up one range after another.
    """
    changes = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))  # Jamo are composed by arithmetic
    for code in range(0xC0, 0x10000):
        character = chr(code)
        parts = unicodedata.decomposition(character)
        if unicodedata.combining(character) or (
            parts and unicodedata.normalize("NFC", character) != character
        ):
            changes.add(code)
        if parts and not parts.startswith("<"):
            changes.update(int(part, 16) for part in parts.split()[1:])
    return frozenset(changes)


def ranges(codes: Iterable[int]) -> str:
    """The inside of a character class that holds ``codes``."""
    runs: list[list[int]] = []
    for code in sorted(codes):
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in runs)


# --- mojibake --------------------------------------------------------------------------------------


_ODD_BEFORE_SPACE = "ÃÂ"


def _repair(text: str) -> str:
    """Repair those lines of ``text`` that may hold mojibake, each alone: its neighbours may be good."""
    return _change_lines(text, _tell_tale(), fix_encoding)


def fix_encoding(line: str) -> str:
    """Repair a line that may hold mojibake."""
    import ftfy  # 0.1 s, for nothing in most commands

    return ftfy.fix_encoding(line)


def may_be_mojibake(text: str) -> bool:
    """Whether ``ftfy.fix_encoding`` could change ``text``; a no is certain, and costs a tenth of it."""
    return not text.isascii() and _tell_tale().search(text) is not None


@cache
def _tell_tale() -> re.Pattern[str]:
    """What every mojibake of UTF-8 holds: the bytes of one character, read in one of ftfy's encodings.

    That is the first byte of a sequence and its continuation, one of which may be lost or a space. ftfy acts
    only where two characters look odd beside each other, so a sequence without two in a row is none but for
    the two letters that it takes as odd before a space. It repairs what is left of C1 controls too.
    """
    firsts, following, branches = ("".join(parts) for parts in zip(*_families(), strict=True))
    # The two classes in front let the search run fast over what begins nothing.
    begins = f"[\x80-\x9f{_class(firsts)}]"
    return re.compile(
        f"{begins}(?:(?<=[\x80-\x9f])|(?=[ ?{_class(following)}])(?:(?<=[{_ODD_BEFORE_SPACE}]) {branches}))"
    )


def mojibake_marks() -> list[tuple[str, str]]:
    """What ``may_be_mojibake`` finds: a C1 control, or two characters, perhaps with spaces or ``?`` between.

    The two are in the first and in the second text of one of these pairs.
    """
    return [*((firsts, following) for firsts, following, _ in _families()), (_ODD_BEFORE_SPACE, " ")]


@cache
def _families() -> list[tuple[str, str, str]]:
    """``_family`` for encodings that are alike."""
    from ftfy.chardata import CHARMAP_ENCODINGS, UTF8_CLUES

    windows = [name for name in CHARMAP_ENCODINGS if name not in ("macroman", "cp437")]
    # Parts of a text are looked at with the letters of all encodings like Latin-1 together.
    clues = {name: value.replace("\x80-\xbf", "").replace(" ", "") for name, value in UTF8_CLUES.items()}
    return [
        _family(
            windows,
            clues["utf8_first_of_2"],
            clues["utf8_first_of_3"],
            clues["utf8_first_of_4"],
            clues["utf8_continuation"] + "\ufffd",
        ),
        _family(["macroman"]),
        _family(["cp437"]),
    ]


def _family(
    encodings: list[str], two: str = "", three: str = "", four: str = "", following: str = ""
) -> tuple[str, str, str]:
    """First letters of sequences in any of ``encodings``, their continuations, and an expression for both."""
    for name in encodings:
        two += bytes([0xC0, *range(0xC2, 0xE0)]).decode(name)
        three += bytes(range(0xE0, 0xF0)).decode(name)
        four += bytes(range(0xF0, 0xF5)).decode(name)
        following += bytes(range(0x80, 0xC0)).decode(name)
    any_of, more = _class(following), _class(following + two + three + four)
    lost = f"[ ?]{{1,2}}[{any_of}][{more}]"
    return (
        two + three + four,
        following,
        (
            f"|(?<=[{_class(two)}])[{any_of}]"
            f"|(?<=[{_class(three)}])(?:[{any_of}][{any_of} ?]|{lost})"
            f"|(?<=[{_class(four)}])(?:[{any_of}][{any_of} ?]{{2}}|{lost})"
        ),
    )


def _class(characters: str) -> str:
    return re.escape("".join(sorted(set(characters))))


# --- characters without width ----------------------------------------------------------------------


def _what_joins(run: re.Match[str]) -> str:
    """The first joiner of ``run`` if it stands where one is needed, else nothing."""
    joiner = next((character for character in run[0] if character in _JOINERS), "")
    before, after = run.string[run.start() - 1 : run.start()], run.string[run.end() : run.end() + 1]
    if joiner and _JOINED.match(before) and (_JOINED.match(after) or _is_virama(before)):
        return joiner
    return ""


def _is_virama(character: str) -> bool:
    return unicodedata.combining(character) == _VIRAMA
