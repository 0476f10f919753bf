"""Print MB/s of each step of data preparation, its peak memory, and how many times that is the peer's.

python tests/benchmarks/data.py DOCS.jsonl[.zst] [--peer PYTHON --peer-script datatrove_prepare.py]
                                [--times N] [--copies N] [--tokenizer DIR]

The work is what the peer does: mojibake repaired, the rules of Gopher, C4 and FineWeb, near duplicates, and
*all* documents tokenized to Parquet. MB are of the UTF-8 text that the file holds. Each of N times is a
process of its own with a store of its own; what numba compiles is compiled before. Medians are printed. With
``--copies`` the corpus is that many times as large, each copy with other first words. PYTHON is an
environment with datatrove and spaCy; it runs once, on the same file with the same tokenizer, between two
halves of ours: a machine that others use too is not the same for all of the minutes that it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from lmcore.config import (
    DataConfig,
    NearDedupConfig,
    QualityConfig,
    SourceConfig,
    TextConfig,
    TokenizerConfig,
)
from lmcore.data import prepare
from lmcore.data.pool import Processes
from lmcore.data.streams import chunks
from lmcore.progress import silent

T = TypeVar("T")
STEPS = ("find and digest", "documents", "splits", "tokens")
PEER_STEPS = {"all": "in all", "tokenize": "tokens"}


def config_of(path: Path, tokenizer: str = "", **options: object) -> DataConfig:
    """The peer's work, as settings."""
    settings: dict[str, object] = {
        "sources": (SourceConfig(name="docs", kind="files", path=str(path)),),
        "text": TextConfig(repair_mojibake=True),
        "quality": QualityConfig(profile="web"),
        "near_dedup": NearDedupConfig(enabled=True),
        "tokenizer": TokenizerConfig(vocab_size=32_000, path=tokenizer),
    }
    return DataConfig.model_validate(settings | options)


def work(path: Path, tokenizer: str) -> dict[str, float]:
    """Do it all once; seconds of each step, bytes of text, peak memory, and kept documents."""
    config = config_of(path, tokenizer)
    all_kept = {"quality": QualityConfig(profile="none"), "near_dedup": NearDedupConfig()}
    everything = config_of(path, tokenizer, exact_dedup=False, **all_kept)
    seconds: dict[str, float] = {}

    def timed(step: str, do: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = do()
        seconds[step] = time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        names = ("documents", "splits", "tokens", "all", "again", "kept")
        documents, splits, tokens, every, again, kept = (Path(folder, name) for name in names)
        for name in names:
            Path(folder, name).mkdir()
        inventory = timed("find and digest", lambda: prepare.take_inventory(config))
        shop = prepare.workshop(config, inventory.text_bytes, Path(folder, "store"))
        made = timed("documents", lambda: prepare.build_documents(config, inventory, documents, silent, shop))
        split = timed("splits", lambda: prepare.build_splits(config, documents, splits, silent, shop.workers))
        prepare.build_splits(everything, documents, every, silent)
        directory = Path(config.tokenizer.path)
        encode = lambda decisions, out: prepare.build_tokens(  # noqa: E731
            config, documents, decisions, directory, out, silent, shop
        )
        encoded = timed("tokens", lambda: encode(every, tokens))
        # Not ru_maxrss, which begins with what the process that started this one held.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
        if isinstance(shop.workers, Processes):  # any other child, as git is, begins with what we hold too
            peak += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * shop.workers.count
        timed("tokens of what is kept", lambda: encode(splits, kept))
        timed(
            "documents, nothing changed",
            lambda: prepare.build_documents(config, inventory, again, silent, shop),
        )
    print(
        f"    {encoded['documents']:,} documents, {encoded['tokens']:,} tokens by {encoded['engine']}",
        flush=True,
    )
    return seconds | {
        "bytes": made["bytes"],
        "peak": peak * 1024,
        "kept": split["documents"],
        "documents in": made["documents"],
    }


def lines_of(path: Path) -> Iterator[bytes]:
    """Lines of the file, uncompressed."""
    with path.open("rb") as stream:
        left = b""
        for chunk in chunks(stream, "".join(path.suffixes[-1:])):
            *whole, left = (left + chunk).split(b"\n")
            yield from whole
        if left:
            yield left


def copy_corpus(path: Path, copies: int, out: Path) -> int:
    """Write the corpus ``copies`` times, as lines of JSON; return the bytes of its text."""
    size = 0
    with out.open("wb") as file:
        for number in range(copies):
            for line in lines_of(path):
                text = json.loads(line)["text"]
                if number:
                    text = f"Copy {number} of this text differs.\n{text}"
                size += len(text.encode("utf-8", "replace"))
                file.write(json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return size


def learn_tokenizer(path: Path, out: Path) -> str:
    """A tokenizer of 32,000 entries, learned from the file."""
    config = config_of(path, quality=QualityConfig(profile="none"), near_dedup=NearDedupConfig())
    with tempfile.TemporaryDirectory() as folder:
        documents, splits = Path(folder, "documents"), Path(folder, "splits")
        for directory in (documents, splits, out):
            directory.mkdir()
        prepare.build_documents(config, prepare.take_inventory(config), documents, silent)
        prepare.build_splits(config, documents, splits, silent)
        prepare.build_tokenizer(config, documents, splits, out, silent)
    return str(out)


def run_peer(python: str, script: str, corpus: Path, tokenizer: str, folder: Path) -> dict[str, float]:
    """MB/s of each of the peer's steps, as it prints them."""
    command = [python, script, str(corpus), f"{tokenizer}/tokenizer.json", str(folder / "peer")]
    workers = ["--workers", str(os.cpu_count())]
    done = subprocess.run([*command, *workers], capture_output=True, text=True, check=True)
    found = re.findall(r"datatrove (\w+): [\d.]+ s, ([\d.]+) MB/s", done.stdout)
    return {name: float(rate) for name, rate in found}


def show(runs: list[dict[str, float]], size: int) -> dict[str, float]:
    """Print the table; MB/s of each step and in all."""
    rates: dict[str, float] = {}
    print(f"\n{os.cpu_count()} cores, {size / 1e6:.1f} MB of text, median of {len(runs)}")
    for run in runs:
        run["in all"] = sum(run[step] for step in STEPS)
    for step in (*STEPS, "in all", "tokens of what is kept", "documents, nothing changed"):
        seconds = statistics.median(run[step] for run in runs)
        rates[step] = size / 1e6 / seconds
        print(f"{step:<28} {seconds:8.2f} s {rates[step]:9.1f} MB/s")
    print(f"{'peak memory':<28} {max(run['peak'] for run in runs) / 1e9:8.2f} GB")
    return rates


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("docs", type=Path)
    parser.add_argument("--peer", default=os.environ.get("PEER", ""), help="Python with datatrove")
    parser.add_argument("--peer-script", default=os.environ.get("PEER_SCRIPT", ""))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(work(options.docs, options.tokenizer)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = folder / "docs.jsonl"
        size = copy_corpus(options.docs, options.copies, corpus)
        tokenizer = options.tokenizer or learn_tokenizer(corpus, folder / "tokenizer")
        command = [sys.executable, __file__, str(corpus), "--once", "--tokenizer", tokenizer]
        ours = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}  # as ``flows.environment`` has it
        ours.pop("PYTHONDONTWRITEBYTECODE", None)  # the peer is installed, and so compiled too
        runs, peer = [], {}
        for number in range(options.times + 1):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ours)
            if number:  # the first one compiles
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            if options.peer and number == options.times // 2:
                peer = run_peer(options.peer, options.peer_script, corpus, tokenizer, folder)
        rates = show(runs, size)
        if peer:
            print("seconds of each run:", *(f"{run['in all']:.2f}" for run in runs))
            for theirs, step in PEER_STEPS.items():
                ratio = rates[step] / peer[theirs]
                print(f"{step}: {ratio:.0f} times the peer's {peer[theirs]:.3f} MB/s")


if __name__ == "__main__":
    main()
