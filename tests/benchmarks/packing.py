"""Print what a plan costs and wastes: padding, documents cut, CPU time; on files or the standard library.

python tests/benchmarks/packing.py ['GLOB' [PROFILE]]    (run from the root of a checkout)

The limit for planning is one stable sort of the same lengths, measured in the same run; for reading, windows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from lmcore.config import DataConfig, QualityConfig, SourceConfig
from lmcore.data import prepare
from lmcore.data.loader import PackedSequences, Samples, Windows
from lmcore.data.mixture import Mixture, Share
from lmcore.data.order import Order
from lmcore.data.packing import Packing, pack
from lmcore.data.tokens import TokenDataset
from lmcore.progress import silent

T = TypeVar("T")

SEQ_LENS = (128, 512, 2_048, 8_192)
MANY_DOCUMENTS = 10_000_000
BATCH = 64
NUM_BATCHES = 50


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what ``work`` returns, and its CPU seconds: it has one thread, and the machine may be shared."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def make_tokens(config: DataConfig, out: Path) -> TokenDataset:
    """Prepare the training split."""
    documents, splits, tokenizer, tokens = (
        out / name for name in ("documents", "splits", "tokenizer", "tokens")
    )
    for path in (documents, splits, tokenizer, tokens):
        path.mkdir()
    prepare.build_documents(config, prepare.take_inventory(config), documents, silent)
    prepare.build_splits(config, documents, splits, silent)
    prepare.build_tokenizer(config, documents, splits, tokenizer, silent)
    prepare.build_tokens(config, documents, splits, tokenizer, tokens, silent)
    return TokenDataset(tokens / "train")


def count_cut(packing: Packing, offsets: np.ndarray) -> tuple[int, int]:
    """Documents in more than one piece, and those of them that would fit a sequence."""
    documents = np.searchsorted(offsets, packing.pieces(np.arange(len(packing))).starts, "right") - 1
    cut = np.flatnonzero(np.bincount(documents) > 1)
    return len(cut), int((offsets[cut + 1] - offsets[cut] <= packing.seq_len).sum())


def show_plans(offsets: np.ndarray) -> None:
    """Print a row for each length and method."""
    every = np.arange(len(offsets) - 1)
    lengths = np.diff(offsets)
    _, limit = timed(lambda: np.argsort(lengths.astype(np.int32), kind="stable"))
    print(f"{len(every):,} documents, {offsets[-1]:,} tokens, median {np.median(lengths):.0f}")
    print(f"one sort of their lengths: {limit:.4f} s")
    print("seq_len  method     sequences  padding  documents cut  of these need not  seconds  sorts")
    for seq_len in SEQ_LENS:
        for method in ("chunk", "best_fit"):
            packing, seconds = timed(lambda t=seq_len, m=method: pack(offsets, every, t, m))
            cut, needless = count_cut(packing, offsets)
            print(
                f"{seq_len:7} {method:>9} {len(packing):11,} {packing.padding:8.3%} {cut / len(every):14.1%}"
                f" {needless / max(1, cut):18.1%} {seconds:8.3f} {seconds / limit:6.1f}",
                flush=True,
            )


def time_reading(dataset: TokenDataset, seq_len: int) -> None:
    """Read random batches, windows and packed sequences in turn."""
    packing = pack(dataset.document_offsets, np.arange(dataset.num_documents), seq_len, "best_fit")
    kinds: dict[str, Samples] = {
        "windows": Windows(dataset, seq_len, document_mask=True),
        "best_fit": PackedSequences(dataset, packing, document_mask=True),
    }
    seconds = dict.fromkeys(kinds, 0.0)
    for number in range(NUM_BATCHES):
        for kind, samples in kinds.items():
            picked = Order(len(samples), 0)[number * BATCH : (number + 1) * BATCH]
            seconds[kind] += timed(lambda s=samples, p=picked: s.batch(p))[1]
    pieces = packing.pieces(np.arange(len(packing))).counts.mean()
    for kind, spent in seconds.items():
        print(f"read {kind:>9} of {seq_len}: {NUM_BATCHES * BATCH * seq_len / spent / 1e6:7.1f} M tokens/s")
    print(f"    {pieces:.1f} pieces a sequence; {seconds['best_fit'] / seconds['windows']:.1f} times as long")


def time_mixture() -> None:
    """Lay out a mixture of 20 sources, and ask for steps far apart."""
    weights = np.random.default_rng(0).random(20) + 0.05
    shares = [Share(str(i), i * 10**6, 10**6, weight, 10**7) for i, weight in enumerate(weights.tolist())]
    mixture, seconds = timed(lambda: Mixture(shares, 0))
    print(f"mixture of 20 capped sources: {seconds:.2f} s", end="; ")
    _, seconds = timed(lambda: [mixture[start : start + 1_024] for start in range(0, 10**8, 10**6)])
    print(f"the samples of a step of 1,024, anywhere: {seconds * 10:.2f} ms")


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    torch.set_num_threads(1)  # CPU time is to be work, not waiting threads
    options: dict[str, Any] = {}
    if arguments:
        options["sources"] = (SourceConfig(name="files", kind="files", path=arguments[0]),)
    if arguments[1:]:
        options["quality"] = QualityConfig.model_validate({"profile": arguments[1]})
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_tokens(DataConfig(**options), Path(folder))
        show_plans(dataset.document_offsets)
        time_reading(dataset, 2_048)
    print("made up: lengths of a log-normal distribution")
    lengths = np.random.default_rng(0).lognormal(5.8, 1.2, MANY_DOCUMENTS).astype(np.int64) + 1
    show_plans(np.concatenate([[0], np.cumsum(lengths)]))
    time_mixture()


if __name__ == "__main__":
    main(sys.argv[1:])
