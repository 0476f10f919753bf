"""Models to Hugging Face and from it: ``python -m lmcore.model.hf export MODEL_DIR DIR``, ``import DIR``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lmcore.errors import GristmillError
from lmcore.model.hf.export import MAX_FILE_BYTES, export
from lmcore.model.hf.weights import HFWeights
from lmcore.model.io import TOKENIZER_FILES, SavedModel
from lmcore.model.manifest import unverified


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "import":
            sys.stdout.write(recipe_sections(options.directory))
        else:
            saved = SavedModel(options.model)
            if not saved.verified:
                sys.stderr.write(f"note: {unverified(options.model)}\n")
            config, vocab_size, tensors = saved.config, saved.vocab_size, saved.tensors()
            export(
                options.directory,
                tensors,
                config,
                vocab_size,
                options.model,
                dtype=options.dtype,
                max_file_bytes=options.max_file_bytes,
                manifest=True,
            )
            sys.stdout.write(f"{options.directory} is a Hugging Face model now\n")
    except GristmillError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def recipe_sections(directory: Path) -> str:
    """What a recipe must say to go on from the model in ``directory``, as YAML.

    Raises:
        CheckpointError: there is no whole model.
        ConfigError: it is of a family that we lack.
    """
    weights = HFWeights(directory)
    if not weights.verified:
        sys.stderr.write(f"note: {unverified(directory)}\n")
    path = str(weights.directory.absolute())
    size = sum(tensor.numel() for tensor in weights.parameters.values())
    sections: dict[str, Any] = {
        "model": weights.config.model_dump(mode="json"),
        "train": {"initial_weights": path},
    }
    note = ""
    if (weights.directory / TOKENIZER_FILES[0]).is_file():
        tokenizer = {"path": path, **_end_of_text(weights.directory / TOKENIZER_FILES[1])}
        sections = {"data": {"tokenizer": tokenizer}, **sections}
    else:
        note = "# It has no tokenizer.json: set data.tokenizer.path to its tokenizer.\n"
    head = f"# A {weights.family} of {size:,} parameters and {weights.vocab_size:,} rows of embeddings.\n"
    return head + note + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


def _end_of_text(described: Path) -> dict[str, str]:
    try:
        token = json.loads(described.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return {}
    token = token.get("content") if isinstance(token, dict) else token
    return {"end_of_text": token} if token else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lmcore.model.hf",
        description="Models to Hugging Face directories, and from them.",
        epilog="Example: python -m lmcore.model.hf export run/model mill-hf --dtype bf16",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="Write a model directory as a Hugging Face one.")
    out.add_argument("model", type=Path, metavar="MODEL_DIR")
    out.add_argument("directory", type=Path, metavar="DIR")
    out.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="Type of the weights.")
    out.add_argument("--max-file-bytes", type=int, default=MAX_FILE_BYTES, help="Weights of one file.")
    into = commands.add_parser("import", help="Check a Hugging Face model; print what a recipe must say.")
    into.add_argument("directory", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
