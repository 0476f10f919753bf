"""The tokens stage: every kept document as tokens, in the layout of ``lmcore.data.token_writer``.

Each shard is an artifact of its own, made of one shard of documents and the decisions about it, so documents
that are added leave the tokens of the others as they were. Training tokens are those of the shards, one after
another, each in the order of content hashes. What is held out is put in the order of content hashes over all
shards: its beginning is a fair sample of it, and the same however the corpus was cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.config import DataConfig, Identity
from lmcore.data.arrow import batches_of_lengths, column, joined, text_buffers
from lmcore.data.characters import middles_beyond_ascii
from lmcore.data.dedup import order_by_hash
from lmcore.data.encoding import Encoder
from lmcore.data.pool import Threads, Unit, Workshop, local_workers
from lmcore.data.splits import SPLITS, Split, document_files, hashes_of, splits_of_shard
from lmcore.data.token_writer import INDEX, TokenWriter, gather
from lmcore.data.tokenizer import TOKENIZER
from lmcore.data.tokens import TokenDataset
from lmcore.progress import Paced, Progress
from lmcore.store import Stage, sha256_file

SHARD_VERSION = 1
HASHES = "hashes.npy"
SAMPLE_DOCUMENTS = 10_000
SAMPLE_BYTES = 120  # of the middle of each, for tokens per word
_COMPARED_BYTES = 64  # of each, around what is beyond ASCII, where engines may differ
_COUNTED = 2_000  # whose words are counted
_KEPT_BYTES = 128_000_000
_BATCH_BYTES = 10_000_000  # more than a part of a large file, which has one batch then
_MERGED_TOKENS = 16_000_000

_Shard = tuple[Path, Path]  # its documents, and the decisions about them
_Tables = dict[Split, pa.Table]


def build_tokens(
    config: DataConfig,
    documents_dir: Path,
    splits_dir: Path,
    tokenizer_dir: Path,
    out: Path,
    progress: Progress,
    workshop: Workshop | None = None,
) -> dict[str, Any]:
    """Encode every kept document to Parquet, each ending with EOS.

    Args:
        config: Who works.
        documents_dir: What the documents stage made.
        splits_dir: What the splits stage made.
        tokenizer_dir: Any directory with a ``tokenizer.json`` that can end a document.
        out: Written to.
        progress: Told of shards.
        workshop: Where shards are made; None: here, and they are not kept.

    Returns:
        Documents, tokens and bytes of each split and in all, bytes per token, tokens per word, and the
        engine with the reason for it.

    Raises:
        DataError: the tokenizer cannot be used, or tokens do not stand for the text.
    """
    shards = [(path, splits_dir / "decisions" / path.name) for path in document_files(documents_dir)]
    made = 0
    with _workshop(workshop, config, documents_dir, out) as shop, contextlib.ExitStack() as stack:
        stack.callback(_read_already.clear)
        # First: to load the engines holds the interpreter's lock, which those who read need often.
        sample = _sample(shards, keep=isinstance(shop.workers, Threads))
        encoder = Encoder(tokenizer_dir, sample=sample.compared)
        summary: dict[str, Any] = {
            "engine": encoder.engine,
            "engine_reason": encoder.reason,
            "vocab_size": encoder.vocab_size,
            "eos_id": encoder.eos_id,
            **encoder.fertility(sample.middles),
        }
        digest = sha256_file(tokenizer_dir / TOKENIZER)
        _encoders.clear()
        _encoders[tokenizer_dir, digest, encoder.engine] = encoder
        paced = Paced(progress, "encode documents", len(shards), "shards")
        parts = []
        for artifact in shop.make(_unit(shard, tokenizer_dir, digest, encoder.engine) for shard in shards):
            parts.append(artifact.path)
            made += artifact.status == "built"
            paced.advance(1)
        totals = {split: _gather(split, parts, out / split) for split in SPLITS}
    paced.finish()
    for split, of_split in totals.items():
        summary |= {f"{split}_{name.removeprefix('num_')}": count for name, count in of_split.items()}
    for name in ("documents", "tokens", "bytes"):
        summary[name] = sum(of_split[f"num_{name}"] for of_split in totals.values())
    bytes_per_token = round(summary["bytes"] / summary["tokens"], 4)
    return {**summary, "bytes_per_token": bytes_per_token, "shards": len(shards), "shards_made": made}


@contextlib.contextmanager
def _workshop(
    workshop: Workshop | None, config: DataConfig, documents_dir: Path, out: Path
) -> Iterator[Workshop]:
    if workshop:
        yield workshop
        return
    size = sum(path.stat().st_size for path in document_files(documents_dir))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".shards-") as folder:
        yield Workshop(Path(folder), local_workers(config, size))


def _unit(shard: _Shard, tokenizer_dir: Path, tokenizer_digest: str, engine: str) -> Unit:
    documents, decisions = shard
    inputs = {
        "documents": sha256_file(documents),
        "decisions": sha256_file(decisions),
        "tokenizer": tokenizer_digest,
    }
    stage = Stage("tokens-shard", SHARD_VERSION, Identity({}, {}), inputs)
    return Unit(stage, encode_shard, (documents, decisions, tokenizer_dir, tokenizer_digest, engine))


def encode_shard(
    documents: Path, decisions: Path, tokenizer_dir: Path, tokenizer_digest: str, engine: str, out: Path
) -> dict[str, Any]:
    """Encode the kept documents of one shard into ``out/train``, ``out/validation`` and ``out/test``."""
    encoder = _encoder(tokenizer_dir, tokenizer_digest, engine)
    totals = {"documents": 0, "tokens": 0, "bytes": 0}
    tables = _read_already.pop((documents, decisions), None) or splits_of_shard(documents, decisions)
    for split, table in tables.items():
        if not len(table):
            continue
        options = {"eos_id": encoder.eos_id, "vocab_size": encoder.vocab_size}
        with TokenWriter(out / split, **options) as writer:
            whole = joined(table["text"])
            sizes = np.diff(text_buffers(whole)[1])
            for rows in batches_of_lengths(sizes, _BATCH_BYTES):
                batch = table.slice(rows.start, rows.stop - rows.start)
                texts = whole.slice(rows.start, len(batch))
                num_bytes = int(sizes[rows].sum())
                tokens, lengths = encoder.encode_documents(texts)
                ids, sources = (batch[name].to_pylist() for name in ("doc_id", "source"))
                writer.add(ids, sources, tokens, lengths, num_bytes)
                totals["documents"] += len(batch)
                totals["tokens"] += len(tokens)
                totals["bytes"] += num_bytes
        np.save(out / split / HASHES, hashes_of(table["content_hash"]))
    return totals


_encoders: dict[tuple[Path, str, str], Encoder] = {}


def _encoder(tokenizer_dir: Path, tokenizer_digest: str, engine: str) -> Encoder:
    """The engine that was chosen; each process loads it once for each tokenizer."""
    wanted = (tokenizer_dir, tokenizer_digest, engine)
    if wanted not in _encoders:
        _encoders.clear()
        _encoders[wanted] = Encoder(tokenizer_dir, engine=engine)
    return _encoders[wanted]


# --- the sample ------------------------------------------------------------------------------------


@dataclass
class _Sample:
    """Of each of some documents, what the engines are compared on, and its middle."""

    compared: list[str]
    middles: list[str]


def _sample(shards: Iterable[_Shard], *, keep: bool) -> _Sample:
    """Of each document of some shards, until there are enough; of all if there are few.

    Args:
        shards: All.
        keep: Keep what was read for ``encode_shard``, which works in this process.
    """
    found = _Sample([], [])
    drawn = sorted(shards, key=lambda shard: _draw(shard[0].name))
    for shard, (of_shard, tables) in zip(drawn, Threads(2).map(_sample_of_shard, drawn), strict=False):
        found.compared += of_shard.compared
        found.middles += of_shard.middles
        if keep:
            _keep(shard, tables)
        if len(found.middles) >= SAMPLE_DOCUMENTS:
            break
    step = max(1, len(found.middles) // _COUNTED)
    return _Sample(found.compared[:SAMPLE_DOCUMENTS], found.middles[::step])


def _sample_of_shard(documents: Path, decisions: Path) -> tuple[_Sample, _Tables]:
    tables = splits_of_shard(documents, decisions)
    found = _Sample([], [])
    for table in tables.values():
        data, offsets = text_buffers(joined(table["text"]))
        middles = offsets[:-1] + np.diff(offsets) // 2
        found.middles += _around(data, offsets, middles, SAMPLE_BYTES)
        found.compared += _around(data, offsets, middles_beyond_ascii(data, offsets), _COMPARED_BYTES)
    return found, tables


def _draw(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _around(data: np.ndarray, offsets: np.ndarray, places: np.ndarray, size: int) -> list[str]:
    """Of each text, at most ``size`` bytes around its place."""
    starts = np.maximum(offsets[:-1], places - size // 2)
    ends = np.minimum(offsets[1:], starts + size)
    # What is cut off of a character at either end is left out.
    return [
        data[start:end].tobytes().decode("utf-8", "ignore")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


_read_already: dict[_Shard, _Tables] = {}


def _keep(shard: _Shard, tables: _Tables) -> None:
    """Keep what was read of ``shard`` until it is encoded, if there is little: it is read but once."""
    kept = [tables, *list(_read_already.values())]
    if sum(table.nbytes for of_shard in kept for table in of_shard.values()) <= _KEPT_BYTES:
        _read_already[shard] = tables


# --- all shards ------------------------------------------------------------------------------------


def _gather(split: Split, parts: list[Path], out: Path) -> dict[str, int]:
    """Put the tokens of ``split`` of all shards together."""
    found = [part / split for part in parts if (part / split / INDEX).exists()]
    if not found:
        return {"num_tokens": 0, "num_documents": 0, "num_bytes": 0}
    return gather(found, out) if split == "train" else _merge(found, out)


def _merge(parts: list[Path], out: Path) -> dict[str, int]:
    """Write the documents of ``parts`` anew, in the order of their content hashes over all of them."""
    datasets = [TokenDataset(part) for part in parts]
    order = order_by_hash(np.concatenate([np.load(part / HASHES) for part in parts]))
    of_part = np.repeat(np.arange(len(parts)), [dataset.num_documents for dataset in datasets])[order]
    first_of_part = np.cumsum([0] + [dataset.num_documents for dataset in datasets])
    place = order - first_of_part[of_part]
    names = pa.concat_tables([_names(part) for part in parts]).take(column(order))
    lengths = np.concatenate([np.diff(dataset.document_offsets) for dataset in datasets])[order]
    num_bytes = sum(dataset.num_bytes for dataset in datasets)
    options = {"eos_id": datasets[0].eos_id, "vocab_size": datasets[0].vocab_size}
    with TokenWriter(out, **options) as writer:
        for rows in batches_of_lengths(lengths, _MERGED_TOKENS):
            tokens = [datasets[of_part[i]].document(int(place[i])) for i in range(rows.start, rows.stop)]
            some = names.slice(rows.start, len(tokens))
            ids, sources = (some[name].to_pylist() for name in ("doc_id", "source"))
            writer.add(ids, sources, np.concatenate(tokens), lengths[rows], num_bytes)
            num_bytes = 0  # they are counted once, with the first
    return {
        "num_tokens": int(lengths.sum()),
        "num_documents": len(order),
        "num_bytes": sum(dataset.num_bytes for dataset in datasets),
    }


def _names(part: Path) -> pa.Table:
    tables = []
    for path in sorted(part.glob("*.parquet")):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            tables.append(file.read(["doc_id", "source"]))
    return pa.concat_tables(tables)
