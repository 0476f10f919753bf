"""Cut long texts where no token reaches across, so that pieces have the tokens of the whole.

Where a letter or a digit is followed by a character that is neither, every pattern of ``keeps_tokens`` ends
one token and begins another: a run of letters or digits ends there, nothing looks back, and what looks ahead
looks for white space behind white space. Letters are those of which every version of Unicode knows that they
are: ASCII, Cyrillic, Hiragana, Han and Hangul.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

PIECE_BYTES = 1 << 16
_LETTER = (
    rb"[A-Za-z0-9]|\xd0[\x90-\xbf]|\xd1[\x80-\x8f]|\xe3\x81[\x81-\xbf]"
    rb"|[\xe5-\xe8][\x80-\xbf]{2}|[\xeb\xec][\x80-\xbf]{2}"
)
_NO_LETTER = rb"[\0-\x2f\x3a-\x40\x5b-\x60\x7b-\x7f]|\xe3\x80[\x81\x82]|\xef\xbc[\x81\x8c]"
_CUT = re.compile(rb"(?:%s)(?=%s)" % (_LETTER, _NO_LETTER))
_WINDOWS = (1 << 8, 1 << 12)

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def keeps_tokens(content: dict[str, Any], patterns: tuple[str, ...]) -> bool:
    """Whether pieces have the tokens of the whole under the ``tokenizer.json`` that holds ``content``.

    Yes for the pattern of GPT-2, for ``patterns`` (those that are learned with) and Qwen's, with NFC or no
    normalizer, and no added token that is found in text.
    """
    if any(not token.get("special") for token in content.get("added_tokens") or ()):
        return False
    if (content.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return False
    splitter = content.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers") or [splitter]
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        return steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space")
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return False
    split, level = steps
    return (
        (split.get("pattern") or {}).get("Regex") in (*patterns, _QWEN)
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
        and not level.get("use_regex", True)
        and not level.get("add_prefix_space")
    )


def places(data: Any, start: int, end: int, most: int = PIECE_BYTES) -> Iterator[int]:
    """Where to cut bytes [start, end) of ``data``, which are UTF-8, into pieces of about ``most`` bytes.

    A piece is larger where there is no place to cut.
    """
    while end - start > most:
        place = _last_place(data, start + most // 2, start + most)
        if not place:
            found = _CUT.search(data, start + most, end)
            if found is None:
                return
            place = found.end()
        yield place
        start = place


def _last_place(data: Any, start: int, end: int) -> int:
    for window in (*_WINDOWS, end - start):
        last = 0
        for found in _CUT.finditer(data, max(start, end - window), end):
            last = found.end()
        if last:
            return last
    return 0


def inner_place(special: bytes) -> int:
    """Where to cut a special token, so that neither part is one; 0: nowhere."""
    found = _CUT.search(special)
    return found.end() if found else 0


def pieces_of(data: Any, most: int = PIECE_BYTES) -> Iterator[str]:
    """The text of ``data``, which is UTF-8, in pieces of about ``most`` bytes."""
    view = memoryview(data)
    start = 0
    for place in (*places(view, 0, len(view), most), len(view)):
        yield str(view[start:place], "utf-8")
        start = place


def head_of(data: Any, most: int) -> Any:
    """At most ``most`` bytes of a text in UTF-8, up to the end of a paragraph, a line or a character."""
    if len(data) <= most:
        return data
    view = memoryview(data)[:most]
    # Ends are looked for in the last half alone, so that little is lost.
    half = bytes(view[most // 2 :])
    for end in (b"\n\n", b"\n"):
        if (place := half.rfind(end)) >= 0:
            return view[: most // 2 + place + len(end)]
    while most and data[most] & 0xC0 == 0x80:
        most -= 1
    return view[:most]


def cut_offsets(offsets: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the pieces of texts, and the number of the first piece of each text.

    Args:
        offsets: Of the texts; int64 [num_texts + 1].
        cuts: Offsets inside texts, in ascending order; int64.

    Returns:
        int64 [num_pieces + 1] and int64 [num_texts].
    """
    merged = np.sort(np.concatenate([offsets, cuts]), kind="stable")
    first = np.arange(len(offsets) - 1) + np.searchsorted(cuts, offsets[:-1])
    return merged, first
