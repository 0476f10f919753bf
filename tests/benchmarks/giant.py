"""Peak memory and time of each stage of the data on one giant document, beside the document's size.

    python tests/benchmarks/giant.py                     100 MB of a text that spells a special token
    python tests/benchmarks/giant.py --mb 20 --switches  with masks, language, mojibake and near duplicates
    python tests/benchmarks/giant.py --mb 1000           what 1 GB takes

Each stage runs in a process of its own. The base is what such a process takes for a small document alone:
libraries and compiled code.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from lmcore.config import DataConfig, LimitsConfig, SourceConfig

STORY = "Once upon a time there was a mill by the river.\n<|endoftext|>\n"
SMALL = "A small document of the mill, by the river, where all of it began. " * 20
STAGES = ("inventory", "documents", "splits", "tokenizer", "tokens")
SWITCHES: dict[str, Any] = {
    "privacy": dict.fromkeys(("emails", "ips", "phones", "cards", "secrets"), True),
    "language": {"enabled": True},
    "text": {"repair_mojibake": True},
    "near_dedup": {"enabled": True},
    "quality": {"profile": "web"},
}


def run_stage(stage: str, folder: Path, config: DataConfig, results: Any) -> None:
    """Run one stage on what those before left in ``folder``; its seconds and peak bytes to ``results``."""
    from lmcore.data.documents import build_documents
    from lmcore.data.encode import build_tokens
    from lmcore.data.sources import take_inventory
    from lmcore.data.splits import build_splits
    from lmcore.data.tokenizer import build_tokenizer
    from lmcore.progress import silent

    out = folder / stage
    out.mkdir()
    inventory = take_inventory(config) if stage in ("inventory", "documents") else None
    start = time.perf_counter()
    if stage == "documents" and inventory:
        build_documents(config, inventory, out, silent)
    elif stage == "splits":
        build_splits(config, folder / "documents", out, silent)
    elif stage == "tokenizer":
        build_tokenizer(config, folder / "documents", folder / "splits", out, silent)
    elif stage == "tokens":
        build_tokens(config, folder / "documents", folder / "splits", folder / "tokenizer", out, silent)
    seconds = time.perf_counter() - start
    own, children = (
        resource.getrusage(who).ru_maxrss << 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    results.put((seconds, own, children))


def measure(folder: Path, num_bytes: int, switches: bool) -> dict[str, tuple[float, int]]:
    """Seconds and peak bytes of each stage, for a document of ``num_bytes`` and small ones."""
    (folder / "raw").mkdir(parents=True)
    with (folder / "raw" / "a.txt").open("w") as file:
        for _ in range(max(1, num_bytes // len(STORY) // 1000)):
            file.write(STORY * min(1000, max(1, num_bytes // len(STORY))))
    for number in range(20):
        (folder / "raw" / f"b{number}.txt").write_text(f"{number} {SMALL}")
    config = DataConfig(
        sources=(SourceConfig(name="s", kind="files", path=str(folder / "raw" / "*.txt")),),
        limits=LimitsConfig(max_record_bytes=max(10_000_000, 2 * num_bytes)),
        workers=1,
        split_seed=1,  # by which the giant is learned from
        **(SWITCHES if switches else {"quality": {"profile": "none"}}),
    )
    if switches:  # measured by it, not dropped
        config = config.model_copy(update={"quality": config.quality.model_copy(update={"profile": "none"})})
    found = {}
    context = multiprocessing.get_context("spawn")
    for stage in STAGES:
        results = context.Queue()
        process = context.Process(target=run_stage, args=(stage, folder, config, results))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{stage}: ended with {process.exitcode}")
            break
        seconds, own, _ = results.get()
        found[stage] = seconds, own
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--switches", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = measure(Path(name, "base"), len(STORY), options.switches)
        large = measure(Path(name, "large"), options.mb * 1_000_000, options.switches)
    print("stage       seconds   peak MB   base MB   MB above base for each MB of the document")
    for stage, (seconds, peak) in large.items():
        above = (peak - base[stage][1]) / (options.mb * 1e6)
        print(f"{stage:10} {seconds:8.1f} {peak / 1e6:9.0f} {base[stage][1] / 1e6:9.0f} {above:9.1f}")


if __name__ == "__main__":
    main()
