"""Pieces have the tokens of the whole, and what a giant document costs is bounded."""

# ruff: noqa: RUF001
import itertools
import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from lmcore.config import TokenizerConfig
from lmcore.data import encoding, pieces
from lmcore.data.encoding import HOSTILE_TEXTS, Encoder
from lmcore.data.pieces import cut_offsets, head_of, inner_place, keeps_tokens, pieces_of, places
from lmcore.data.tokenizer import END_OF_TEXT, PATTERNS, _splitter, save_tokenizer, train_tokenizer

STORY = "Once upon a time there was a mill by the river.\n<|endoftext|>\n"
PARTS = (
    *(
        "a",
        "Z",
        "7",
        "12345",
        "the mill",
        "'s",
        "'",
        "’s",
        "don't",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "\x0b",
    ),
    *(
        "\u00a0",
        "\u2028",
        "\x85",
        "\u200b",
        "\u0301",
        "\u00e9",
        "\u0416",
        "\u043c\u0438",
        "\u3042",
        "\u30ab",
        "\u3001",
    ),
    *(
        "\u6c34",
        "\u78e8\u574a",
        "\u3002",
        "\uff0c",
        "\uff01",
        "\ubb3c",
        "\u0e01\u0e33",
        "\u0627\u0644",
        "\u0663",
    ),
    *(
        ".",
        "...",
        "!?",
        "_",
        "__init__",
        "(x)",
        "<|endoftext|>",
        "|>",
        "<|",
        "\U0001f642",
        "\u0978",
        "\u0d3e",
        "\x00",
    ),
)


def a_text(draw, longest=60):
    return "".join(draw.choices(PARTS, k=draw.randint(0, longest)))


def every_place(raw):
    return [found.end() for found in pieces._CUT.finditer(raw)]


def words_of(splitter, text):
    return [word for word, _ in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", [*PATTERNS, "qwen"])
def test_every_place_to_cut_parts_words_of_every_pattern(pattern, monkeypatch):
    if pattern == "qwen":
        monkeypatch.setitem(PATTERNS, "qwen", pieces._QWEN)
    splitter, draw = _splitter(pattern), random.Random(1)
    cut = 0
    for text in [*HOSTILE_TEXTS, *(a_text(draw) for _ in range(400))]:
        raw, whole = text.encode(), words_of(splitter, text)
        ends = [0, *every_place(raw), len(raw)]
        cut += len(ends) - 2
        parts = [words_of(splitter, raw[a:b].decode()) for a, b in itertools.pairwise(ends)]
        assert [word for part in parts for word in part] == whole
    assert cut > 1000


@pytest.fixture(scope="module", params=list(PATTERNS))
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    draw = random.Random(2)
    texts = [STORY, *(a_text(draw) for _ in range(200))]
    save_tokenizer(train_tokenizer(TokenizerConfig(vocab_size=600, pattern=request.param), texts), folder)
    return folder


@pytest.mark.parametrize("engine", ["", "tokenizers"])
def test_texts_in_pieces_have_the_tokens_of_the_whole(trained, engine, monkeypatch):
    encoder, draw = Encoder(trained, engine=engine), random.Random(3)
    texts = [*HOSTILE_TEXTS, STORY * 40, END_OF_TEXT, "", *(a_text(draw, 300) for _ in range(60))]
    encoder._can_cut = False
    whole = encoder.encode(texts)
    encoder._can_cut = True
    monkeypatch.setattr(encoding, "_LARGE_BYTES", 50)
    monkeypatch.setattr(encoding, "_PIECES_BYTES", 700)
    monkeypatch.setattr(encoding, "places", lambda data, start, end: places(data, start, end, 40))
    found = encoder.encode(texts)
    assert np.array_equal(found[0], whole[0])
    assert np.array_equal(found[1], whole[1])
    reference = Tokenizer.from_file(str(trained / "tokenizer.json"))
    reference.encode_special_tokens = True
    assert whole[0].tolist() == [
        i for text in texts for i in reference.encode(text, add_special_tokens=False).ids
    ]


def test_text_of_special_tokens_is_left_to_the_fast_engine(trained, monkeypatch):
    encoder = Encoder(trained)
    assert encoder.engine == "gigatoken"
    monkeypatch.setattr(encoder, "_encode_reference", None)
    tokens, lengths = encoder.encode([STORY * 5, "plain"])
    assert len(tokens) == lengths.sum()


def test_merges_learned_of_one_giant_document_are_those_of_its_pieces():
    config = TokenizerConfig(vocab_size=400)
    draw = random.Random(4)
    texts = [a_text(draw) + " " for _ in range(3000)]
    giant = "".join(texts)
    assert len(giant) > 2 * pieces.PIECE_BYTES
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = _splitter(config.pattern)
    found = train_tokenizer(config, [giant])
    assert found.to_str() == train_tokenizer(config, pieces_of(giant.encode(), 500)).to_str()


@pytest.mark.parametrize("most", [40, 100, 1000])
def test_pieces_are_about_as_large_as_asked_for_and_lose_nothing(most):
    draw = random.Random(5)
    text = "".join(a_text(draw) for _ in range(50))
    parts = list(pieces_of(text.encode(), most))
    assert "".join(parts) == text
    assert max(len(part.encode()) for part in parts) < 4 * most + 200


def test_a_word_without_a_place_to_cut_stays_whole():
    assert list(pieces_of(b"x" * 1000 + b" y", 100)) == ["x" * 1000, " y"]
    assert list(pieces_of("\u0e01".encode() * 500, 100)) == ["\u0e01" * 500]


def test_the_head_of_a_text_ends_with_a_paragraph_a_line_or_a_character():
    text = b"one two\nthree\n\nfour five six\nseven eight nine ten"
    assert bytes(head_of(text, 1000)) == text
    assert bytes(head_of(text, 20)) == b"one two\nthree\n\n"
    assert bytes(head_of(text, 40)) == b"one two\nthree\n\nfour five six\n"
    assert bytes(head_of(b"x" * 50, 20)) == b"x" * 20
    for most in range(1, 12):
        head = bytes(head_of("\u6c34\u00e9\U0001f642\u6c34".encode(), most))
        assert len(head) <= most
        assert "\u6c34\u00e9\U0001f642\u6c34".startswith(head.decode())


def test_specials_of_the_usual_forms_can_be_cut_and_others_cannot():
    for special in (b"<|endoftext|>", b"<|im_start|>", b"</s>", b"[MASK]"):
        place = inner_place(special)
        assert 0 < place < len(special)
    assert inner_place(b"<|>") == 0
    assert inner_place(b"<eos") == 0


def test_offsets_of_pieces_tell_where_texts_begin():
    offsets, first = cut_offsets(np.array([2, 2, 9, 20, 20]), np.array([4, 12, 15]))
    assert offsets.tolist() == [2, 2, 4, 9, 12, 15, 20, 20]
    assert first.tolist() == [0, 1, 3, 6]


def test_only_known_patterns_are_cut(trained):
    content = json.loads((trained / "tokenizer.json").read_text())
    patterns = tuple(PATTERNS.values())
    assert keeps_tokens(content, patterns)
    assert keeps_tokens(content | {"normalizer": {"type": "NFC"}}, patterns)
    token = content["added_tokens"][0]
    assert not keeps_tokens(content | {"added_tokens": [token | {"special": False}]}, patterns)
    assert not keeps_tokens(content | {"normalizer": {"type": "NFKC"}}, patterns)
    assert not keeps_tokens(content | {"pre_tokenizer": None}, patterns)
    lines = {"type": "Split", "pattern": {"Regex": r"[^\n]+\n?"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert not keeps_tokens(
        content | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [lines, level]}}, patterns
    )
