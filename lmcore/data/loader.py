"""From a stream of tokens to the batches of a step, by arithmetic on the step's number.

Sample ``i`` is the window ``tokens[i T : i T + T + 1]``, T inputs and their T targets, or a sequence packed
from pieces of documents. Step ``k`` takes the places [k B, (k + 1) B) of the order, and a rank its slice of
them, so the batch of a step is the same at any world size and a resumed run needs no more than the step's
number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmcore.data.order import Indices, Order
from lmcore.data.packing import Packing
from lmcore.errors import DataError

IGNORE_INDEX = -100


class TokenStream(Protocol):
    """What a loader reads; ``lmcore.data.tokens.TokenDataset`` is one."""

    num_tokens: int
    eos_id: int
    document_offsets: npt.NDArray[np.int64]

    def slice(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Return tokens [start, stop)."""
        ...

    def doc_id(self, index: int) -> str:
        """Return the name of document ``index``."""
        ...


@dataclass(frozen=True)
class Batch:
    """Sequences that are computed at a time.

    Attributes:
        tokens: [B, T] int64.
        targets: [B, T] int64, ``IGNORE_INDEX`` where there is nothing to learn.
        positions: [B, T] int64, from the start of the document; None without a document mask.
        document_ids: [B, T] int64; None without a document mask.
        sequences: [B] int64, a number for each sequence of the run; None: nobody needs it.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None = None
    document_ids: Tensor | None = None
    sequences: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move it to ``device``; from pinned memory while the host goes on."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Copy it to memory of the host that a GPU can read by itself."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        rest = (self.positions, self.document_ids, self.sequences)
        return Batch(
            change(self.tokens),
            change(self.targets),
            *(None if tensor is None else change(tensor) for tensor in rest),
        )


def documents_by_eos(inputs: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Return positions and document numbers, int64 [B, T], of ``inputs`` [B, T]; EOS begins a document."""
    return _documents_from(inputs == eos_id)


def _documents_from(begins: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.arange(begins.shape[1], device=begins.device).expand_as(begins)
    last_begin = torch.where(begins, places, 0).cummax(dim=1).values
    return places - last_begin, begins.cumsum(dim=1)


class Samples(Protocol):
    """Sequences of one length, by number."""

    @property
    def stream(self) -> TokenStream:
        """Where they are read from."""
        ...

    @property
    def seq_len(self) -> int:
        """Inputs of each."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, samples: Indices) -> Batch:
        """Read ``samples`` [B]."""
        ...

    def num_targets(self, samples: Indices) -> int:
        """Targets that count in ``samples``, without reading them."""
        ...

    def documents(self, samples: Indices) -> Indices:
        """Indices of the documents that ``samples`` touch, sorted."""
        ...


class Windows:
    """The windows of ``seq_len`` tokens of a stream.

    With ``document_mask`` the EOS that ends a document begins the next one as an input: attention does not
    reach behind it, and positions restart at it. So every token is a target in both modes, a document's first
    token is predicted from EOS alone, and that is also how evaluation and generation begin.

    Args:
        stream: The tokens.
        seq_len: Inputs of a window.
        document_mask: Whether batches carry documents and positions.
        vocab_size: Ids must be below it; 0: not checked.
    """

    def __init__(
        self, stream: TokenStream, seq_len: int, *, document_mask: bool, vocab_size: int = 0
    ) -> None:
        self.stream = stream
        self.seq_len = seq_len
        self.document_mask = document_mask
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        """Whole windows."""
        return max(0, self.stream.num_tokens - 1) // self.seq_len

    def batch(self, samples: Indices) -> Batch:
        """Read the windows of ``samples`` [B]; one past the end is padded with targets that do not count.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        length, end = self.seq_len, self.stream.num_tokens
        rows = np.zeros((len(samples), length + 1), dtype=np.int64)
        starts = samples * length
        for row, start in zip(rows, starts.tolist(), strict=True):
            tokens = self.stream.slice(min(start, end), min(start + length + 1, end))
            row[: len(tokens)] = tokens
        _check_vocabulary(rows, self.vocab_size)
        inputs, targets = torch.from_numpy(rows[:, :-1].copy()), rows[:, 1:].copy()
        missing = starts + length + 1 - end
        for row in np.flatnonzero(missing > 0).tolist():
            targets[row, max(0, length - int(missing[row])) :] = IGNORE_INDEX
        if not self.document_mask:
            return Batch(inputs, torch.from_numpy(targets))
        return Batch(inputs, torch.from_numpy(targets), *documents_by_eos(inputs, self.stream.eos_id))

    def num_targets(self, samples: Indices) -> int:
        """Targets that count in the windows of ``samples``, without reading them."""
        starts = samples * self.seq_len
        ends = np.minimum(starts + self.seq_len, self.stream.num_tokens - 1)
        return int(np.maximum(0, ends - starts).sum())

    def documents(self, samples: Indices) -> Indices:
        """Indices of the documents that the windows of ``samples`` touch, sorted."""
        starts = samples * self.seq_len
        last = np.minimum(starts + self.seq_len, self.stream.num_tokens - 1)
        first, last = self._document_of(starts), self._document_of(last)
        ranges = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        return np.unique(np.concatenate(ranges))

    def _document_of(self, places: Indices) -> Indices:
        return np.searchsorted(self.stream.document_offsets[:-1], places, "right").astype(np.int64) - 1


class PackedSequences:
    """Sequences that a plan has packed from pieces of documents.

    Each token of a piece is a target. Its input is the token before it, which is EOS for the first of a
    document, as in ``Windows``; with ``document_mask`` attention and positions begin anew with each piece.
    What is left of a sequence is padded with EOS, a document of its own, and targets that do not count.

    Args:
        stream: The tokens.
        packing: The plan.
        document_mask: Whether batches carry documents and positions.
        vocab_size: Ids must be below it; 0: not checked.
    """

    def __init__(
        self, stream: TokenStream, packing: Packing, *, document_mask: bool, vocab_size: int = 0
    ) -> None:
        self.stream = stream
        self.packing = packing
        self.seq_len = packing.seq_len
        self.document_mask = document_mask
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        """Sequences of the plan."""
        return len(self.packing)

    def batch(self, samples: Indices) -> Batch:
        """Read the sequences ``samples`` [B].

        Raises:
            DataError: an id is not in the vocabulary.
        """
        shape = (len(samples), self.seq_len)
        pieces, sizes = self.packing.pieces(samples), self.packing.sizes(samples)
        starts, lengths = pieces.starts, pieces.lengths
        padding_before = np.arange(len(samples)) * self.seq_len - (np.cumsum(sizes) - sizes)
        places = np.cumsum(lengths) - lengths + np.repeat(padding_before, pieces.counts)
        # Flat, one sequence after another: a piece is then one slice.
        inputs = np.full(shape[0] * shape[1], self.stream.eos_id, dtype=np.int64)
        targets = np.full_like(inputs, IGNORE_INDEX)
        for place, start, length, first in zip(
            places.tolist(), starts.tolist(), lengths.tolist(), self._is_first(starts).tolist(), strict=True
        ):
            tokens = self.stream.slice(start - (not first), start + length)
            targets[place : place + length] = tokens[-length:]
            inputs[place + first : place + length] = tokens[:-1]
        _check_vocabulary(inputs, self.vocab_size)
        _check_vocabulary(targets[targets != IGNORE_INDEX], self.vocab_size)
        rows = torch.from_numpy(inputs).view(shape), torch.from_numpy(targets).view(shape)
        if not self.document_mask:
            return Batch(rows[0], rows[1])
        begins = np.zeros(len(inputs), dtype=np.bool_)
        begins[places] = True
        padded = np.flatnonzero(sizes < self.seq_len)
        begins[padded * self.seq_len + sizes[padded]] = True
        return Batch(rows[0], rows[1], *_documents_from(torch.from_numpy(begins).view(shape)))

    def num_targets(self, samples: Indices) -> int:
        """Targets that count in ``samples``, without reading them."""
        return int(self.packing.sizes(samples).sum())

    def documents(self, samples: Indices) -> Indices:
        """Indices of the documents that ``samples`` touch, sorted."""
        starts = self.packing.pieces(samples).starts
        return np.unique(np.searchsorted(self.stream.document_offsets[:-1], starts, "right") - 1)

    def _is_first(self, starts: Indices) -> npt.NDArray[np.bool_]:
        """Whether a document starts there."""
        offsets = self.stream.document_offsets
        return offsets[np.searchsorted(offsets, starts)] == starts


def _check_vocabulary(ids: npt.NDArray[np.int64], vocab_size: int) -> None:
    if vocab_size and ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise DataError(
            "the tokens are not of the model's tokenizer",
            expected=f"ids in [0, {vocab_size})",
            found=f"ids from {ids.min()} to {ids.max()}",
            remedy="Tokenize again.",
        )


class SampleOrder(Protocol):
    """Which sample is at each place of a run."""

    def __getitem__(self, places: slice, /) -> Indices:
        """Return the samples at ``places`` [start, stop)."""
        ...


class TrainLoader:
    """The batches of each training step, for one rank.

    Args:
        windows: The samples.
        global_batch_size: Sequences of a step, over all ranks.
        micro_batch_size: Sequences of a batch.
        seed: Of the order.
        order: None: all samples, shuffled anew in each epoch.
        rank, world_size: Which slice of a step is ours.

    Raises:
        DataError: there are fewer samples than one step takes.
    """

    def __init__(
        self,
        windows: Samples,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        order: SampleOrder | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(windows) < global_batch_size:
            raise DataError(
                "the training split is smaller than one batch",
                expected=f"at least {global_batch_size} sequences of {windows.seq_len} tokens",
                found=f"{len(windows)} ({windows.stream.num_tokens} tokens)",
                remedy="Add text, or lower train.global_batch_tokens.",
            )
        self.windows = windows
        self.order = Order(len(windows), seed) if order is None else order
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.rank, self.world_size = rank, world_size
        # Runs of different seeds are far apart in the numbers of their sequences.
        self._first_number = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:7], "little")

    def samples_of_step(self, step: int) -> Indices:
        """Samples of step ``step`` (from 0), over all ranks."""
        size = self.global_batch_size
        return self.order[step * size : (step + 1) * size]

    def num_targets(self, step: int) -> int:
        """Targets that count in step ``step``, over all ranks."""
        return self.windows.num_targets(self.samples_of_step(step))

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Batches of this rank in step ``step``."""
        share = self.global_batch_size // self.world_size
        first = self.rank * share
        mine = self.samples_of_step(step)[first : first + share]
        for start in range(0, share, self.micro_batch_size):
            batch = self.windows.batch(mine[start : start + self.micro_batch_size])
            number = self._first_number + step * self.global_batch_size + first + start
            yield replace(batch, sequences=torch.arange(number, number + batch.tokens.shape[0]))

    def documents_of_step(self, step: int, at_most: int | None = None) -> list[str]:
        """Names of the documents that made step ``step``, over all ranks; the first ``at_most`` of them."""
        found = self.windows.documents(self.samples_of_step(step))[:at_most]
        return [self.windows.stream.doc_id(int(i)) for i in found]


def validation_batches(
    windows: Windows, *, max_tokens: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield this rank's share of the first ``max_tokens`` targets of a split.

    All ranks together see the same windows at any world size, the last one padded; each yields the same
    number of batches, so that collectives in the forward pass meet.
    """
    targets = min(max_tokens, windows.stream.num_tokens - 1)
    count = max(1, -(-targets // windows.seq_len))
    num_batches = -(-count // (batch_size * world_size))
    past_the_end = windows.stream.num_tokens  # a window there is padding alone
    for index in range(num_batches):
        first = (index * world_size + rank) * batch_size
        samples = np.arange(first, first + batch_size, dtype=np.int64)
        yield windows.batch(np.where(samples < count, samples, past_the_end))
