import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.dedup import content_hash, first_occurrences, hold_out, order_by_hash
from lmcore.errors import DataError


def hashes_of(texts):
    return np.frombuffer(b"".join(map(content_hash, texts)), np.uint8).reshape(-1, 16)


def many(count):
    return hashes_of([f"document {i}" for i in range(count)])


@given(st.lists(st.sampled_from("abcdefgh")))
def test_the_first_of_equal_documents_is_found(texts):
    assert first_occurrences(hashes_of(texts)).tolist() == [texts.index(text) for text in texts]


@given(st.lists(st.sampled_from("abcdefgh")))
def test_the_order_is_that_of_the_hashes_as_bytes_then_of_positions(texts):
    expected = sorted(range(len(texts)), key=lambda i: (content_hash(texts[i]), i))
    assert order_by_hash(hashes_of(texts)).tolist() == expected


def test_the_share_held_out_is_the_one_asked_for():
    held, remedy = hold_out(many(20_000), 0.1, seed=3)
    assert abs(held.mean() - 0.1) < 0.01
    assert not remedy


def test_a_document_keeps_its_side_whatever_the_others_are():
    hashes = many(2_000)
    whole, _ = hold_out(hashes, 0.1, seed=0)
    half, _ = hold_out(hashes[::-2], 0.1, seed=0)
    assert (whole[::-2] == half).all()
    larger, _ = hold_out(hashes, 0.2, seed=0)
    assert larger[whole].all()


def test_the_seed_changes_who_is_held_out():
    hashes = many(500)
    assert (hold_out(hashes, 0.5, 0)[0] != hold_out(hashes, 0.5, 1)[0]).any()


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_split_is_left_empty_and_it_is_said(fraction):
    held, remedy = hold_out(many(5), fraction, seed=0)
    assert held.any()
    assert not held.all()
    assert remedy


def test_one_document_cannot_be_split():
    with pytest.raises(DataError, match="at least 2 distinct documents"):
        hold_out(many(1), 0.5, seed=0)
