"""The byte-level BPE tokenizer: how text is split, and learning merges.

Every byte is in the vocabulary, so any text survives encoding and decoding unchanged.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lmcore.config import DataConfig, TokenizerConfig
from lmcore.data.arrow import places, to_numbers, views_of
from lmcore.data.dedup import order_by_hash
from lmcore.data.pieces import PIECE_BYTES, head_of, pieces_of
from lmcore.data.splits import first_generation, hashes_of, split_of_shard
from lmcore.data.tokenizer_file import deciding, read_tokenizer_file
from lmcore.errors import ConfigError, DataError, nearest
from lmcore.progress import Paced, Progress
from lmcore.store import sha256_file, sha256_json
from lmcore.tokenizer_settings import switch_off

END_OF_TEXT = "<|endoftext|>"
EOS_ID = 0
TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_SPARE = 1.25
# Where nearly all would be read, chance must not leave too little.
_MOST_SHARE = 0.5
_WIDER = 4

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
        special_tokens=[END_OF_TEXT, *config.special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_in_pieces(texts), trainer)
    return tokenizer


def _in_pieces(texts: Iterable[str]) -> Iterator[str]:
    """``texts``, of which large ones are cut: the trainer takes 140 bytes for each byte of one."""
    for text in texts:
        if len(text) <= PIECE_BYTES:
            yield text
        else:
            yield from pieces_of(text.encode())


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
    """Learn a tokenizer from the training split, or bring one, and write it where ``transformers`` finds it.

    It learns from the documents with the smallest content hashes, of those files that were there first: the
    same whatever the shards, and whatever came later.

    Returns:
        Its true size, the size asked for, and the text it learned from.

    Raises:
        DataError: the tokenizer that is to be brought cannot be used.
    """
    wanted = config.tokenizer
    if wanted.path:
        return _bring(wanted, out)
    shards = [(path, splits_dir / "decisions" / path.name) for path in first_generation(documents_dir)]
    taken = {"documents": 0, "bytes": 0}
    paced = Paced(progress, "learn merges", wanted.sample_bytes, "bytes")

    def sample() -> Iterator[str]:
        for raw in _sample(shards, wanted.sample_bytes):
            taken["documents"] += 1
            taken["bytes"] += len(raw)
            yield from pieces_of(raw)  # none is held whole as Python has it
            paced.advance(len(raw))
        paced.finish()  # there may be less text than is wanted; merges of it are learned from here on

    tokenizer = train_tokenizer(wanted, sample())
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


def _sample(shards: list[tuple[Path, Path]], most_bytes: int) -> Iterator[Any]:
    """Training documents in UTF-8, by content hash up to ``most_bytes``; 0: all, shard after shard.

    The one that would end it is cut instead where less than half would be there otherwise.
    """
    if not most_bytes:
        for documents, decisions in shards:
            yield from _raw(split_of_shard(documents, decisions, "train")["text"])
        return
    # Each character is at least a byte, so that this much of the hashes holds enough.
    share = _SPARE * most_bytes / max(1, sum(_train_chars(*shard) for shard in shards))
    whole = _of_hashes_below(share, shards)
    while share < _MOST_SHARE and whole["text"].nbytes < most_bytes // 2:
        share *= _WIDER  # a giant document beyond holds what was counted on
        whole = _of_hashes_below(share, shards)
    texts = whole["text"]
    size = 0
    for row in order_by_hash(hashes_of(whole["content_hash"])).tolist():
        (raw,) = _raw(texts.slice(row, 1))
        if size + len(raw) > most_bytes:
            if size > most_bytes // 2:
                return
            raw = head_of(raw, most_bytes - size)
        size += len(raw)
        yield raw


def _of_hashes_below(share: float, shards: list[tuple[Path, Path]]) -> pa.Table:
    tables = [split_of_shard(*shard, "train", share if share < _MOST_SHARE else 1.0) for shard in shards]
    return pa.concat_tables(tables).select(["text", "content_hash"])


def _raw(texts: pa.ChunkedArray) -> Iterator[memoryview]:
    for chunk in texts.chunks:
        yield from views_of(chunk)


def _train_chars(documents: Path, decisions: Path) -> int:
    with pq.ParquetFile(documents) as file, pq.ParquetFile(decisions) as decided:
        chars = to_numbers(file.read(["chars"])["chars"])
        return int(chars[places(decided.read(["decision"])["decision"], ("train",)) == 0].sum())


def tokenizer_digest(config: DataConfig) -> str:
    """SHA-256 of the tokenizer that is to be brought, as it is used, in hexadecimal.

    Raises:
        DataError: there is none, or it does not keep every text.
    """
    path = _brought(config.tokenizer)
    plain, off = switch_off(read_tokenizer_file(path), config.tokenizer.end_of_text)
    return sha256_json(plain) if off else sha256_file(path)


def check_tokenizer(config: TokenizerConfig) -> None:
    """Check, before any text is read, that the tokenizer can be brought or trained.

    Raises:
        ConfigError: a special token can stand for text.
        DataError: the tokenizer that is to be brought is missing, or does not keep every text.
    """
    if config.path:
        read_tokenizer_file(_brought(config))
        return
    for token in config.special_tokens:
        if _can_be_text(token, config.pattern):
            raise ConfigError(
                f"special token {token!r} can be a part of a text",
                expected="a text that the tokenizer never makes one token of, such as <|name|>",
                found=token,
                remedy=f"Write <|{''.join(re.findall('[A-Za-z0-9_]', token)) or 'name'}|> "
                "in data.tokenizer.special_tokens.",
            )


def _can_be_text(token: str, pattern: str) -> bool:
    """Whether merges could make ``token`` of text, or of bytes in the byte-level alphabet."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if len(_splitter(pattern).pre_tokenize_str(token)) < 2:
        return True
    if not set(token) <= set(alphabet):
        return False
    text = decoders.ByteLevel().decode([token])
    return "\ufffd" in text or len(_splitter(pattern).pre_tokenize_str(text)) < 2


def _brought(wanted: TokenizerConfig) -> Path:
    path = Path(wanted.path).expanduser()
    if path.is_file() and path.name != TOKENIZER:
        raise DataError(
            f"tokenizer {path} cannot be used", expected=f"a file {TOKENIZER}, or its folder", found=path.name
        )
    return _file(path.parent if path.name == TOKENIZER else path)


def _bring(wanted: TokenizerConfig, out: Path) -> dict[str, Any]:
    """Take over the tokenizer at ``wanted.path``: a ``tokenizer.json`` or a folder that holds one."""
    path = _brought(wanted)
    content, off = switch_off(read_tokenizer_file(path), wanted.end_of_text)
    if off:
        (out / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    else:
        shutil.copyfile(path, out / TOKENIZER)
    _describe(out, wanted.end_of_text)
    size = vocab_size(load_tokenizer(out))
    return {
        "vocab_size": size,
        "vocab_size_wanted": size,
        "note": f"brought: {path}" + (f"; switched off: {', '.join(off)}" if off else ""),
        "switched_off": off,
        "ids_decided_by": deciding(content),
        "pattern": "",
        "sample_documents": 0,
        "sample_bytes": 0,
    }


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    (directory / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    _describe(directory, END_OF_TEXT)


def _describe(directory: Path, end_of_text: str) -> None:
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": end_of_text,
        "unk_token": None,
        "pad_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    (directory / _CONFIG).write_text(json.dumps(described, indent=2), encoding="utf-8")


def _file(directory: Path) -> Path:
    path = directory / TOKENIZER
    if not path.is_file():
        raise DataError(
            f"tokenizer {path} cannot be read",
            expected="a file that `tokenizers` wrote",
            found=nearest(path),
            remedy="Correct data.tokenizer.path, or leave it empty to learn one.",
        )
    return path


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json``; text that looks like a special token is encoded as text.

    Raises:
        DataError: there is none, or it does not know its own end of text.
    """
    path = _file(directory)
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except OSError as error:
        raise DataError(f"tokenizer {path} cannot be read", found=str(error)) from error
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{path} is not a tokenizer", found=str(error)) from error
    eos_id(tokenizer, directory)
    # Not stored in the file: each loader chooses anew.
    tokenizer.encode_special_tokens = True
    # Stored in files that earlier versions took over as they were.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def vocab_size(tokenizer: Tokenizer) -> int:
    """Ids of ``tokenizer`` are below this; some may be unused."""
    return max(tokenizer.get_vocab().values()) + 1


def eos_id(tokenizer: Tokenizer, directory: Path) -> int:
    """Id of the token that ends a document, which ``tokenizer_config.json`` names; or DataError."""
    try:
        name = json.loads((directory / _CONFIG).read_text(encoding="utf-8")).get("eos_token") or END_OF_TEXT
    except (OSError, ValueError):
        name = END_OF_TEXT
    name = name["content"] if isinstance(name, dict) else name
    index = tokenizer.token_to_id(name)
    if index is None:
        raise DataError(
            "the tokenizer cannot end a document",
            expected=f"a token {name}",
            found="none",
            remedy="Set data.tokenizer.end_of_text to the one that it has.",
        )
    return index


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each token of ``tokenizer`` stands for; int32 [vocab_size].

    Special tokens count none. In byte-level BPE each character of an entry is one byte.
    """
    sizes = np.zeros(vocab_size(tokenizer), np.int32)
    for token, index in tokenizer.get_vocab().items():
        sizes[index] = len(token)
    for index, added in tokenizer.get_added_tokens_decoder().items():
        sizes[index] = 0 if added.special else len(added.content.encode())
    return sizes
