"""Print how long it takes to decide anew about many documents when a threshold was changed.

python tests/benchmarks/decide.py DOCS.jsonl[.zst] [--documents 1000000] [--times 5] [--near]

The documents stage reads the file with the rules of `web` (all three); its figures are written again and
again, a little different each time and under other names, until there are so many documents. Texts are left
out: deciding does not read them. Then the splits stage runs, as it does when `gopher.min_words` was changed.
``--near``: duplicates by MinHash are looked for too, which is everything about them but signatures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.config import DataConfig, NearDedupConfig, QualityConfig, SourceConfig
from lmcore.data import prepare
from lmcore.data.books import Books
from lmcore.data.dedup import HASH_BYTES
from lmcore.data.splits import document_files
from lmcore.progress import silent

SHARD_ROWS = 62_500
WORD_LIMITS = (50, 40, 60, 30, 70, 45, 55, 35, 65)


def config_of(path: Path, *, near: bool, min_words: int) -> DataConfig:
    """The rules of `web`, that one threshold, and a store's other defaults."""
    quality = QualityConfig.model_validate({"profile": "web", "gopher": {"min_words": min_words}})
    return DataConfig(
        sources=(SourceConfig(name="docs", kind="files", path=str(path)),),
        quality=quality,
        near_dedup=NearDedupConfig(enabled=near),
    )


def multiply(documents: Path, num_documents: int, out: Path) -> None:
    """Write what is stored of ``documents`` until there are ``num_documents``, without their texts."""
    (out / "documents").mkdir(parents=True)
    table = pa.concat_tables([pq.read_table(path) for path in document_files(documents)]).combine_chunks()
    rng = np.random.default_rng(0)
    entries = []
    for number, start in enumerate(range(0, num_documents, SHARD_ROWS)):
        rows = np.arange(start, min(num_documents, start + SHARD_ROWS))
        shard = table.take(pa.array(rows % len(table)))
        hashes = [pa.py_buffer(rng.bytes(HASH_BYTES * len(rows)))]
        written = {
            "doc_id": pa.array([f"docs:{row}" for row in rows]),
            "text": pa.array([""] * len(rows), pa.large_string()),
            "content_hash": pa.Array.from_buffers(pa.binary(HASH_BYTES), len(rows), [None, *hashes]),
        }
        for name, field in zip(shard.schema.names, shard.schema, strict=True):
            if field.type == pa.float64():
                near = shard[name].to_numpy() * (1 + 0.01 * rng.random(len(rows)))
                written[name] = pa.array(near)
            elif name.startswith("band_"):  # one document in ten shares a band with another
                bands = rng.integers(0, 2**63, len(rows)).astype(np.uint64)
                written[name] = pa.array(np.where(rng.random(len(rows)) < 0.1, rows // 2 % 1_000, bands))
        columns = [written.get(name, shard[name]) for name in shard.schema.names]
        target = out / "documents" / f"{number:05d}.parquet"
        pq.write_table(pa.Table.from_arrays(columns, schema=shard.schema), target, compression="zstd")
        books = Books(documents_in=len(rows), passed=len(rows)).to_json()
        entries.append({"source": "docs", "generation": 0, "bytes": 0, "books": books})
    (out / "books.json").write_text(json.dumps(entries), encoding="utf-8")


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("docs", type=Path)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--near", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = config_of(options.docs, near=options.near, min_words=50)
        (folder / "read").mkdir()
        prepare.build_documents(config, prepare.take_inventory(config), folder / "read", silent)
        multiply(folder / "read", options.documents, folder / "many")
        seconds, dropped = [], []
        for number in range(options.times + 1):
            out = folder / f"splits-{number}"
            out.mkdir()
            limit = WORD_LIMITS[number % len(WORD_LIMITS)]
            start = time.perf_counter()
            made = prepare.build_splits(
                config_of(options.docs, near=options.near, min_words=limit), folder / "many", out, silent
            )
            seconds.append(time.perf_counter() - start)
            dropped.append(options.documents - made["documents"])
    near = " and near duplicates" if options.near else ""
    print(f"{options.documents:,} documents, rules of web{near}: median of {options.times} after the first")
    print(f"decided anew in {statistics.median(seconds[1:]):.2f} s (the first {seconds[0]:.2f} s)")
    print("documents left out:", *(f"{count:,}" for count in dropped))


if __name__ == "__main__":
    main()
