"""Damaged and hostile input: the books balance, every good record is kept, memory stays bounded."""

import json
import random
import subprocess
import sys
import zlib

import pyarrow.parquet as pq
import pytest
import zstandard

from lmcore.config import DataConfig, LimitsConfig, QualityConfig, SourceConfig
from lmcore.data.documents import build_documents
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits
from lmcore.progress import silent

# What is done to a good line, and whether its text survives.
DAMAGE = {
    "a byte that is no UTF-8": lambda line: line[:20] + b"\xff" + line[20:],
    "latin-1": lambda line: line.replace(b"mill", "m\u00fchle".encode("latin-1")),
    "cut off": lambda line: line[: len(line) // 2],
    "head lost": lambda line: line[len(line) // 2 :],
    "no text field": lambda line: line.replace(b'"text"', b'"test"'),
    "text is null": lambda line: b'{"text": null}',
    "text is a number": lambda line: b'{"text": 12}',
    "text is a list": lambda line: b'{"text": ["a"]}',
    "a list": lambda line: b"[" + line + b"]",
    "two records": lambda line: line + line,
    "bare control character": lambda line: line.replace(b"the", b"th\x01e"),
    "zeros": lambda line: b"\0" * len(line),
    "noise": lambda line: bytes(b for b in random.Random(len(line)).randbytes(400) if b not in b"\r\n"),
    "too large": lambda line: b'{"text": "' + b"x" * 30_000 + b'"}',
    "nested too deep": lambda line: b"[" * 20_000,
}


def good_line(number):
    return json.dumps({"text": f"the mill of number {number} grinds \u00e9t\u00e9 and hiver " * 3}).encode()


def config(path, **options):
    return DataConfig(
        sources=(SourceConfig(name="s", kind="files", path=str(path)),),
        quality=QualityConfig(profile="none"),
        **options,
    )


def test_ten_thousand_lines_with_every_kind_of_damage(tmp_path):
    draw, kinds = random.Random(5), list(DAMAGE)
    lines, good, bad = [], set(), 0
    for number in range(10_000):
        line = good_line(number)
        if draw.random() < 0.1:
            lines.append(DAMAGE[kinds[bad % len(kinds)]](line))
            bad += 1
        else:
            good.add(json.loads(line)["text"])
            # Line ends of another system and blank lines are no damage.
            lines.append(line + draw.choice([b"", b"", b"\r", b"\n", b"\n  \t"]))
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    settings = config(tmp_path / "*.jsonl", limits=LimitsConfig(max_record_bytes=20_000, max_quarantined=0.2))
    documents, splits = tmp_path / "documents", tmp_path / "splits"
    documents.mkdir()
    splits.mkdir()
    summary = build_documents(settings, take_inventory(settings), documents, silent)
    build_splits(settings, documents, splits, silent)
    books = summary["books"]
    assert (books["documents_in"], books["quarantined"]) == (10_000, bad)
    kept = [t for p in (documents / "documents").iterdir() for t in pq.read_table(p)["text"].to_pylist()]
    assert len(kept) == len(good)
    assert set(kept) == good
    raw = (tmp_path / "a.jsonl").read_bytes()
    aside = [row for p in (documents / "quarantine").iterdir() for row in pq.read_table(p).to_pylist()]
    assert all(raw[row["byte_offset"] :].startswith(row["raw"]) and row["reason"] for row in aside)
    assert sum(row["num_bytes"] for row in aside) > 60 * 30_000


BOMB = """
import pathlib, re, sys
from lmcore.config import DataConfig, SourceConfig, QualityConfig
from lmcore.data.documents import build_documents
from lmcore.data.sources import take_inventory
from lmcore.progress import silent
source = SourceConfig(name="s", kind="files", path=sys.argv[1])
config = DataConfig(sources=(source,), quality=QualityConfig(profile="none"))
out = pathlib.Path(sys.argv[2])
out.mkdir()
summary = build_documents(config, take_inventory(config), out, silent)
# Not ru_maxrss, which begins with what the process that started this one held.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
print(summary["books"]["passed"], summary["books"]["quarantined"], peak // 1024)
print(*summary["quarantine_examples"], sep="\\n")
"""


def bomb_of_gzip(unit, count):
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(unit) for _ in range(count)) + packer.flush()


def bomb_of_zstd(unit, count):
    packer = zstandard.ZstdCompressor(19).compressobj()
    return b"".join(packer.compress(unit) for _ in range(count)) + packer.flush()


@pytest.mark.parametrize("unit", [b" " * (1 << 20), b'{"text": "' + b"x" * 2_000_000 + b'"}\n'])
@pytest.mark.parametrize(("suffix", "pack"), [("gz", bomb_of_gzip), ("zst", bomb_of_zstd)])
def test_what_expands_too_much_is_set_aside_in_little_memory(tmp_path, suffix, pack, unit):
    (tmp_path / f"bomb.jsonl.{suffix}").write_bytes(pack(unit, 1_000_000_000 // len(unit)))
    (tmp_path / "good.jsonl").write_bytes(good_line(1) + b"\n" + good_line(2))
    command = [sys.executable, "-c", BOMB, f"{tmp_path}/*.jsonl*", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, *examples = done.stdout.splitlines()
    passed, quarantined, megabytes = map(int, first.split())
    assert passed >= 2
    assert quarantined == 1
    assert "expands more than 200 times" in examples[0]
    assert megabytes < 512
