"""A corpus of real text with its tokenizer, and a small model of it that was never trained."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmcore.config import ModelConfig, TokenizerConfig
from lmcore.data.encoding import Encoder
from lmcore.data.token_writer import TokenWriter
from lmcore.data.tokenizer import save_tokenizer, train_tokenizer
from lmcore.model.io import save_model
from lmcore.model.transformer import Transformer

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_seq_len": 32}


def make_texts(count, seed):
    rng = np.random.default_rng(seed)
    words = ["def", "return", "self", "value", "naïve", "日本", "🙂", "x", "if", "else", "\n    ", "="]
    return [" ".join(rng.choice(words, rng.integers(3, 60))) + "\n" for _ in range(count)]


def write_split(directory, texts, encoder):
    tokens, lengths = encoder.encode(texts)
    ends = np.cumsum(lengths)
    tokens = np.insert(tokens, ends, encoder.eos_id).astype(np.int32)
    with TokenWriter(directory, eos_id=encoder.eos_id, vocab_size=encoder.vocab_size) as writer:
        names = [str(i) for i in range(len(texts))]
        num_bytes = sum(len(text.encode()) for text in texts)
        writer.add(names, ["made"] * len(texts), tokens, np.asarray(lengths, np.int64) + 1, num_bytes)


def make_model(vocab_size, **shape):
    model = Transformer(ModelConfig(**{**SHAPE, "zero_init_projections": False, **shape}), vocab_size)
    model.init_weights(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that context changes what is predicted
    return model.eval()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Texts, tokens, tokenizer and a model directory."""
    root = tmp_path_factory.mktemp("evaluation")
    texts = {"train": make_texts(60, 0), "validation": make_texts(12, 1)}
    (root / "tokenizer").mkdir()
    save_tokenizer(train_tokenizer(TokenizerConfig(vocab_size=300), texts["train"]), root / "tokenizer")
    encoder = Encoder(root / "tokenizer")
    for split, documents in texts.items():
        write_split(root / "tokens" / split, documents, encoder)
    model = make_model(encoder.vocab_size)
    save_model(root / "model", model, model.config, encoder.vocab_size, root / "tokenizer")
    return SimpleNamespace(
        texts=texts,
        tokens=root / "tokens",
        tokenizer=root / "tokenizer",
        model=root / "model",
        vocab_size=encoder.vocab_size,
        make_model=functools.partial(make_model, vocab_size=encoder.vocab_size),
    )
