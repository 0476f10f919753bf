"""English words that are cut, or kept whole, against the rules of ``words``."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lmcore.data.compiled import kept_table

LONGEST_EXCEPTION = 12
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
WORD_FACTOR, SIZE_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
FNV_START, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)

_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h "
    "kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K %"
)
_ABBREVIATIONS = (
    "Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. "
    "Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. "
    "Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. p.m. Adm. Bros. co. Co. "
    "Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. "
    "Ms. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s. ä. ö. ü. w/o and/or 'S 's ‘S ‘s 're 'd 'Cause 'cause "
    "'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock \\t \\n — ' '' \\\") <space> C++ em "
    "'em ll 'll nuff 'nuff"
)
_EMOTICONS = (
    ":) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; "
    ":( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p "
    ":-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD "
    "XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 "
    "o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*)"
)
_PRONOUNS, _QUESTIONS = "i you he she it we they", "who what when where why how there that this"
_MODALS, _VERBS = "could might must should would", "ca do does did had may need ought sha wo"
_NOT_CUT = "Ill ill Its its Hell hell Shell shell Shed shed were Were Well well Whore whore"


@functools.cache
def english() -> Lexicon:
    """Contractions, abbreviations, emoticons and units, as spaCy's English has them."""
    held = _in_one()
    return Lexicon(*(held[name] for name in Lexicon._fields))


@kept_table
def _in_one() -> np.ndarray:
    """The tables of ``_english`` in one, each under its name; to make them takes as long as to start LLVM."""
    tables = _english()._asdict()
    held = np.zeros((), [(name, table.dtype, table.shape) for name, table in tables.items()])
    for name, table in tables.items():
        held[name] = table
    return held


def _english() -> Lexicon:
    parts = {"".join(word): word for word in _exceptions()}
    parts |= {word.replace("'", "’"): tuple(p.replace("'", "’") for p in cut) for word, cut in parts.items()}
    for word in _NOT_CUT.split():
        parts.pop(word, None)
    exceptions, places = _table(parts)
    cuts = np.zeros((len(exceptions), 2), np.int32)
    for word, place in places.items():
        ends = np.cumsum([len(part) for part in parts[word][:-1]])
        cuts[place, : len(ends)] = ends
    lengths = _lengths(parts, 0), _lengths(parts, -1)
    return Lexicon(exceptions, _bits(parts), cuts, *lengths, _table(_UNITS.split())[0], _places(STOP_WORDS))


def _exceptions() -> Iterator[tuple[str, ...]]:
    for word in (
        *_ABBREVIATIONS.split(),
        *_EMOTICONS.split(),
        *(f"{c}." for c in "abcdefghijklmnopqrstuvwxyz"),
    ):
        yield (word,)
    for word in _capitals("doin goin nothin nuthin ol somethin lovin havin"):
        yield (word,)
        yield (word + "'",)
    for hour in range(1, 13):
        for half in ("a.m.", "am", "p.m.", "pm"):
            yield str(hour), half
    for first, *rest in (
        ("y'", "all"),
        ("y", "all"),
        ("how", "'d", "'y"),
        ("not", "'ve"),
        ("not", "ve"),
        ("can", "not"),
        ("gon", "na"),
        ("got", "ta"),
        ("let", "'s"),
        ("c'm", "on"),
    ):
        yield first, *rest
        yield first.capitalize(), *rest
    for mark in ("'", ""):
        yield from _contractions(mark)


def _contractions(mark: str) -> Iterator[tuple[str, ...]]:
    """Words that are written together with or without their apostrophe: you'll, youll."""
    for word in _capitals("i"):
        yield word, f"{mark}m"
        yield word, f"{mark}m", "a"
    for word in _capitals(f"{_PRONOUNS} {_QUESTIONS} these those"):
        for verb in ("ll", "d"):
            yield word, mark + verb
            yield word, mark + verb, f"{mark}ve"
    for word in _capitals(f"i you we they {_QUESTIONS}"):
        yield word, f"{mark}ve"
    for word in _capitals(f"you we they {_QUESTIONS}"):
        yield word, f"{mark}re"
    for word in _capitals(f"he she it {_QUESTIONS}"):
        yield word, f"{mark}s"
    for word in _capitals(f"{_MODALS} {_VERBS}"):
        yield word, f"n{mark}t"
        yield word, f"n{mark}t", f"{mark}ve"
    for word in _capitals(_MODALS):
        yield word, f"{mark}ve"
    for word in _capitals("ai are is was were have has dare"):
        yield word, f"n{mark}t"


def _capitals(words: str) -> Iterator[str]:
    for word in words.split():
        yield word
        yield word.capitalize()


def _lengths(words: Iterable[str], place: int) -> np.ndarray:
    """Lengths of words with a given character at ``place``, as bits; uint32 [128], beyond ASCII at 0."""
    lengths = np.zeros(128, np.uint32)
    for word in words:
        code = ord(word[place])
        lengths[code if code < 128 else 0] |= np.uint32(1 << len(word))
    return lengths


def _table(words: Iterable[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Open addressing: hashes at their places, a quarter full; and the place of each word."""
    words = list(words)
    keys = np.zeros(1 << (4 * len(words)).bit_length(), np.uint64)
    places = {}
    for word in words:
        h = word_digest(word)
        place = int(h) % len(keys)
        while keys[place]:
            place = (place + 1) % len(keys)
        keys[place], places[word] = h, place
    return keys, places


def _bits(words: Iterable[str]) -> np.ndarray:
    """A bit for the upper 16 of the hash of each word; uint64 [1024]."""
    bits = np.zeros(1 << 16, np.uint8)
    bits[[int(word_digest(word)) >> 48 for word in words]] = 1
    return np.packbits(bits, bitorder="little").view(np.uint64)


def _places(words: Iterable[str]) -> np.ndarray:
    """Hashes of few words, each at its lowest 6 bits; uint64 [64]."""
    found = np.zeros(64, np.uint64)
    for word in words:
        h = word_digest(word)
        if found[int(h) % 64]:
            raise ValueError(f"{word} has the place of another word")
        found[int(h) % 64] = h
    return found


class Lexicon(NamedTuple):
    """Runs of characters that are cut, or kept whole, against the rules: tables that are looked up by hash.

    Attributes:
        exceptions: Hashes, 0 where there is none; uint64 [a power of 2].
        known: A bit for the upper 16 of each; uint64 [1024].
        cuts: Where each is cut, from its start; 0: no further; int32 [the same, 2].
        first: For each first character, the lengths of exceptions, as bits: most runs are none at a glance.
        last: For each last character.
        units: Hashes of units of measure; uint64 [a power of 2].
        stop_words: Hashes of those that Gopher looks for, each at its lowest 6 bits; uint64 [64].
    """

    exceptions: np.ndarray
    known: np.ndarray
    cuts: np.ndarray
    first: np.ndarray
    last: np.ndarray
    units: np.ndarray
    stop_words: np.ndarray


def word_digest(word: str) -> np.uint64:
    """Hash of a word, as ``Page.digest`` holds it (``words.hash_bytes``)."""
    raw = word.encode("utf-8")
    size = len(raw)
    if size <= 8:
        return _folded(int.from_bytes(raw, "little") ^ int(WORD_FACTOR), int(SIZE_FACTOR) ^ size)
    h = int(SIZE_FACTOR) * size % 2**64
    for i in range(0, size, 8):
        part = raw[min(i, size - 8) :][:8]
        h = int(_folded(h ^ int.from_bytes(part, "little"), int(WORD_FACTOR)))
    return np.uint64(h)


def _folded(a: int, b: int) -> np.uint64:
    return np.uint64((a * b ^ (a * b >> 64)) % 2**64)
