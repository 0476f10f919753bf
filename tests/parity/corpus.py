"""A corpus of synthetic tokens."""

import json
from pathlib import Path

import numpy as np

from lmcore.data.token_writer import TokenWriter

VOCAB = 300


def write_split(directory, num_documents, seed, lengths=(5, 80), vocab=VOCAB):
    """Documents of tokens that follow one another by a rule, with noise: something to learn."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*lengths, num_documents)
    tokens = rng.integers(1, vocab, int(lengths.sum())).astype(np.int32)
    for i in range(1, len(tokens)):
        if rng.random() < 0.8:
            tokens[i] = tokens[i - 1] * 7 % (vocab - 1) + 1
    tokens[np.cumsum(lengths) - 1] = 0
    names = [f"{directory.name}-{i}" for i in range(num_documents)]
    sources = ["found" if i % 4 == 0 else "made" for i in range(num_documents)]
    with TokenWriter(directory, eos_id=0, vocab_size=vocab) as writer:
        writer.add(names, sources, tokens, lengths.astype(np.int64), 3 * len(tokens))


def write_corpus(root: Path, lengths: tuple[int, int] = (5, 80), vocab: int = VOCAB) -> Path:
    """Directories of a tokens and a tokenizer artifact; documents are of ``lengths`` [from, to)."""
    write_split(root / "tokens" / "train", 400, 0, lengths, vocab)
    write_split(root / "tokens" / "validation", 30, 1, lengths, vocab)
    (root / "tokenizer").mkdir()
    model = {"type": "BPE", "vocab": {f"t{i}": i for i in range(vocab)}, "merges": []}
    description = {"added_tokens": [{"id": 0, "content": "<|endoftext|>"}], "model": model}
    (root / "tokenizer" / "tokenizer.json").write_text(json.dumps(description))
    (root / "tokenizer" / "tokenizer_config.json").write_text("{}")
    return root
