"""A ``tokenizer.json`` made elsewhere: one that loses text is refused by the name of the part that does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from lmcore.errors import DataError

# Normalizers that leave text in NFC as it is, and pre-tokenizers that only cut.
_NORMALIZERS = ("NFC",)
_CUTTERS = ("Split", "ByteLevel", "Digits", "Punctuation", "UnicodeScripts", "FixedLength")
_BYTES = frozenset(pre_tokenizers.ByteLevel.alphabet())


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Read the file at ``path``.

    Raises:
        DataError: it is no JSON object, or no tokenizer that encodes every text without loss.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"tokenizer {path} cannot be read", found=str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DataError(
            f"{path} is not a tokenizer", expected="a tokenizer.json of `tokenizers`", found="other JSON"
        )
    if problem := next(_losses(content), None):
        raise DataError(
            f"tokenizer {path} does not keep every text",
            expected="a byte-level BPE whose normalizer is NFC or none and whose pre-tokenizer only cuts, "
            "as those of GPT-2, Llama 3 and Qwen",
            found=problem,
            remedy="Bring another tokenizer, or leave data.tokenizer.path empty to train one.",
        )
    return content


def deciding(content: dict[str, Any]) -> dict[str, Any]:
    """Name the parts of ``content`` that decide the ids of a text."""
    added = content.get("added_tokens") or []
    return {
        "model": content["model"].get("type", "BPE"),
        "entries": len(content["model"].get("vocab") or ()),
        "merges": len(content["model"].get("merges") or ()),
        "ignore_merges": bool(content["model"].get("ignore_merges")),
        "normalizer": "+".join(kind for kind, _ in _steps(content.get("normalizer"))) or "none",
        "pre_tokenizer": "+".join(kind for kind, _ in _steps(content.get("pre_tokenizer"))) or "none",
        "added_tokens": len(added),
        "added_tokens_in_text": sum(not token.get("special") for token in added),
    }


def _losses(content: dict[str, Any]) -> Iterator[str]:
    """Name the parts of a tokenizer that lose or change text."""
    yield from _model_losses(content["model"])
    for kind, _ in _steps(content.get("normalizer")):
        if kind not in _NORMALIZERS:
            yield f"normalizer {kind}, which changes text"
    steps = list(_steps(content.get("pre_tokenizer")))
    for kind, step in steps:
        if kind not in _CUTTERS or step.get("behavior") == "Removed":
            yield f"pre-tokenizer {kind}" + (" that removes what it finds" if kind in _CUTTERS else "")
        if kind == "ByteLevel" and step.get("add_prefix_space"):
            yield "pre-tokenizer ByteLevel with add_prefix_space, which adds a space to each document"
    times = [kind for kind, _ in steps].count("ByteLevel")
    if times == 0:
        yield "no pre-tokenizer ByteLevel: it is not byte-level"
    elif times > 1:
        yield f"pre-tokenizer ByteLevel {times} times, which spells bytes of bytes"
    for token in content.get("added_tokens") or ():
        if not token.get("special") and (token.get("lstrip") or token.get("rstrip")):
            yield f"added token {token.get('content')!r} with lstrip or rstrip, which takes white space"


def _model_losses(model: dict[str, Any]) -> Iterator[str]:
    if model.get("type", "BPE") != "BPE":
        yield f"model {model['type']}"
        return
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            yield f"BPE with {name} {model[name]!r}"
    if model.get("byte_fallback"):
        yield "BPE with byte_fallback (SentencePiece's, as of Llama 2)"
    vocabulary = model.get("vocab") or {}
    if missing := len(_BYTES - vocabulary.keys()):
        yield f"a vocabulary that lacks {missing} of the 256 bytes"
    if len(set(vocabulary.values())) != len(vocabulary):
        yield "a vocabulary in which several entries share an id"


def _steps(part: dict[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kinds and settings of the steps of a normalizer or pre-tokenizer."""
    if not part:
        return
    if part.get("type") == "Sequence":
        for step in part.get("normalizers") or part.get("pretokenizers") or ():
            yield from _steps(step)
    else:
        yield str(part.get("type")), part
