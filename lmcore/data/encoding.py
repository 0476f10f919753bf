"""Encode documents, with the fast engine where it is known to agree with the reference one.

gigatoken encodes a byte-level BPE many times faster than ``tokenizers``, for the split patterns it knows.
It is used when it loads the tokenizer and gives the same tokens on hostile text and on a sample of the
documents.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmcore.data.arrow import batches_of_lengths, bytes_array, column, text_array, text_buffers
from lmcore.data.characters import texts_holding, texts_with
from lmcore.data.compiled import compiled, kept_table
from lmcore.data.pieces import cut_offsets, inner_place, keeps_tokens, places
from lmcore.data.tokenizer import PATTERNS, TOKENIZER, eos_id, load_tokenizer, token_bytes, vocab_size
from lmcore.errors import DataError

# Text on which two readings of a pattern part: case folding, spaces, digits, joiners, rare line ends.
HOSTILE_TEXTS = (
    "",
    " ",
    "\n",
    "  \n \n\n\t x  ",
    "a  b   c    \n",
    "\r\n \r x\r",
    "I'LL we'Ve it's 'S '\u017f 'T\u017f K\u212a \u0131\u0130",
    "1 12 123 1234 12345 \u0661\u0662\u0663\u0664 \u216b\u00b2\u00bd \U0001d7ce\U0001d7cf",
    "a\u00a0\u2003b\u2028c\u2029d\u0085e\u180ef\u200bg\u3000",
    "e\u0301 a\u0345 \u0d3e\u093f \u0e33 \u1100\u1161\u11a8",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \ufe0f\u20e3 \U0001f3fd",
    "\x00\x01\x7f \ufeff\ufffd \U0010ffff \ufdd0 \ue000",
    "\u65e5\u672c\u8a9e\u3001\u30c6\u30b9\u30c8\u3002 \u4f60\u597d",
    "\ud55c\uad6d\uc5b4 \u0627\u0644\u0639 \u05e9\u05dc",
    "def f(x):\n\treturn {'a': [1, 2.5e-3]}  # \u2026\n\n\n",
    "\U0003318f's \u088f's \ua7ce123 \U0002b73a's \U0001e6c0x",  # of Unicode 17
    "!!!??? ...---\n\n===\r\n/* */ <|x|> </s> <s>",
    "x" * 500 + " " * 500 + "9" * 500 + "\n" * 500 + "'" * 50,
)

_REFERENCE_CHARS, _ENCODING_CHARS = 2_000_000, 64  # of a batch, and that an encoding counts for by itself
_LARGE_BYTES = 1 << 20  # a text of more is encoded in pieces, which a text of less does not need
_PIECES_BYTES = 8 << 20
_PARALLELISM = "TOKENIZERS_PARALLELISM"  # which tokenizers reads at each call
_ONE_AT_A_TIME = threading.Lock()


class Encoder:
    """Encodes text by the tokenizer of a directory; text that looks like a special token stays text.

    gigatoken must encode hostile texts and the sample as ``tokenizers`` does.

    Args:
        tokenizer_dir: Any directory with a ``tokenizer.json`` that can end a document.
        engine: ``tokenizers``: it alone.
        sample: Documents to compare the engines on.

    Attributes:
        engine: ``gigatoken`` or ``tokenizers``.
        reason: Why this one.
        eos_id: Id of the token that ends a document.
        vocab_size: Entries of the vocabulary.
    """

    def __init__(self, tokenizer_dir: Path, engine: str = "", sample: Sequence[str] = ()) -> None:
        self.engine, self.reason = "tokenizers", "chosen before"
        texts = [*HOSTILE_TEXTS, *sample]
        with ThreadPoolExecutor(1) as beside:
            self._reference = load_tokenizer(tokenizer_dir)
            self._fast: Any = None
            expected: Future[tuple[np.ndarray, np.ndarray]] | None = None
            if engine != self.engine:
                # It does not hold the interpreter's lock: it encodes while the other one is loaded, which
                # takes as long as one thread needs, and would wait for a core if there were more.
                expected = beside.submit(self._encode_alone, texts)
                self._fast = self._load_fast(tokenizer_dir)
            self._can_cut = keeps_tokens(
                json.loads((tokenizer_dir / TOKENIZER).read_bytes()), tuple(PATTERNS.values())
            )
            self._specials = [
                token.content.encode()
                for token in self._reference.get_added_tokens_decoder().values()
                if token.special
            ]
            self._token_bytes = token_bytes(self._reference)
            self.eos_id = eos_id(self._reference, tokenizer_dir)
            self.vocab_size = vocab_size(self._reference)
            if expected is not None:
                self._compare(texts, expected, sample)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode ``texts`` without EOS.

        Returns:
            All tokens one after another, int32 [num_tokens], and how many each text has, int64 [len(texts)].

        Raises:
            DataError: the tokens do not stand for as many bytes as the text has.
        """
        return self.encode_bytes([text.encode() for text in texts])

    def encode_bytes(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encode ``texts``, which are UTF-8, as ``encode`` does."""
        ended, lengths = self.encode_documents(bytes_array(texts))
        is_text = np.ones(len(ended), bool)
        is_text[np.cumsum(lengths) - 1] = False
        return ended[is_text], lengths - 1

    def encode_documents(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Encode ``texts`` (``pa.large_string``), each ending with EOS, as ``encode`` does."""
        tokens, lengths = self._encode_whole(texts)
        ended = np.empty(len(tokens) + len(lengths), np.int32)
        found = np.empty(len(lengths), np.int64)
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        _end_documents(tokens, starts, self._token_bytes, self.eos_id, ended, found)
        expected = np.diff(text_buffers(texts)[1])
        if (found != expected).any():
            raise self._lost_text(texts, found, expected)
        return ended, lengths + 1

    def _encode_whole(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Encode ``texts``, large ones and those with special tokens in pieces that have their tokens."""
        cuts = self._cuts(texts)
        if not len(cuts):
            return self._encode_any(texts)
        offsets, first = cut_offsets(text_buffers(texts)[1], cuts)
        parts = []
        for rows in batches_of_lengths(np.diff(offsets), _PIECES_BYTES):
            some = pa.py_buffer(offsets[rows.start : rows.stop + 1])
            length = rows.stop - rows.start
            parts.append(self._encode_any(pa.LargeStringArray.from_buffers(length, some, texts.buffers()[2])))
        lengths = np.add.reduceat(np.concatenate([of_part for _, of_part in parts]), first)
        return _flat([tokens for tokens, _ in parts]), lengths

    def _encode_any(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        if self._fast is None:
            return self._encode_reference(texts.to_pylist())
        return self._encode_fast(texts)

    def _cuts(self, texts: pa.Array) -> np.ndarray:
        """Where to cut ``texts``, as offsets into their bytes in ascending order; int64."""
        cuts = [np.empty(0, np.int64)]
        if not self._can_cut:
            return cuts[0]
        data, offsets = text_buffers(texts)
        # A special token that is cut is text to every engine: the fast one can have it.
        inside = {special: inner_place(special) for special in self._specials if self._fast is not None}
        specials = sorted((special for special, place in inside.items() if place), key=len, reverse=True)
        if specials and (held := texts_holding(specials, data, offsets)).any():
            any_of = re.compile(b"|".join(map(re.escape, specials)))
            for i in np.flatnonzero(held).tolist():
                found = any_of.finditer(data.data, int(offsets[i]), int(offsets[i + 1]))
                cuts.append(np.fromiter((one.start() + inside[one[0]] for one in found), np.int64))
        large = np.flatnonzero(np.diff(offsets) > _LARGE_BYTES)
        edges = zip(offsets[large].tolist(), offsets[large + 1].tolist(), strict=True)
        cuts += [np.fromiter(places(data.data, start, end), np.int64) for start, end in edges]
        return np.unique(np.concatenate(cuts))

    def fertility(self, texts: Sequence[str]) -> dict[str, float]:
        """Tokens to a word (a run without white space) of ``texts``, as ``tokens_per_word``."""
        words = sum(len(text.split()) for text in texts)
        return {"tokens_per_word": round(len(self.encode(texts)[0]) / max(1, words), 4)}

    def _compare(
        self,
        texts: Sequence[str],
        expected: Future[tuple[np.ndarray, np.ndarray]],
        sample: Sequence[str],
    ) -> None:
        found = None
        with self._or_without():
            if self._fast is not None:  # in one batch, as documents are encoded
                found = self._encode_fast(text_array(texts))
        reference = expected.result()
        if found is None:
            return
        if not all(map(np.array_equal, reference, found)):
            self._do_without("gigatoken gives other tokens on the sample")
            return
        self.engine, self.reason = (
            "gigatoken",
            f"agrees with tokenizers on {len(HOSTILE_TEXTS)} hostile texts and {len(sample)} documents",
        )

    def _load_fast(self, tokenizer_dir: Path) -> Any:
        with self._or_without():
            import gigatoken

            return gigatoken.Tokenizer.from_json((tokenizer_dir / TOKENIZER).read_bytes())

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except ImportError:
            self._do_without("gigatoken is not installed")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            self._do_without(f"gigatoken refuses: {' '.join(str(error).split())[:200]}")

    def _do_without(self, reason: str) -> None:
        self._fast, self.engine, self.reason = None, "tokenizers", reason

    def _encode_reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids: list[np.ndarray] = []
        # Each encoding holds its tokens as texts too, and more: few are held at a time.
        sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + _ENCODING_CHARS
        for rows in batches_of_lengths(sizes, _REFERENCE_CHARS):
            some = list(texts[rows])
            encoded = self._reference.encode_batch_fast(some, add_special_tokens=False)
            ids += [np.asarray(one.ids, np.int32) for one in encoded]
        return _flat(ids), np.fromiter(map(len, ids), np.int64, len(ids))

    def _encode_alone(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """``_encode_reference`` on one thread."""
        with _ONE_AT_A_TIME:
            before = os.environ.get(_PARALLELISM, "true")  # as if it were not set
            os.environ[_PARALLELISM] = "false"
            try:
                return self._encode_reference(texts)
            finally:
                # Never taken out: others may read the environment meanwhile, whose place then stays the same.
                os.environ[_PARALLELISM] = before

    def _encode_fast(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        risky = self._risky(texts)
        if not len(risky):
            return _plain(self._fast.encode_batch(_as_awkward(texts)))
        is_safe = np.ones(len(texts), bool)
        is_safe[risky] = False
        tokens, lengths = _plain(self._fast.encode_batch(_as_awkward(texts.filter(column(is_safe)))))
        pieces = iter(np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else ())
        others = self._encode_reference(texts.take(column(risky)).to_pylist())
        slow = iter(np.split(others[0], np.cumsum(others[1])[:-1]))
        merged = [next(pieces) if safe else next(slow) for safe in is_safe.tolist()]
        return _flat(merged), np.fromiter(map(len, merged), np.int64, len(merged))

    def _risky(self, texts: pa.Array) -> np.ndarray:
        """Which of ``texts`` the reference engine must encode; int64 [how many]."""
        # gigatoken turns the text of a special token into its id. And each engine has the Unicode tables of
        # its own year: what is newer than Python's may be a letter to one and nothing to the other.
        data, offsets = text_buffers(texts)
        risky = texts_holding(self._specials, data, offsets)
        for i in np.flatnonzero(texts_with(_rare(), data, offsets)).tolist():
            risky[i] |= _holds_unassigned(texts[i].as_py())
        return np.flatnonzero(risky)

    def _lost_text(self, texts: pa.Array, found: np.ndarray, expected: np.ndarray) -> DataError:
        wrong = int(np.argmax(found != expected))
        return DataError(
            f"{self.engine} lost text",
            expected=f"tokens that stand for {expected[wrong]} bytes",
            found=f"{found[wrong]} for {texts[wrong].as_py()[:60]!r}",
            remedy="Please report this; data.tokenizer.pattern may be changed meanwhile.",
        )


def _holds_unassigned(text: str) -> bool:
    """Whether Python's tables do not know a character of ``text``."""
    return any(unicodedata.category(character) == "Cn" for character in set(text))


@kept_table
def _rare() -> np.ndarray:
    """Marks of unassigned characters, and of all beyond the first 65,536; uint8 [0x110000]."""
    marks = np.ones(0x110000, np.uint8)
    marks[:0x10000] = [unicodedata.category(chr(code)) == "Cn" for code in range(0x10000)]
    return marks


@compiled
def _end_documents(tokens, starts, token_bytes, eos_id, ended, sums):
    """Copy ``tokens`` to ``ended``, EOS behind each text; and count the bytes that those of each stand for.

    They are -1 where a token is not in the vocabulary.
    """
    for d in range(len(starts) - 1):
        total, known = 0, True
        for i in range(starts[d], starts[d + 1]):
            token = tokens[i]
            ended[i + d] = token
            inside = 0 <= token < len(token_bytes)
            known &= inside
            total += token_bytes[token if inside else 0]
        ended[starts[d + 1] + d] = eos_id
        sums[d] = total if known else -1


def _flat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int32), *parts])


def _as_awkward(texts: pa.Array) -> Any:
    """``texts`` as an awkward array of UTF-8 bytes, without a copy."""
    import awkward as ak

    data: Any
    data, offsets = text_buffers(texts)
    content = ak.contents.NumpyArray(data, parameters={"__array__": "byte"})
    is_bytes = {"__array__": "bytestring"}
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), content, parameters=is_bytes))


def _plain(ragged: Any) -> tuple[np.ndarray, np.ndarray]:
    """Flat int32 tokens and int64 lengths of an awkward array of lists, without a copy."""
    import awkward as ak

    lists = ak.to_layout(ragged).to_ListOffsetArray64(True)
    offsets = np.asarray(lists.offsets)
    tokens = ak.to_numpy(lists.content)[: offsets[-1]]
    is_plain = tokens.dtype.itemsize == np.dtype(np.int32).itemsize
    return tokens.view(np.int32) if is_plain else tokens.astype(np.int32), np.diff(offsets)
