"""Continue text: ``python -m lmcore.eval.generate MODEL_DIR --prompt TEXT``."""

from __future__ import annotations

import argparse
import codecs
import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmcore.config import LaunchConfig, SamplingConfig, parse
from lmcore.data.decoding import Decoder
from lmcore.data.tokenizer import load_tokenizer
from lmcore.errors import CheckpointError, DataError, GristmillError
from lmcore.eval.sampling import draw
from lmcore.eval.scorer import DividedScorer
from lmcore.model.attention import KVCache
from lmcore.model.io import load_model, trained_seq_len
from lmcore.model.manifest import unverified
from lmcore.model.transformer import Transformer
from lmcore.parallel.mesh import choose_device
from lmcore.store import MANIFEST


class Generator:
    """Continues prompts, one at a time, so that a text does not depend on what else is drawn.

    Args:
        model: Ready to evaluate.
        tokenizer_dir: Of its tokenizer.
        max_tokens: Longest text that it reads at once: the length it was trained on.

    Attributes:
        is_divided: Whether all processes must draw together.

    Raises:
        CheckpointError: the tokenizer has more entries than the model.
    """

    is_divided = False

    def __init__(self, model: Transformer, tokenizer_dir: Path, max_tokens: int) -> None:
        self.model = model
        self._open(tokenizer_dir, max_tokens, model.vocab_size)

    def _open(self, tokenizer_dir: Path, max_tokens: int, vocab_size: int) -> None:
        self.max_tokens = max_tokens
        self.tokenizer = load_tokenizer(tokenizer_dir)
        self.decoder = Decoder(tokenizer_dir)
        if self.decoder.vocab_size > vocab_size:
            raise CheckpointError(
                f"the tokenizer at {tokenizer_dir} is not this model's",
                expected=f"at most {vocab_size} entries",
                found=f"{self.decoder.vocab_size}",
            )

    @classmethod
    def load(cls, directory: Path, device: torch.device | str = "cpu") -> Generator:
        """Read a model directory, its tokenizer included.

        Raises:
            CheckpointError: the model is missing or damaged.
            DataError: its tokenizer is.
        """
        return cls(load_model(directory, device), directory, trained_seq_len(directory))

    def text(self, prompt: str, sampling: SamplingConfig) -> str:
        """Return the continuation of ``prompt``, the prompt left out."""
        return "".join(self.stream(prompt, sampling))

    def stream(self, prompt: str, sampling: SamplingConfig) -> Iterator[str]:
        """Yield the continuation of ``prompt`` as it comes; what is not UTF-8 becomes U+FFFD.

        Raises:
            DataError: the prompt is not text.
        """
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        for token in self.continue_tokens(self._encode(prompt), sampling):
            if piece := decode(self.decoder.decode(np.array([token]))):
                yield piece
        if rest := decode(b"", True):
            yield rest

    def continue_tokens(self, prompt: Sequence[int], sampling: SamplingConfig) -> Iterator[int]:
        """Yield tokens after ``prompt`` until EOS, which is not yielded, or ``max_new_tokens``.

        The prompt is read as the beginning of a document. A text that outgrows the model slides on: the
        last half of ``max_tokens`` tokens is read again, and what was before is forgotten.
        """
        generator = torch.Generator().manual_seed(sampling.seed % (1 << 63))
        text, unread, cache = [self.decoder.eos_id, *prompt], 0, None
        for _ in range(sampling.max_new_tokens):
            if cache is None or len(text) - unread + cache.length > cache.max_tokens:
                cache = self._new_cache()
                if len(text) > cache.max_tokens:
                    text = text[-max(1, cache.max_tokens // 2) :]
                unread = 0
            token = draw(self._next_logits(text[unread:], cache), sampling, generator)
            if token == self.decoder.eos_id:
                return
            yield token
            unread = len(text)
            text.append(token)

    @torch.inference_mode()
    def _next_logits(self, tokens: Sequence[int], cache: Any) -> torch.Tensor:
        row = torch.tensor([tokens], device=self.model.embedding.weight.device)  # [1, T]
        logits = self.model.logits(self.model.hidden(row, cache=cache)[0, -1])
        # The model may have more rows than the tokenizer has entries, for the sake of alignment.
        return logits[: self.decoder.vocab_size].float().cpu()

    def _new_cache(self) -> Any:
        weight = self.model.embedding.weight
        return KVCache(self.model.config, 1, self.max_tokens, weight.device, weight.dtype)

    def _encode(self, prompt: str) -> list[int]:
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError("the prompt is not UTF-8", found=error.reason) from None
        return self.tokenizer.encode(prompt, add_special_tokens=False).ids


class _Read:
    """What a model without a cache has read: all of it is read again for each token."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)


class DividedGenerator(Generator):
    """Continues prompts with a model that is divided over processes, which all draw the same.

    Args:
        scorer: The model.
        tokenizer_dir: Of its tokenizer.
        max_tokens: Longest text that it reads at once.
    """

    is_divided = True

    def __init__(self, scorer: DividedScorer, tokenizer_dir: Path, max_tokens: int) -> None:
        self.scorer = scorer
        self._open(tokenizer_dir, max_tokens, scorer.vocab_size)

    def _next_logits(self, tokens: Sequence[int], cache: Any) -> torch.Tensor:
        cache.tokens += tokens
        return self.scorer.next_logits(cache.tokens)[: self.decoder.vocab_size]

    def _new_cache(self) -> Any:
        return _Read(self.max_tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a prompt and its continuation; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        sampling = _sampling(options)
        generator = Generator.load(options.model, choose_device(LaunchConfig()))
        if not (options.model / MANIFEST).is_file():
            sys.stderr.write(f"note: {unverified(options.model)}\n")
        _print_text(options.prompt, generator.stream(options.prompt, sampling))
    except GristmillError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        return 130
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more as it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _print_text(prompt: str, pieces: Iterator[str]) -> None:
    live = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know every character
    # The first piece before the prompt is shown: a prompt that is refused is an error alone.
    for piece in itertools.chain([prompt + next(pieces, "")], pieces):
        sys.stdout.write(piece)
        if live:
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _sampling(options: argparse.Namespace) -> SamplingConfig:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return parse(SamplingConfig, given, where="the command line")


def _parser() -> argparse.ArgumentParser:
    defaults = SamplingConfig()
    parser = argparse.ArgumentParser(
        prog="python -m lmcore.eval.generate",
        description="Continue a prompt with a trained model.",
        epilog='Example: python -m lmcore.eval.generate run/model --prompt "def main():" --temperature 0',
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--prompt", default="", help="Beginning of the text.")
    for name, kind in (
        ("max_new_tokens", int),
        ("temperature", float),
        ("top_k", int),
        ("top_p", float),
        ("seed", int),
    ):
        description = SamplingConfig.model_fields[name].description
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            help=f"{description}; {getattr(defaults, name)} if not set",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
