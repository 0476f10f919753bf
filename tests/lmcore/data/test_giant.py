"""A giant document costs each stage a bounded multiple of itself, and a sample no more than is asked for."""

import subprocess
import sys

import pytest

from lmcore.config import DataConfig, LimitsConfig, QualityConfig, SourceConfig, TokenizerConfig
from lmcore.data.documents import build_documents
from lmcore.data.encode import build_tokens
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits
from lmcore.data.tokenizer import build_tokenizer
from lmcore.data.tokens import TokenDataset
from lmcore.progress import silent

STORY = "Once upon a time there was a mill by the river.\n<|endoftext|>\n"
MOST_PER_BYTE = {"documents": 12, "splits": 6, "tokenizer": 12, "tokens": 16}


def config_of(folder, **tokenizer):
    return DataConfig(
        sources=(SourceConfig(name="s", kind="files", path=str(folder / "raw" / "*.txt")),),
        limits=LimitsConfig(max_record_bytes=1_000_000_000),
        quality=QualityConfig(profile="none"),
        tokenizer=TokenizerConfig(vocab_size=400, **tokenizer),
        split_seed=1,
        workers=1,
    )


def prepare(folder, giant, small=30, **tokenizer):
    (folder / "raw").mkdir()
    (folder / "raw" / "giant.txt").write_text(giant, newline="")
    for number in range(small):
        (folder / "raw" / f"{number}.txt").write_text(f"{number} a small document of the mill, \n" * 20)
    config = config_of(folder, **tokenizer)
    d, s, t, k = (folder / name for name in ("d", "s", "t", "k"))
    for path in (d, s, t, k):
        path.mkdir()
    build_documents(config, take_inventory(config), d, silent)
    build_splits(config, d, s, silent)
    made = build_tokenizer(config, d, s, t, silent)
    return made, build_tokens(config, d, s, t, k, silent)


def test_one_document_gives_a_sample_no_more_than_was_asked_for(tmp_path):
    made, tokens = prepare(tmp_path, STORY * 40_000, sample_bytes=200_000)
    assert 100_000 < made["sample_bytes"] <= 200_000
    assert tokens["bytes"] > 2_500_000
    found = [TokenDataset(tmp_path / "k" / name) for name in ("train", "validation")]
    assert sum(dataset.num_bytes for dataset in found) == tokens["bytes"]


def test_giant_documents_do_not_empty_the_sample(tmp_path):
    """Their characters were counted on, and their hashes are beyond the share that is read."""
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        made, _ = prepare(folder, f"Story {seed}. " + STORY * 20_000, sample_bytes=50_000)
        assert made["sample_bytes"] > 20_000


@pytest.mark.long
def test_memory_of_each_stage_is_a_bounded_multiple_of_a_giant_document():
    """By the benchmark, which measures each stage in a process of its own."""
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/giant.py", "--mb", "60"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[0] in MOST_PER_BYTE]
    assert len(rows) == len(MOST_PER_BYTE)
    for stage, *_, per_byte in rows:
        assert float(per_byte) < MOST_PER_BYTE[stage], done.stdout
