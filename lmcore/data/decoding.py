"""From tokens back to bytes, many at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmcore.data.tokenizer import eos_id, load_tokenizer
from lmcore.errors import DataError

END = 256  # the symbol after the last byte of a document


class Decoder:
    """Decodes tokens of a byte-level BPE by looking up what each spells.

    Args:
        tokenizer_dir: Holds ``tokenizer.json``.

    Attributes:
        eos_id: Id of the token that ends a document.
        vocab_size: Ids it knows are below this.

    Raises:
        DataError: there is no tokenizer, or it is not byte-level.
    """

    def __init__(self, tokenizer_dir: Path) -> None:
        tokenizer = load_tokenizer(tokenizer_dir)
        self.eos_id = eos_id(tokenizer, tokenizer_dir)
        vocabulary = tokenizer.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        added = tokenizer.get_added_tokens_decoder()
        spellings = [b""] * self.vocab_size
        for text, index in vocabulary.items():
            if index in added:
                spellings[index] = b"" if added[index].special else added[index].content.encode()
            else:
                spellings[index] = _spelling(text)
        self._sizes = np.array([len(spelling) for spelling in spellings], np.int64)
        self._symbol_counts = self._sizes.copy()
        self._symbol_counts[self.eos_id] = 1
        spelled = [
            np.array([END], np.uint16) if index == self.eos_id else np.frombuffer(spelling, np.uint8)
            for index, spelling in enumerate(spellings)
        ]
        self._symbols = np.concatenate(spelled).astype(np.uint16)
        self._starts = np.cumsum(self._symbol_counts) - self._symbol_counts

    def sizes(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes of text that each of ``tokens`` stands for, int64; special tokens count none.

        Raises:
            DataError: a token is not in the vocabulary.
        """
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise DataError(
                "the tokens are not of this tokenizer",
                expected=f"ids in [0, {self.vocab_size})",
                found=f"ids from {tokens.min()} to {tokens.max()}",
                remedy="Use the tokenizer that made them.",
            )
        return self._sizes[tokens]

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes of ``tokens`` one after another, uint16, with ``END`` where a document ends."""
        self.sizes(tokens)
        counts = self._symbol_counts[tokens]
        shifts = self._starts[tokens] - (np.cumsum(counts) - counts)
        return self._symbols[np.arange(counts.sum()) + np.repeat(shifts, counts)]

    def decode(self, tokens: np.ndarray) -> bytes:
        """Bytes of ``tokens``; the ends of documents leave no trace."""
        symbols = self.symbols(tokens)
        return symbols[symbols != END].astype(np.uint8).tobytes()


def _spelling(text: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in text)
    except KeyError as error:
        raise DataError(
            "the tokenizer is not byte-level", expected="entries that spell bytes", found=repr(error.args[0])
        ) from None


def _byte_of_each_character() -> dict[str, int]:
    # GPT-2's alphabet (Radford et al. 2019): bytes that print stand for themselves, the others follow 255.
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_of_each_character()
