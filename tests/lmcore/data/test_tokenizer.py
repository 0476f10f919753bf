import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import TokenizerConfig
from lmcore.data.encoding import HOSTILE_TEXTS, Encoder
from lmcore.data.tokenizer import (
    END_OF_TEXT,
    EOS_ID,
    load_tokenizer,
    save_tokenizer,
    token_bytes,
    train_tokenizer,
)
from lmcore.errors import DataError

CORPUS = [f"def name_{i}(self, value):\n    return self.value{i % 7} + {i}\n\n" for i in range(300)]
any_text = st.text(st.characters(exclude_categories=("Cs",)))


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "llama3"])
def directory(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_tokenizer(train_tokenizer(TokenizerConfig(vocab_size=400, pattern=request.param), CORPUS), path)
    return path


@pytest.fixture(scope="module")
def encoder(directory):
    return Encoder(directory, sample=CORPUS[:20])


def test_gigatoken_knows_every_pattern_and_agrees(encoder):
    assert (encoder.engine, encoder.reason.split(" on ")[0]) == ("gigatoken", "agrees with tokenizers")
    assert encoder.reason.endswith(" and 20 documents")


def test_many_texts_are_encoded_as_each_alone(directory):
    texts = [f"{CORPUS[i % 300]} {i}" for i in range(2_345)]
    alone = Encoder(directory, engine="tokenizers")
    tokens, lengths = alone.encode(texts)
    each = [alone.encode([text])[0] for text in texts]
    assert lengths.tolist() == list(map(len, each))
    assert np.array_equal(tokens, np.concatenate(each))


def test_tokens_to_a_word_are_those_of_encoding(encoder):
    sample = CORPUS[:20]
    expected = len(encoder.encode(sample)[0]) / sum(len(text.split()) for text in sample)
    assert encoder.fertility(sample) == {"tokens_per_word": round(expected, 4)}


@pytest.mark.parametrize("before", ["", "true", "false"])
def test_engines_are_compared_on_one_thread_and_afterwards_it_is_as_before(directory, monkeypatch, before):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if before:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    seen = []
    encode = Encoder._encode_reference

    def watched(self, texts):
        seen.append(os.environ.get("TOKENIZERS_PARALLELISM"))
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "_encode_reference", watched)
    with ThreadPoolExecutor(3) as pool:
        encoders = list(pool.map(lambda _: Encoder(directory, sample=CORPUS[:20]), range(3)))
    assert [encoder.engine for encoder in encoders] == ["gigatoken"] * 3
    assert seen[0] == "false"
    assert os.environ["TOKENIZERS_PARALLELISM"] == (before or "true")


def test_gigatoken_is_left_when_a_document_is_encoded_otherwise(directory, tmp_path, monkeypatch):
    save_tokenizer(train_tokenizer(TokenizerConfig(vocab_size=300), CORPUS), tmp_path)
    other = Encoder(tmp_path)
    assert other.engine == "gigatoken"
    # A gigatoken that takes the tokenizer for another.
    monkeypatch.setattr(Encoder, "_load_fast", lambda _self, _path: other._fast)
    encoder = Encoder(directory, sample=CORPUS)
    assert (encoder.engine, encoder.reason) == ("tokenizers", "gigatoken gives other tokens on the sample")
    expected = Encoder(directory, "tokenizers")
    assert encoder.encode(CORPUS)[0].tolist() == expected.encode(CORPUS)[0].tolist()


def test_every_byte_and_the_end_of_text_are_in_the_vocabulary(directory):
    tokenizer = load_tokenizer(directory)
    assert tokenizer.token_to_id(END_OF_TEXT) == EOS_ID == 0
    assert tokenizer.get_vocab_size() == 400
    assert sorted(token_bytes(tokenizer))[:257] == [0] + [1] * 256


@given(text=st.one_of(any_text, st.sampled_from(HOSTILE_TEXTS), st.text("<|endoftx> '\n1a\u00e9")))
def test_decoding_gives_the_text_back(directory, encoder, text):
    tokens, lengths = encoder.encode([text])
    tokenizer = load_tokenizer(directory)
    assert tokenizer.decode(tokens.tolist(), skip_special_tokens=False) == text
    assert tokenizer.encode(text, add_special_tokens=False).ids == tokens.tolist()
    assert lengths.tolist() == [len(tokens)]
    assert token_bytes(tokenizer)[tokens].sum() == len(text.encode())


@given(texts=st.lists(st.one_of(any_text, st.sampled_from([END_OF_TEXT, f"a{END_OF_TEXT}b", ""]))))
def test_a_batch_is_its_texts_one_by_one_and_special_tokens_are_text(encoder, texts):
    tokens, lengths = encoder.encode(texts)
    assert lengths.sum() == len(tokens)
    assert EOS_ID not in tokens
    parts = np.split(tokens, np.cumsum(lengths)[:-1]) if texts else []
    for text, part in zip(texts, parts, strict=True):
        assert (part == encoder.encode([text])[0]).all()


def test_training_is_deterministic():
    config = TokenizerConfig(vocab_size=400)
    assert train_tokenizer(config, CORPUS).to_str() == train_tokenizer(config, iter(CORPUS)).to_str()


def test_a_small_corpus_gives_a_small_vocabulary():
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=4_096), ["ab ab ab"])
    assert 257 < tokenizer.get_vocab_size() < 270


def test_transformers_loads_it(directory):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(directory)
    text = "def f(x):\n    return '\u00e9t\u00e9'  # it's\n"
    ids = loaded(text)["input_ids"]
    assert ids == load_tokenizer(directory).encode(text).ids
    assert loaded.decode(ids) == text
    assert (loaded.eos_token, loaded.eos_token_id) == (END_OF_TEXT, EOS_ID)


def changed(directory, target, change):
    described = json.loads((directory / "tokenizer.json").read_text())
    change(described)
    (target / "tokenizer.json").write_text(json.dumps(described))
    return target


def test_a_pattern_that_gigatoken_refuses_falls_back_with_the_reason(directory, tmp_path):
    def split_on_words(described):
        described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\w+|\W"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]}  # fmt: skip

    encoder = Encoder(changed(directory, tmp_path, split_on_words))
    assert encoder.engine == "tokenizers"
    assert encoder.reason.startswith("gigatoken refuses: ")
    tokens, lengths = encoder.encode(["a b", END_OF_TEXT, ""])
    assert lengths[-1] == 0
    assert EOS_ID not in tokens


def test_a_tokenizer_that_loses_text_is_noticed(directory, tmp_path):
    def lower(described):
        described["normalizer"] = {"type": "Replace", "pattern": {"String": "\u00e9"}, "content": ""}

    encoder = Encoder(changed(directory, tmp_path, lower))
    with pytest.raises(DataError, match="lost text"):
        encoder.encode(["plain", "\u00e9t\u00e9"])


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_is_refused(directory, tmp_path):
    def forget(described):
        described["added_tokens"] = []
        described["model"]["vocab"].pop(END_OF_TEXT)

    with pytest.raises(DataError, match="cannot end a document"):
        Encoder(changed(directory, tmp_path, forget))
