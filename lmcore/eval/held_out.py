"""The text that models are measured on: the validation split, whole or its first documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmcore.data.decoding import END, Decoder
from lmcore.data.tokens import TokenDataset
from lmcore.errors import DataError

_BLOCK_TOKENS = 1 << 20


class HeldOut:
    """The first documents of a split, up to a number of bytes, at least one.

    Args:
        directory: Of the split.
        decoder: Of the tokenizer that made it.
        max_bytes: Whole documents up to this many bytes; 0: all.

    Attributes:
        stream: The split.
        num_documents, num_tokens, num_bytes: Of the documents taken; a document's EOS is a token of no
            bytes.

    Raises:
        DataError: the split is missing or damaged, or its tokens do not spell as many bytes as it says.
    """

    def __init__(self, directory: Path, decoder: Decoder, max_bytes: int = 0) -> None:
        self.stream = TokenDataset(directory)
        self.decoder = decoder
        if self.stream.eos_id != decoder.eos_id:
            raise self._other_tokenizer(f"EOS {self.stream.eos_id}", f"EOS {decoder.eos_id}")
        self._ends = ends = np.cumsum(self._document_bytes())
        if self.stream.num_bytes and ends[-1] != self.stream.num_bytes:
            raise self._other_tokenizer(f"{self.stream.num_bytes} bytes of text", f"{ends[-1]}")
        fitting = int(np.searchsorted(ends, max_bytes, "right")) if max_bytes else len(ends)
        self.num_documents = max(1, fitting)
        self.num_tokens = int(self.stream.document_offsets[self.num_documents])
        self.num_bytes = int(ends[self.num_documents - 1])
        if self.num_bytes == 0:
            raise DataError(f"there is no text in {directory}", expected="at least a byte to score")

    def documents(self, max_bytes: int = 0) -> list[bytes]:
        """Text of the first documents, in UTF-8: all, or whole ones up to ``max_bytes``, at least one.

        Raises:
            DataError: it is not UTF-8 in documents that end with EOS, or not as many bytes as counted.
        """
        ends = self._ends[: self.num_documents]
        count = max(1, int(np.searchsorted(ends, max_bytes, "right"))) if max_bytes else len(ends)
        offsets = self.stream.document_offsets
        documents, first = [], 0
        while first < count:  # in blocks of whole documents: a symbol takes 20 times the memory of its byte
            last = int(np.searchsorted(offsets, offsets[first] + _BLOCK_TOKENS, "right")) - 1
            last = min(max(last, first + 1), count)
            documents += self._decode(first, last)
            first = last
        return documents

    def _decode(self, first: int, last: int) -> list[bytes]:
        """Text of documents [first, last)."""
        offsets = self.stream.document_offsets
        symbols = self.decoder.symbols(self.stream.slice(int(offsets[first]), int(offsets[last])))
        ends = np.flatnonzero(symbols == END)
        starts = np.concatenate(([0], ends + 1))
        data = symbols.astype(np.uint8).tobytes()
        documents = [data[start:end] for start, end in zip(starts, ends, strict=False)]
        if starts[-1] != len(data) or len(documents) != last - first:
            raise self._other_tokenizer(f"{last - first} documents that end with EOS", f"{len(documents)}")
        expected = int(self._ends[last - 1] - (self._ends[first - 1] if first else 0))
        if sum(map(len, documents)) != expected:
            raise self._other_tokenizer(f"{expected} bytes", f"{sum(map(len, documents))}")
        for number, document in enumerate(documents, first):
            try:
                document.decode("utf-8")
            except UnicodeDecodeError as error:
                raise self._other_tokenizer("UTF-8", f"{error} in document {number}") from None
        return documents

    def _document_bytes(self) -> np.ndarray:
        ends = self.stream.document_offsets[1:]
        bytes_before = np.zeros(len(ends), np.int64)  # the end of each document
        total = 0
        for start, block in blocks(self.stream):
            sums = total + np.cumsum(self.decoder.sizes(block))
            first, last = np.searchsorted(ends, [start, start + len(block)], "right")
            bytes_before[first:last] = sums[ends[first:last] - start - 1]
            total = int(sums[-1])
        return np.diff(bytes_before, prepend=0)

    def _other_tokenizer(self, expected: str, found: str) -> DataError:
        return DataError(
            f"the tokens of {self.stream.directory} do not spell its text",
            expected=expected,
            found=found,
            remedy="Use the tokenizer that made them, or tokenize again.",
        )


def blocks(stream: TokenDataset) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the tokens of ``stream`` in order, a million at a time, each with its first position."""
    for start in range(0, stream.num_tokens, _BLOCK_TOKENS):
        yield start, stream.slice(start, min(start + _BLOCK_TOKENS, stream.num_tokens))
