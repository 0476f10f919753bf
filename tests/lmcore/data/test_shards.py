"""Shards are made alone: what did not change is not made again, and how they are cut decides nothing."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.config import DataConfig, QualityConfig, SourceConfig, TokenizerConfig
from lmcore.data import growth, prepare, sources
from lmcore.data.pool import Processes, Threads, Workshop
from lmcore.data.shards import cut
from lmcore.data.tokens import TokenDataset
from lmcore.progress import silent

WORDS = "mill stone grain flour water wheel sack miller river bread oven field wind sail gear"


def text_of(number, num_words=400):
    draw = random.Random(number)
    return " ".join(draw.choices(WORDS.split(), k=num_words)) + f" {number}\n"


def write(folder, count):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.txt").write_text(text_of(number))
    return folder


@pytest.fixture
def hundred(tmp_path):
    return write(tmp_path / "hundred", 100)


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "corpus", 30)


class Mill:
    """The four stages, in directories of their own each time, with shards that are kept."""

    def __init__(self, root, workers=None, **options):
        self.root, self.store, self.count = root, root / "store", 0
        self.workers = workers or Threads(2)
        self.options = options

    def config(self, corpus, pattern="*.txt", **options):
        settings = {
            "sources": (SourceConfig(name="c", kind="files", path=f"{corpus}/{pattern}"),),
            "quality": QualityConfig(profile="none"),
            "near_dedup": {"enabled": True},
            "validation_fraction": 0.1,
            "tokenizer": TokenizerConfig(vocab_size=300),
            "shard_bytes": 2_500,
        }
        return DataConfig(**settings | self.options | options)

    def turn(self, corpus, inventory=None, **options):
        config = self.config(corpus, **options)
        self.count += 1
        self.at = {n: self.root / str(self.count) / n for n in ("documents", "splits", "tokenizer", "tokens")}
        for path in self.at.values():
            path.mkdir(parents=True)
        documents, splits, tokenizer, tokens = self.at.values()
        shop = Workshop(self.store, self.workers)
        inventory = inventory or prepare.take_inventory(config)
        made = {"documents": prepare.build_documents(config, inventory, documents, silent, shop)}
        made["splits"] = prepare.build_splits(config, documents, splits, silent, self.workers)
        made["tokenizer"] = prepare.build_tokenizer(config, documents, splits, tokenizer, silent)
        made["tokens"] = prepare.build_tokens(config, documents, splits, tokenizer, tokens, silent, shop)
        return made

    def decisions(self):
        paths = sorted((self.at["splits"] / "decisions").iterdir())
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        return {row["doc_id"]: (row["decision"], row["duplicate_of"]) for row in rows}

    def files(self):
        return {
            path.relative_to(self.root / str(self.count)).as_posix(): path.read_bytes()
            for path in (self.root / str(self.count)).rglob("*")
            if path.is_file()
        }


def test_one_file_more_redoes_its_own_shard(hundred, tmp_path):
    mill = Mill(tmp_path)
    first = mill.turn(hundred)
    assert first["documents"]["shards_made"] == first["documents"]["shards"] > 60
    again = mill.turn(hundred)
    assert again["documents"]["shards_made"] == again["tokens"]["shards_made"] == 0
    tokenizer = TokenizerConfig(path=str(mill.at["tokenizer"]))
    mill.turn(hundred, tokenizer=tokenizer)
    (hundred / "0505.txt").write_text(text_of(1_000))
    more = mill.turn(hundred, tokenizer=tokenizer)
    assert more["documents"]["documents"] == 101
    assert more["documents"]["shards_made"] <= 2
    assert more["tokens"]["shards_made"] <= 2
    (hundred / "070.txt").write_text(text_of(2_000))
    assert mill.turn(hundred, tokenizer=tokenizer)["documents"]["shards_made"] == 1


def test_the_bytes_are_the_same_for_any_workers(corpus, tmp_path):
    alone = Mill(tmp_path / "alone", Threads(1))
    summaries = alone.turn(corpus)
    for workers in (Threads(4), Processes(2)):
        other = Mill(tmp_path / repr(workers), workers)
        assert other.turn(corpus) == summaries
        assert other.files() == alone.files()


def test_what_is_held_out_does_not_depend_on_shards(corpus, tmp_path):
    fine, coarse = Mill(tmp_path / "fine"), Mill(tmp_path / "coarse", shard_bytes=10**9)
    one, other = fine.turn(corpus, test_fraction=0.2), coarse.turn(corpus, test_fraction=0.2)
    assert one["documents"]["shards"] > other["documents"]["shards"]
    assert fine.decisions() == coarse.decisions()
    assert {decision for decision, _ in fine.decisions().values()} == {"train", "validation", "test"}
    for split in ("validation", "test"):
        sets = [TokenDataset(mill.at["tokens"] / split) for mill in (fine, coarse)]
        assert sets[0].num_documents == one["splits"][f"{split}_documents"] > 0
        assert sets[0].digest == sets[1].digest
        for dataset in sets:
            dataset.verify()
    assert one["tokens"]["train_tokens"] == other["tokens"]["train_tokens"]
    assert sum(one["tokens"][f"{s}_documents"] for s in ("train", "validation", "test")) == 30


def test_a_large_file_of_lines_is_read_in_parts_and_appended_lines_redo_the_last(tmp_path, monkeypatch):
    rows = [json.dumps({"text": text_of(number)}) for number in range(60)]
    rows[7:7] = ["", "{broken"]
    path = tmp_path / "large.jsonl"
    path.write_text("\n".join(rows) + "\n")
    mill = Mill(tmp_path, shard_bytes=1)
    whole = mill.turn(tmp_path, pattern="*.jsonl")
    before = mill.decisions()
    monkeypatch.setattr(sources, "PART_BYTES", 10_000)
    parts = mill.turn(tmp_path, pattern="*.jsonl")
    assert mill.decisions() == before
    assert parts["splits"]["books"] == whole["splits"]["books"]
    assert parts["documents"]["inventory"]["files"] == 1
    assert whole["documents"]["shards"] == 1
    assert parts["documents"]["shards"] > 10
    with path.open("a") as file:
        file.write("\n".join(json.dumps({"text": text_of(number)}) for number in range(100, 103)))
    more = mill.turn(tmp_path, pattern="*.jsonl")
    assert more["documents"]["documents"] == 63
    assert more["documents"]["shards_made"] <= 2
    assert set(before) < set(mill.decisions())


def test_small_files_are_gathered_and_large_ones_stand_alone():
    def files(sizes):
        return [sources.SourceFile("c", "", f"{i:05d}", size, str(i)) for i, size in enumerate(sizes)]

    source = SourceConfig(name="c")
    small = files([10] * 5_000)
    shards = cut([source], [small], 1_000)
    assert [file for shard in shards for file in shard.files] == small
    assert 30 < len(shards) < 100
    assert max(shard.num_bytes for shard in shards) <= 2_000 + 10
    assert all(len(shard.files) == 1 for shard in cut([source], [files([5_000] * 20)], 1_000))


# --- a corpus that grows ---------------------------------------------------------------------------


def grown(mill, corpus, journal):
    config = mill.config(corpus)
    inventory = growth.in_generations(sources.take_inventory(config), journal)
    growth.remember(inventory, journal)
    return mill.turn(corpus, inventory)


def test_what_comes_later_is_added_and_leaves_the_earlier_as_it_was(corpus, tmp_path):
    mill, journal = Mill(tmp_path), tmp_path / "journal.json"
    first = grown(mill, corpus, journal)
    before, files = mill.decisions(), mill.files()
    kept = [name for name, (decision, _) in before.items() if decision == "train"]
    # Sorted before all others: one like an old document, a copy of one, and one that is new.
    (corpus / "000-alike.txt").write_text(text_of(5) + "and a little more\n")
    (corpus / "000-copy.txt").write_text(text_of(6))
    (corpus / "000-new.txt").write_text(text_of(3_000))
    second = grown(mill, corpus, journal)
    after = mill.decisions()
    assert {name: after[name] for name in before} == before
    assert after["c:000-alike.txt"] == ("near_duplicate", "c:005.txt")
    assert after["c:000-copy.txt"] == ("duplicate", "c:006.txt")
    assert after["c:000-new.txt"][0] in ("train", "validation")
    assert second["tokenizer"] == first["tokenizer"]
    assert second["documents"]["first_generation"] == first["documents"]["first_generation"]
    assert second["splits"]["first_generation"] == first["splits"]["first_generation"]
    assert second["documents"]["shards_made"] <= 3
    assert second["tokens"]["shards_made"] <= 3
    shards = first["documents"]["shards"]
    for number in range(shards):
        for name in (f"documents/documents/{number:05d}.parquet", f"splits/decisions/{number:05d}.parquet"):
            assert mill.files()[name] == files[name]
    dataset = TokenDataset(mill.at["tokens"] / "train")
    assert [dataset.doc_id(i) for i in range(len(kept))] == [
        TokenDataset(tmp_path / "1/tokens/train").doc_id(i) for i in range(len(kept))
    ]


def test_a_file_that_went_or_changed_leaves_its_generation(corpus, tmp_path):
    mill, journal = Mill(tmp_path), tmp_path / "journal.json"
    grown(mill, corpus, journal)
    (corpus / "001.txt").unlink()
    (corpus / "002.txt").write_text(text_of(4_000))
    config = mill.config(corpus)
    inventory = growth.in_generations(sources.take_inventory(config), journal)
    old, new = inventory.generations
    assert {file.name for file in old} == {f"{i:03d}.txt" for i in range(30)} - {"001.txt", "002.txt"}
    assert [file.name for file in new] == ["002.txt"]
    journal.write_text("[[")
    with pytest.raises(Exception, match="cannot be read"):
        growth.in_generations(inventory, journal)


def write_groups(path, texts, rows=5):
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rows, use_dictionary=False)


def rows_of(mill):
    paths = sorted((mill.at["documents"] / "documents").iterdir())
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_a_large_parquet_file_is_read_in_parts(tmp_path, monkeypatch):
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [text_of(i) for i in range(60)]
    write_groups(folder / "a.parquet", texts)
    whole = Mill(tmp_path / "whole")
    assert whole.turn(folder, pattern="*.parquet", shard_bytes=10**9)["documents"]["shards"] == 1
    monkeypatch.setattr(sources, "PART_BYTES", 4_000)
    inventory = prepare.take_inventory(whole.config(folder, "*.parquet"))
    assert len(inventory.files) > 2
    assert inventory.num_files == 1
    assert inventory.total_bytes == (folder / "a.parquet").stat().st_size
    parts = Mill(tmp_path / "parts")
    made = parts.turn(folder, pattern="*.parquet", shard_bytes=1_000)
    assert made["documents"]["shards"] == made["documents"]["shards_made"] == len(inventory.files)
    assert rows_of(parts) == rows_of(whole)
    assert parts.decisions() == whole.decisions()
    assert parts.turn(folder, pattern="*.parquet", shard_bytes=1_000)["documents"]["shards_made"] == 0
    write_groups(folder / "a.parquet", [*texts[:-1], "Another end.\n" * 20])
    write_groups(folder / "b.parquet", texts[:3])
    assert parts.turn(folder, pattern="*.parquet", shard_bytes=1_000)["documents"]["documents"] == 63


def test_damage_in_a_part_of_a_parquet_file_costs_its_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 4_000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    path = folder / "a.parquet"
    pq.write_table(
        pa.table({"text": [text_of(i) for i in range(60)]}), path,
        row_group_size=5, use_dictionary=False, write_page_checksum=True,
    )  # fmt: skip
    raw = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(7).column(0)
    raw[column.data_page_offset + column.total_compressed_size - 100] ^= 1
    path.write_bytes(raw)
    mill = Mill(tmp_path / "mill")
    made = mill.turn(folder, pattern="*.parquet", limits={"max_quarantined": 0.5})["documents"]
    assert len(prepare.take_inventory(mill.config(folder, "*.parquet")).files) > 2
    assert (made["books"]["documents_in"], made["books"]["quarantined"]) == (60, 5)
    assert [row["record"] for row in rows_of(mill)] == [*range(35), *range(40, 60)]
