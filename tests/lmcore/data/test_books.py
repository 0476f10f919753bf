from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.books import Books
from lmcore.errors import DataError

count = st.integers(0, 1_000)


@st.composite
def balanced(draw):
    dropped = Counter(draw(st.dictionaries(st.sampled_from(["code.min_chars", "gopher.max_words"]), count)))
    quarantined, duplicates, train, validation = (draw(count) for _ in range(4))
    passed = sum(dropped.values()) + duplicates + train + validation
    return Books(quarantined + passed, quarantined, passed, dropped, duplicates, train, validation)


@given(st.lists(balanced(), max_size=4))
def test_sums_of_balanced_books_balance(parts):
    whole = Books.total(parts)
    whole.check("all")
    assert Books.from_json(whole.to_json()) == whole


@given(balanced(), st.sampled_from(["documents_in", "quarantined", "passed", "duplicates", "train"]))
def test_one_document_more_anywhere_is_noticed(books, name):
    setattr(books, name, getattr(books, name) + 1)
    with pytest.raises(DataError, match="the books of here do not balance"):
        books.check("here")


@given(balanced())
def test_the_funnel_narrows_to_what_was_kept(books):
    counts = [number for _, number in books.funnel()]
    assert counts[:-2] == sorted(counts[:-2], reverse=True)
    assert counts[-3] == counts[-2] + counts[-1] == books.kept
