"""Texts that hold characters of a kind are found at any place, and at any place of the bytes they are in."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.arrow import bytes_array, text_buffers
from lmcore.data.characters import middles_beyond_ascii, texts_holding, texts_with

MARKED = "\u0394\u20ac\ud55c\U0001f600"  # of two, three, three and four bytes
MARKS = np.zeros(0x110000, np.uint8)
MARKS[list(map(ord, MARKED))] = 1
parts = st.one_of(
    st.sampled_from(MARKED + "\u0395\u20ad\ud55d\U0001f601\u00e9"), st.integers(0, 140).map(lambda n: "a" * n)
)


@given(st.lists(st.lists(parts, max_size=4).map("".join), max_size=6), st.integers(0, 2))
def test_texts_with_a_marked_character_are_found(texts, start):
    array = bytes_array([text.encode() for text in texts]).slice(start)
    expected = [any(character in text for character in MARKED) for text in texts[start:]]
    assert texts_with(MARKS, *text_buffers(array)).tolist() == expected


PHRASES = ["<|endoftext|>", "<|end|>", "<", "</s>", "\u2581\u2581", "\u20ac"]
pieces = st.one_of(
    st.sampled_from([*PHRASES, "<|endoftext|", "|end|>", "<|e", "\u2581", "<" * 70]),
    st.integers(0, 140).map(lambda n: "a" * n),
)


@given(
    st.lists(st.sampled_from(PHRASES), max_size=4),
    st.lists(st.lists(pieces, max_size=4).map("".join), max_size=6),
    st.integers(0, 2),
)
def test_texts_that_hold_a_phrase_are_found(phrases, texts, start):
    array = bytes_array([text.encode() for text in texts]).slice(start)
    found = texts_holding([phrase.encode() for phrase in phrases], *text_buffers(array))
    assert found.tolist() == [any(phrase in text for phrase in phrases) for text in texts[start:]]


@given(st.lists(st.lists(parts, max_size=4).map("".join), max_size=6), st.integers(0, 2))
def test_what_is_beyond_ascii_is_found_from_the_middle_on_and_then_before_it(texts, start):
    array = bytes_array([text.encode() for text in texts]).slice(start)
    data, offsets = text_buffers(array)
    raw = [text.encode() for text in texts[start:]]
    expected = []
    for text in raw:
        middle = len(text) // 2
        order = [*range(middle, len(text)), *range(middle)]
        expected.append(next((i for i in order if text[i] >= 0x80), middle))
    assert (middles_beyond_ascii(data, offsets) - offsets[:-1]).tolist() == expected
