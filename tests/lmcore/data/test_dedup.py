import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.dedup import content_hash, draws, order_by_hash


def hashes_of(texts):
    return np.frombuffer(b"".join(map(content_hash, texts)), np.uint8).reshape(-1, 16)


def many(count):
    return hashes_of([f"document {i}" for i in range(count)])


@given(st.lists(st.sampled_from("abcdefgh")))
def test_the_order_is_that_of_the_hashes_as_bytes_then_of_positions(texts):
    expected = sorted(range(len(texts)), key=lambda i: (content_hash(texts[i]), i))
    assert order_by_hash(hashes_of(texts)).tolist() == expected


def test_draws_are_spread_evenly():
    drawn = draws(many(20_000), seed=3)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(np.sort(drawn) - np.linspace(0, 1, 20_000)).max() < 0.015


def test_a_draw_depends_on_its_text_and_the_seed_alone():
    hashes = many(500)
    assert (draws(hashes, 0)[::-2] == draws(hashes[::-2], 0)).all()
    assert abs(np.corrcoef(draws(hashes, 0), draws(hashes, 1))[0, 1]) < 0.15
