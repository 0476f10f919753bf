from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from lmcore.data.langid_walk import CompiledIdentifier
from tests.lmcore.data.languages import ARTICLE_1

OPTIONS = {"norm_probs": True, "min_confidence": 0.02}
TEXTS = [*ARTICLE_1.values(), *(text.upper() for text in ARTICLE_1.values())]


@pytest.fixture(scope="module")
def both():
    kinds = (LanguageIdentifier, CompiledIdentifier)
    return [kind.from_model_file(MODEL_FILE, **OPTIONS) for kind in kinds]


def test_every_language_has_the_score_that_the_library_gives(both):
    library, ours = both
    for text in TEXTS:
        assert ours.rank(text) == library.rank(text)
        assert ours.classify(text) == library.classify(text)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(), max_size=60))
def test_any_text_has_the_score_that_the_library_gives(both, text):
    library, ours = both
    assert ours.classify(text) == library.classify(text)


def test_a_text_without_features_is_undecided(both):
    library, ours = both
    for text in ("", "\x00\x01", "\ue000" * 5):
        assert ours.classify(text) == library.classify(text)
    assert ours.classify("")[0] == "und"


def test_threads_do_not_mix_their_counts(both):
    library, ours = both
    expected = [library.classify(text) for text in TEXTS * 4]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ours.classify, TEXTS * 4)) == expected
