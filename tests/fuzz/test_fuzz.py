"""A few rounds of each differential fuzzer; ``make fuzz`` runs them for longer."""

import random

import pyarrow as pa
import pytest
from fuzz import differences
from fuzz.differences import FUZZERS

ROUNDS = {"exports": 2, "encoders": 20}


@pytest.mark.parametrize("name", FUZZERS)
def test_ours_and_the_reference_agree(name, tmp_path):
    for seed in range(ROUNDS.get(name, 60)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            FUZZERS[name](random.Random(seed), folder)
        except Exception as error:
            raise AssertionError(f"{name} fails with seed {seed}") from error


def swallow_the_last(read):
    return lambda *arguments, **options: read(*arguments, **options)[:-1]


def keep_a_mark(clean_texts):
    return lambda texts, config: pa.array(
        [text + "\ufeff" for text in clean_texts(texts, config).to_pylist()]
    )


PLANTED = {
    "json_lines": ("read", swallow_the_last),
    "charsets": ("read", swallow_the_last),
    "parquet": ("read", swallow_the_last),
    "web_archives": ("read", swallow_the_last),
    "zip_archives": ("text_or_none", lambda text_of: lambda entry: text_of(entry).rstrip("d")),
    "cleaning": ("clean_texts", keep_a_mark),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name, tmp_path, monkeypatch):
    attribute, spoil = PLANTED[name]
    monkeypatch.setattr(differences, attribute, spoil(getattr(differences, attribute)))
    found = 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            FUZZERS[name](random.Random(seed), folder)
        except AssertionError:
            found += 1
    assert found
