"""Print how fast documents are made from each kind of source and with each switch on, beside the plain path.

python tests/benchmarks/matrix.py [--mb 120] [--times 3] [--quick] [--only jsonl,privacy]

The corpus is source code of the installed packages, and generated pages; each row takes turns with the plain
path (one file of JSON lines, profile code) in the same run. MB are of the text of the documents. "cores" is
processor time over wall time, of as many workers as there are cores.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from lmcore.config import DataConfig
from lmcore.data import prepare
from lmcore.progress import silent

sys.path.insert(0, str(Path(__file__).parent))
import web

MOST_FILE_BYTES = 400_000
PRIVACY = ("emails", "ips", "phones", "cards", "secrets")


class Run(NamedTuple):
    """One run of a row: seconds, processor seconds, bytes of text."""

    seconds: float
    processor: float
    size: int


def texts(size: int) -> Iterator[str]:
    """Source files of the installed packages, ``size`` bytes in all; from the start again at their end."""
    paths = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    total, turn = 0, 0
    while total < size:
        for path in paths:
            if path.stat().st_size > MOST_FILE_BYTES:
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            yield f"# {turn} {path.name}\n{text}" if turn else text
            total += len(text.encode())
            if total >= size:
                return
        turn += 1


def write_jsonl(folder: Path, size: int) -> str:
    """One file of JSON lines."""
    path = folder / "a.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for text in texts(size):
            file.write(json.dumps({"text": text}) + "\n")
    return str(path)


def write_packed(folder: Path, size: int, kind: str) -> str:
    """One compressed file of JSON lines."""
    path = folder / f"a.jsonl.{kind}"
    pack = functools.partial(gzip.compress, compresslevel=6) if kind == "gz" else zstandard.compress
    path.write_bytes(pack(Path(write_jsonl(folder, size)).read_bytes()))
    return str(path)


def write_txt(folder: Path, size: int) -> str:
    """A text file for each document."""
    for number, text in enumerate(texts(size)):
        (folder / f"{number:06d}.txt").write_text(text, encoding="utf-8")
    return f"{folder}/*.txt"


def write_parquet(folder: Path, size: int) -> str:
    """One Parquet file, with row groups of 10,000 rows."""
    pq.write_table(pa.table({"text": list(texts(size))}), folder / "a.parquet", row_group_size=10_000)
    return str(folder / "a.parquet")


def write_html(folder: Path, size: int) -> str:
    """A file for each page."""
    web.write_html(folder, size)
    return f"{folder}/*.html"


def write_warc(folder: Path, size: int, suffix: str) -> str:
    """One web archive."""
    path = folder / f"a{suffix}"
    web.write_warc(path, size)
    return str(path)


KINDS: dict[str, Callable[[Path, int], str]] = {
    "jsonl": write_jsonl,
    "jsonl.gz": functools.partial(write_packed, kind="gz"),
    "jsonl.zst": functools.partial(write_packed, kind="zst"),
    "parquet": write_parquet,
    "txt": write_txt,
    "html": write_html,
    "warc": functools.partial(write_warc, suffix=".warc"),
    "warc.gz": functools.partial(write_warc, suffix=".warc.gz"),
}
SWITCHES: dict[str, dict[str, Any]] = {
    **{f"privacy.{name}": {"privacy": {name: True}} for name in PRIVACY},
    "privacy, all": {"privacy": dict.fromkeys(PRIVACY, True)},
    "language": {"language": {"enabled": True}},
    "mojibake": {"text": {"repair_mojibake": True}},
    "near_dedup": {"near_dedup": {"enabled": True}},
    "decontamination": {"decontamination": {"sources": [{"name": "set", "kind": "files", "path": "SET"}]}},
    "profile none": {"quality": {"profile": "none"}},
    "profile web": {"quality": {"profile": "web"}},
    "repeated_lines": {"repeated_lines": {"enabled": True}},
}
PLAIN: dict[str, Any] = {"quality": {"profile": "code"}, "limits": {"max_quarantined": 1.0}}
SPLITS = "repeated_lines"  # whose work is that of the next stage


def config_of(path: str, changes: dict[str, Any], evaluation: Path) -> DataConfig:
    """Settings of a row."""
    text = json.dumps(PLAIN | changes).replace('"SET"', json.dumps(str(evaluation)))
    source = {"name": "s", "kind": "files", "path": path}
    return DataConfig.model_validate({"sources": [source]} | json.loads(text))


def run(config: DataConfig, folder: Path, *, splits: bool = False) -> Run:
    """Make documents, and with ``splits`` decide about them too; compiling is not counted."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name)
        for stage in ("documents", "splits"):
            (out / stage).mkdir()
        inventory = prepare.take_inventory(config)
        shop = prepare.workshop(config, inventory.text_bytes, out / "store")
        start, before = time.perf_counter(), sum(os.times()[:4])
        summary = prepare.build_documents(config, inventory, out / "documents", silent, shop)
        if splits:
            prepare.build_splits(config, out / "documents", out / "splits", silent, shop.workers)
        return Run(time.perf_counter() - start, sum(os.times()[:4]) - before, summary["bytes"])


def show(name: str, rows: list[Run], plain: list[Run]) -> None:
    """Print the medians of one row, and its ratio to the plain runs that took turns with it."""
    speed = [row.size / row.seconds / 1e6 for row in rows]
    cores = [row.processor / row.seconds for row in rows]
    wall, processor = (
        statistics.median(
            (getattr(row, unit) / row.size) / (getattr(other, unit) / other.size)
            for row, other in zip(rows, plain, strict=True)
        )
        for unit in ("seconds", "processor")
    )
    print(
        f"{name:<18} {rows[0].size / 1e6:8.1f} {statistics.median(speed):8.1f} "
        f"{statistics.median(cores):6.2f} {wall:9.2f} {processor:10.2f}",
        flush=True,
    )


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mb", type=float, default=120.0)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="30 MB, once")
    parser.add_argument("--only", default="", help="rows whose names begin so")
    options = parser.parse_args()
    size, times = (30_000_000, 1) if options.quick else (int(options.mb * 1e6), options.times)
    wanted = tuple(options.only.split(","))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jsonl").mkdir()
        base = KINDS["jsonl"](folder / "jsonl", size)
        evaluation = folder / "set.jsonl"
        evaluation.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(200_000)))
        print(
            f"{'':<18} {'MB':>8} {'MB/s':>8} {'cores':>6} {'time':>9} {'processor':>10}   (ratios to plain)"
        )
        rows: list[tuple[str, DataConfig]] = []
        for kind, write in KINDS.items():
            if kind.startswith(wanted):
                (folder / kind).mkdir(exist_ok=True)
                path = base if kind == "jsonl" else write(folder / kind, size)
                rows.append((kind, config_of(path, {}, evaluation)))
        rows += [
            (switch, config_of(base, changes, evaluation))
            for switch, changes in SWITCHES.items()
            if switch.startswith(wanted)
        ]
        plain = config_of(base, {}, evaluation)
        run(plain, folder)
        for name, config in rows:
            splits = name == SPLITS
            run(
                config_of(str(evaluation), {}, evaluation) if name in KINDS else config, folder, splits=splits
            )
            pairs = [
                (run(plain, folder, splits=splits), run(config, folder, splits=splits)) for _ in range(times)
            ]
            show(name, [row for _, row in pairs], [row for row, _ in pairs])


if __name__ == "__main__":
    main()
