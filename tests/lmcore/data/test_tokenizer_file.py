import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from lmcore.config import DataConfig, TokenizerConfig, parse
from lmcore.data.encoding import Encoder
from lmcore.data.tokenizer import (
    build_tokenizer,
    check_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_digest,
    train_tokenizer,
    vocab_size,
)
from lmcore.errors import ConfigError, DataError
from lmcore.progress import silent

TEXTS = [f"the mill {i} grinds the grain of café {i * 7}, don't it? 日本 🙂\n" for i in range(200)]


@pytest.fixture
def plain():
    return train_tokenizer(TokenizerConfig(vocab_size=400, pattern="gpt2"), TEXTS)


def bring(content, folder):
    """The ids of the texts, and the summary of the stage, of a tokenizer with this content."""
    source, out = folder / "source", folder / "out"
    for path in (source, out):
        path.mkdir(parents=True)
    (source / "tokenizer.json").write_text(json.dumps(content))
    config = DataConfig(tokenizer=TokenizerConfig(path=str(source)))
    check_tokenizer(config.tokenizer)
    summary = build_tokenizer(config, folder, folder, out, silent)
    encoder = Encoder(out, sample=TEXTS[:5])
    return encoder.encode(TEXTS), summary, tokenizer_digest(config)


def content_of(tokenizer):
    return json.loads(tokenizer.to_str())


def spoil(content, **model):
    return content | {"model": content["model"] | model}


PADDING = {
    "strategy": {"Fixed": 512},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}
TRIM = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BOTH = {"type": "Sequence", "processors": [TRIM, TEMPLATE]}
BERT = {"type": "BertProcessing", "sep": ["<|endoftext|>", 0], "cls": ["<|endoftext|>", 0]}


@pytest.mark.parametrize(
    ("change", "off"),
    [
        (lambda content: content | {"padding": PADDING}, ["padding"]),
        (lambda content: content | {"padding": PADDING | {"strategy": "BatchLongest"}}, ["padding"]),
        (lambda content: content | {"padding": PADDING | {"pad_to_multiple_of": 64}}, ["padding"]),
        (lambda content: content | {"truncation": TRUNCATION}, ["truncation"]),
        (lambda content: spoil(content, dropout=0.5), ["BPE dropout 0.5"]),
        (lambda content: spoil(content, dropout=1.0) | {"padding": PADDING}, ["padding", "BPE dropout 1"]),
        (lambda content: content | {"post_processor": TEMPLATE}, ["post-processor TemplateProcessing"]),
        (
            lambda content: (
                content | {"post_processor": {"type": "Sequence", "processors": [TRIM, TEMPLATE]}}
            ),
            ["post-processor TemplateProcessing"],
        ),
        (lambda content: content | {"post_processor": BERT}, ["post-processor BertProcessing"]),
    ],
)
def test_settings_of_a_batch_change_no_ids(plain, change, off, tmp_path):
    expected, _, digest = bring(content_of(plain), tmp_path / "plain")
    for again in ("first", "second"):
        found, summary, other_digest = bring(change(content_of(plain)), tmp_path / again)
        assert all(map(np.array_equal, found, expected))
        assert summary["switched_off"] == off
        assert all(name in summary["note"] for name in off)
        assert summary["ids_decided_by"]["model"] == "BPE"
        assert other_digest != digest
    written = json.loads((tmp_path / "first" / "out" / "tokenizer.json").read_text())
    assert [written["padding"], written["truncation"], written["model"]["dropout"]] == [None] * 3
    transformers = AutoTokenizer.from_pretrained(tmp_path / "first" / "out")
    assert transformers(TEXTS)["input_ids"] == [plain.encode(text).ids for text in TEXTS]


def test_a_tokenizer_that_an_earlier_version_took_over_is_read_without_them(plain, tmp_path):
    save_tokenizer(plain, tmp_path)
    content = spoil(content_of(plain), dropout=0.9) | {"padding": PADDING, "truncation": TRUNCATION}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(tmp_path)
    for text in TEXTS[:20]:
        assert loaded.encode(text).ids == plain.encode(text).ids


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WHITE = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("normalizer", {"type": "Lowercase"}, "normalizer Lowercase"),
        ("normalizer", {"type": "Strip", "strip_left": True, "strip_right": True}, "normalizer Strip"),
        (
            "normalizer",
            {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]},
            "normalizer NFKC",
        ),
        ("normalizer", {"type": "Replace", "pattern": {"String": " "}, "content": "_"}, "normalizer Replace"),
        ("pre_tokenizer", BYTE_LEVEL | {"add_prefix_space": True}, "add_prefix_space"),
        ("pre_tokenizer", sequence({"type": "Whitespace"}, BYTE_LEVEL), "pre-tokenizer Whitespace"),
        ("pre_tokenizer", sequence(WHITE, BYTE_LEVEL), "pre-tokenizer Split that removes"),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, "Metaspace"),
        ("pre_tokenizer", None, "not byte-level"),
        ("pre_tokenizer", sequence(BYTE_LEVEL, BYTE_LEVEL), "ByteLevel 2 times"),
    ],
)
def test_what_loses_text_is_refused_by_its_name(plain, part, value, problem, tmp_path):
    with pytest.raises(DataError, match=problem):
        bring(content_of(plain) | {part: value}, tmp_path)


def test_models_of_other_kinds_are_refused_by_their_name(tmp_path):
    pieces = [("<unk>", 0.0), ("a", -1.0)]
    others = {
        "Unigram": Tokenizer(models.Unigram(pieces, 0)),
        "WordPiece": Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1})),
        "WordLevel": Tokenizer(models.WordLevel({"<unk>": 0})),
    }
    for name, tokenizer in others.items():
        with pytest.raises(DataError, match=f"model {name}"):
            bring(content_of(tokenizer), tmp_path / name)


def test_bytes_that_are_missing_and_sentence_piece_are_refused(plain, tmp_path):
    content = content_of(plain)
    fewer = {text: index for text, index in content["model"]["vocab"].items() if text not in ("z", "Ġ")}
    for change, problem in (
        ({"vocab": fewer, "merges": []}, "lacks 2 of the 256 bytes"),
        ({"byte_fallback": True}, "byte_fallback"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
    ):
        with pytest.raises(DataError, match=problem):
            bring(spoil(content, **change), tmp_path / problem.replace("/", ""))


def test_a_document_that_quotes_the_end_of_text_is_not_cut_there(plain, tmp_path):
    content = content_of(plain)
    content["added_tokens"][0]["special"] = False
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "tokenizer.json").write_text(json.dumps(content))
    summary = build_tokenizer(
        DataConfig(tokenizer=TokenizerConfig(path=str(source))), tmp_path, tmp_path, out, silent
    )
    assert summary["switched_off"] == ["<|endoftext|> in text"]
    quoted = [f"{text}<|endoftext|> and on" for text in TEXTS]
    encoder = Encoder(out, sample=quoted[:3])
    tokens, _ = encoder.encode(quoted)
    assert not (tokens == encoder.eos_id).any()


def test_an_added_token_that_takes_white_space_is_refused(plain, tmp_path):
    plain.add_tokens([AddedToken("<mill>", lstrip=True)])
    with pytest.raises(DataError, match="lstrip"):
        bring(content_of(plain), tmp_path)


def test_added_tokens_in_text_and_nfc_are_kept(plain, tmp_path):
    plain.add_tokens(["grinds the"])
    plain.normalizer = normalizers.NFC()
    (tokens, lengths), summary, _ = bring(content_of(plain), tmp_path)
    added = plain.token_to_id("grinds the")
    assert (tokens == added).sum() == len(TEXTS)
    assert summary["ids_decided_by"]["added_tokens_in_text"] == 1
    assert len(lengths) == len(TEXTS)


def test_ids_may_have_gaps(plain, tmp_path):
    content = content_of(plain)
    content["model"]["vocab"]["?"] = 1_000
    (tokens, _), summary, _ = bring(content, tmp_path)
    assert summary["vocab_size"] == 1_001 == vocab_size(load_tokenizer(tmp_path / "out"))
    assert (tokens == 1_000).sum() == len(TEXTS)


@pytest.mark.parametrize(
    ("tokens", "size", "problem"),
    [
        (["<|a|>", "<|b|>", "<|a|>"], 400, "found <|a|> twice"),
        (["<|endoftext|>"], 400, "found <|endoftext|> twice"),
        ([""], 400, "empty text"),
        (["<|a|>", "<|b|>", "<|c|>"], 258, "use at least 260"),
        (["<|a\ud800|>"], 400, "half a character"),
    ],
)
def test_special_tokens_that_do_not_fit_are_refused_in_the_recipe(tokens, size, problem):
    with pytest.raises(ConfigError) as raised:
        parse(TokenizerConfig, {"special_tokens": tokens, "vocab_size": size}, where="test")
    assert problem in str(raised.value)


@pytest.mark.parametrize("token", ["a", "the", "Ġthe", "é", "  ", "日本", "Ã", "1"])
@pytest.mark.parametrize("pattern", ["gpt2", "llama3"])
def test_special_tokens_that_text_can_become_are_refused(token, pattern):
    with pytest.raises(ConfigError, match="can be a part of a text"):
        check_tokenizer(TokenizerConfig(special_tokens=(token,), pattern=pattern))


@pytest.mark.parametrize("token", ["<|pad|>", "<a>", "[INST]", "<|im_start|>user"])
def test_special_tokens_that_are_allowed_stand_for_no_text(token, tmp_path):
    config = TokenizerConfig(special_tokens=(token,), vocab_size=600, pattern="llama3")
    check_tokenizer(config)
    texts = [f"{token} {text} {token}{token}" for text in TEXTS]
    save_tokenizer(train_tokenizer(config, texts), tmp_path)
    encoder = Encoder(tmp_path, sample=texts[:5])
    tokens, _ = encoder.encode(texts)
    assert not (tokens == load_tokenizer(tmp_path).token_to_id(token)).any()


def test_a_byte_level_tokenizer_of_another_trainer_is_taken(tmp_path):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    (tokens, _), summary, _ = bring(content_of(tokenizer), tmp_path)
    assert summary["ids_decided_by"]["pre_tokenizer"] == "Digits+ByteLevel"
    expected = [tokenizer.encode(text).ids for text in TEXTS]
    assert tokens.tolist() == [index for ids in expected for index in ids]
