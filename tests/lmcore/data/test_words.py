import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.data.lexicon import word_digest
from lmcore.data.words import words_of

# As spaCy 3.8 splits them: blank English, white space left out.
RECORDED = [
    ("Hello (world)! It's 10km, don't e.g.", "Hello ( world ) ! It 's 10 km , do n't e.g."),
    ("visit https://foo.bar/x?y=1 or file.py,", "visit https://foo.bar/x?y=1 or file.py ,"),
    ('and/or x-ray C++... "ok" $5.00 U.S.', 'and/or x - ray C++ ... " ok " $ 5.00 U.S.'),
    ("e-mail: a@b.com foo/bar cannot 3-4 end.", "e - mail : a@b.com foo / bar can not 3 - 4 end ."),
    (
        "you’ll rock'n'roll 'tis (e.g. this) i.e., etc...",
        "you ’ll rock'n'roll ' tis ( e.g. this ) i.e. , etc ...",
    ),
    (
        "well--known a—b 1,000 x=y a:b <tag> A.B. 5% 10€ US$5 +3 3+ °C",
        "well -- known a — b 1,000 x = y a : b < tag > A.B. 5 % 10 € US$ 5 +3 3 + ° C",
    ),
    (
        "東京の水車 вода, мельница. naïve straße ½ → • ☃ ...dots ..",
        "東京 の 水車 вода , мельница . naïve straße ½ → • ☃ ... dots ..",
    ),
    (
        "http://a.example:8080/path user@host.example 10.0.0.1:99 1.2.3.4 foo.Bar Foo.bar x..y",
        "http://a.example:8080/path user@host.example 10.0.0.1:99 1.2.3.4 foo . Bar Foo.bar x .. y",
    ),
    (
        "shouldn't've I'm its it's Im wont ill 10am 5p.m. :-) <3 o_O",
        "should n't 've I 'm its it 's I m wo nt ill 10 am 5 p.m. :-) <3 o_O",
    ),
]


@pytest.mark.parametrize(("text", "expected"), RECORDED)
def test_words_are_those_that_were_recorded(text, expected):
    assert [word for word, _ in words_of(text)] == expected.split(" ")


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.text("aZ9.,:;-—'’\"()[]/@+%$€*^<>=_ \n é中☃", max_size=40)
)
def test_words_hold_every_character_but_space_once_and_in_order(text):
    found = [word for word, _ in words_of(text)]
    # Characters that are newer than Python's tables are of no kind, and so are never space.
    assert "".join(found) == "".join(c for c in text if not c.isspace())
    assert all(found)


@settings(deadline=None)
@given(st.lists(st.text("aZ9.,:;-'\"()/$☃", min_size=1, max_size=9), min_size=1, max_size=6))
def test_a_run_that_comes_again_is_cut_as_before(runs):
    once = [word for word, _ in words_of(" ".join(runs))]
    assert [word for word, _ in words_of(" ".join(runs * 3))] == once * 3
    assert [word for run in runs for word, _ in words_of(run)] == once


@settings(deadline=None)  # the first one compiles
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_word_has_one_hash_wherever_it_is_taken(text):
    assert all(digest == word_digest(word) for word, digest in words_of(text))


def test_kinds_are_those_of_python():
    from lmcore.data.characters import ALPHABETIC, ALPHANUMERIC, PUNCTUATION, SPACE, character_flags

    flags = character_flags()
    for code in range(0x33480):
        character, found = chr(code), int(flags[code])
        assert bool(found & SPACE) == character.isspace()
        assert bool(found & ALPHABETIC) == character.isalpha()
        assert bool(found & ALPHANUMERIC) == character.isalnum()
        assert bool(found & PUNCTUATION) == (unicodedata.category(character)[0] == "P")
    assert not any(map(str.isalnum, map(chr, range(0x33480, 0x110000))))
