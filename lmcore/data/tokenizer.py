"""The byte-level BPE tokenizer: how text is split, and learning merges.

Every byte is in the vocabulary, so any text survives encoding and decoding unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lmcore.config import DataConfig, TokenizerConfig
from lmcore.data.splits import read_split
from lmcore.errors import DataError
from lmcore.progress import Paced, Progress

END_OF_TEXT = "<|endoftext|>"
EOS_ID = 0

# As the published tokenizer.json files write them, so that gigatoken knows them. cl100k is the spelling
# without possessive quantifiers: Oniguruma, which `tokenizers` uses, reads `{1,3}+` as a repeated group.
PATTERNS = {
    "gpt2": "",  # ByteLevel's own
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Learn a tokenizer of at most ``config.vocab_size`` entries; ``<|endoftext|>`` is id 0.

    A small corpus gives fewer entries. Deterministic in the order and content of ``texts``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _splitter(config.pattern)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    return tokenizer


def _splitter(pattern: str) -> Any:
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build_tokenizer(
    config: DataConfig, documents_dir: Path, splits_dir: Path, out: Path, progress: Progress
) -> dict[str, Any]:
    """Learn a tokenizer from the training split and write it where ``transformers`` finds it.

    Returns:
        Its true size, the size asked for, and the text it learned from.
    """
    wanted = config.tokenizer
    taken = {"documents": 0, "bytes": 0}
    total = wanted.sample_bytes or _split_bytes(documents_dir)
    paced = Paced(progress, "learn merges", min(total, _split_bytes(documents_dir)), "bytes")

    def sample() -> Iterator[str]:
        for document in read_split(documents_dir, splits_dir, "train"):
            size = len(document.text.encode())
            if wanted.sample_bytes and taken["documents"] and taken["bytes"] + size > wanted.sample_bytes:
                return
            taken["documents"] += 1
            taken["bytes"] += size
            paced.advance(size)
            yield document.text

    tokenizer = train_tokenizer(wanted, sample())
    paced.finish()
    save_tokenizer(tokenizer, out)
    size = tokenizer.get_vocab_size()
    note = "" if size == wanted.vocab_size else f"the text has no more pairs to merge: {size} entries"
    return {
        "vocab_size": size,
        "vocab_size_wanted": wanted.vocab_size,
        "note": note,
        "pattern": wanted.pattern,
        "sample_documents": taken["documents"],
        "sample_bytes": taken["bytes"],
    }


def _split_bytes(documents_dir: Path) -> int:
    return sum(entry["bytes"] for entry in json.loads((documents_dir / "books.json").read_text()))


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "unk_token": None,
        "pad_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json``; text that looks like a special token is encoded as text.

    Raises:
        DataError: there is none, or it does not know ``<|endoftext|>``.
    """
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"tokenizer {path} cannot be read", found=str(error)) from error
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{path} is not a tokenizer", found=str(error)) from error
    eos_id(tokenizer)
    # Not stored in the file: each loader chooses anew.
    tokenizer.encode_special_tokens = True
    return tokenizer


def eos_id(tokenizer: Tokenizer) -> int:
    """Id of ``<|endoftext|>``; DataError if the tokenizer has none."""
    index = tokenizer.token_to_id(END_OF_TEXT)
    if index is None:
        raise DataError(
            "the tokenizer cannot end a document", expected=f"a token {END_OF_TEXT}", found="none"
        )
    return index


def token_bytes(directory: Path) -> np.ndarray:
    """Bytes of text that each token of ``directory/tokenizer.json`` stands for; int32 [vocab_size].

    Special tokens count none. In byte-level BPE each character of an entry is one byte.
    """
    tokenizer = load_tokenizer(directory)
    sizes = np.zeros(tokenizer.get_vocab_size(), np.int32)
    for token, index in tokenizer.get_vocab().items():
        sizes[index] = len(token)
    for index, added in tokenizer.get_added_tokens_decoder().items():
        sizes[index] = 0 if added.special else len(added.content.encode())
    return sizes
