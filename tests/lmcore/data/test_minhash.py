import random
import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import DataConfig, NearDedupConfig, SourceConfig
from lmcore.data.documents import build_documents
from lmcore.data.duplicates import Grouping, Pairs, find_alike, find_copies
from lmcore.data.minhash import band_hashes
from lmcore.data.pool import Threads
from lmcore.data.sources import take_inventory
from lmcore.data.splits import build_splits
from lmcore.progress import silent

NEAR = NearDedupConfig(enabled=True)
FOLDING = NearDedupConfig(enabled=True, numbers="fold")


def words(draw, count):
    return ["".join(draw.choices("abcdefghij", k=6)) for _ in range(count)]


def shingles(text, size=5):
    found = text.lower().split()
    return {tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))}


def jaccard(a, b):
    a, b = shingles(a), shingles(b)
    return len(a & b) / len(a | b)


def planted(count, similarity, seed=0):
    """Pairs of documents of about that Jaccard similarity: one is the other with words replaced."""
    draw = random.Random(seed)
    # A word replaced costs five shingles of both.
    share = (1 - similarity) / (1 + similarity)
    for _ in range(count):
        original = words(draw, 300)
        other = list(original)
        for place in range(2, 298, round(5 / share)):
            other[place] = "new" + other[place]
        yield " ".join(original), " ".join(other)


def clusters(bands, starts=(0,)):
    """First document of the cluster of each; bands: uint64 [num_bands, n]."""
    names = [f"band_{i:02d}" for i in range(len(bands))]
    documents = np.arange(len(bands[0]))
    with tempfile.TemporaryDirectory() as folder:
        for part in range(2):  # in files that are not cut where anything is
            columns = {"doc": documents[part::2]}
            columns |= {name: band[part::2] for name, band in zip(names, bands, strict=True)}
            pq.write_table(pa.table(columns), f"{folder}/good-{part}.parquet")
        grouping = Grouping(Path(folder), 64_000_000, Threads(2))
        none = Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
        alike = find_alike(grouping, names, none, starts)
    firsts = alike.first_of(documents)
    return np.where(firsts < 0, documents, firsts)


@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=40),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=10)
def test_duplicates_are_the_same_whether_they_are_sorted_in_memory_or_grouped_on_the_disk(rows, seed):
    draw = np.random.default_rng(seed)
    # Hashes of both ends of the range: as signed numbers, half of them were negative.
    values = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)[np.array(rows)].T
    names = ("high", "low", "band_00", "band_01")
    of_file = draw.integers(0, 3, len(rows))
    with tempfile.TemporaryDirectory() as folder:
        for number in np.unique(of_file).tolist():
            columns = {"doc": np.flatnonzero(of_file == number)}
            columns |= {name: v[of_file == number] for name, v in zip(names, values, strict=True)}
            pq.write_table(pa.table(columns), f"{folder}/good-{number}.parquet")
        in_memory, on_disk = (Grouping(Path(folder), most, Threads(2)) for most in (1_000_000, 0))
        assert in_memory.fits()
        assert not on_disk.fits()
        copies, grouped = find_copies(in_memory), find_copies(on_disk)
        alike = find_alike(in_memory, names[2:], copies, (0,))
        grouped_alike = find_alike(on_disk, names[2:], copies, (0,))
    for found, expected in ((copies, grouped), (alike, grouped_alike)):
        assert found.documents.tolist() == expected.documents.tolist()
        assert found.firsts.tolist() == expected.firsts.tolist()


def same(bands):
    return clusters(bands.T)


def bands_of(texts, config=NEAR):
    return band_hashes(pa.array(texts, pa.large_string()), config)


@pytest.mark.parametrize(
    ("similarity", "least", "most"), [(0.95, 1.0, 1.0), (0.8, 0.88, 0.97), (0.5, 0.0, 0.12)]
)
def test_alike_documents_are_found_as_often_as_the_bands_promise(similarity, least, most):
    pairs = list(planted(400, similarity))
    found = [jaccard(*pair) for pair in pairs]
    assert np.mean(found) == pytest.approx(similarity, abs=0.02)
    bands = bands_of([text for pair in pairs for text in pair])
    first = same(bands).reshape(-1, 2)
    share = np.mean(first[:, 0] == first[:, 1])
    promised = np.mean([1 - (1 - j**8) ** 14 for j in found])
    assert share == pytest.approx(promised, abs=0.04)
    assert least <= share <= most


def test_what_is_found_is_alike():
    draw = random.Random(1)
    texts = [text for pair in planted(200, 0.85) for text in pair]
    texts += [" ".join(words(draw, 200)) for _ in range(2_000)]
    first = same(bands_of(texts))
    found = [(i, int(j)) for i, j in enumerate(first) if i != j]
    assert len(found) > 180
    assert min(jaccard(texts[i], texts[j]) for i, j in found) > 0.6


def test_of_copies_that_are_alike_by_four_fifths_or_more_nearly_all_are_found():
    # The recall that the bands are chosen for; tests/benchmarks/duplicates.py prints it for real documents.
    pairs = [pair for target in (0.82, 0.85, 0.9) for pair in planted(300, target, seed=2)]
    assert 0.8 <= min(jaccard(*pair) for pair in pairs) < 0.83
    first = same(bands_of([text for pair in pairs for text in pair])).reshape(-1, 2)
    assert np.mean(first[:, 0] == first[:, 1]) >= 0.92


def test_spelling_that_does_not_matter_changes_nothing():
    one, two, other = bands_of(
        [
            "The mill, of 1834, has TWO stones!",
            "the mill of 27 -- has two\nstones",
            "the mill of 27 has three stones",
        ],
        FOLDING,
    )
    assert (one == two).all()
    assert not (one == other).all()


SUMS = [f"What is {37 * i} times {53 * i}? The answer is {37 * i * 53 * i}." for i in range(1, 51)]


def table_of(draw, row, rows=40):
    return "\n".join(row.format(i, draw.randrange(-20, 40), draw.randrange(90)) for i in range(rows))


@pytest.mark.parametrize(
    "texts",
    [
        SUMS,
        [table_of(random.Random(i), "Day {}: temperature {}, rain {} mm") for i in range(6)],
        [table_of(random.Random(i), "{}\t{}\t{}") for i in range(20)],
        [f"def f():\n    return {i}" for i in range(30)],
        [f"{y}年{y % 12 + 1}月{y % 28 + 1}日" for y in range(1960, 2000)],
        [f"Invoice {i * 7919}: {i} pieces at {i}.99, to be paid by 2024-01-{i:02d}" for i in range(10, 31)],
    ],
    ids=["sums", "weather", "tables", "code", "dates", "invoices"],
)
def test_texts_with_other_numbers_are_alike_only_if_numbers_are_folded(texts):
    assert same(bands_of(texts)).tolist() == list(range(len(texts)))
    assert set(same(bands_of(texts, FOLDING)).tolist()) == {0}
    assert same(bands_of(texts)).tolist() == list(range(len(texts)))  # whatever was known from before


def test_texts_with_the_same_numbers_are_alike_whatever_stands_between_them():
    text = table_of(random.Random(0), "Day {}: temperature {}, rain {} mm")
    assert (bands_of([text]) == bands_of([text.replace(":", " ;").upper()])).all()


@pytest.mark.parametrize("numbers", ["keep", "fold"])
@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (3, 5), (1, 1)])
def test_a_band_is_the_least_hashes_of_all_shingles(bands, rows, numbers):
    draw = random.Random(rows)
    some = [
        "a",
        "The",
        "internationalisation",
        "Documentation",
        "sixteenletterswo",
        "x12y345",
        "2024",
        "é9",
        "Ünïcödé",
    ]
    texts = [" ".join(draw.choices(some, k=size)) for size in (1, 4, 5, 6, 13, 1_028, 1_029, 3_000)]
    config = NearDedupConfig(enabled=True, num_bands=bands, band_rows=rows, numbers=numbers)
    expected = [band_hashes_one_by_one(text, config) for text in texts]
    assert band_hashes(pa.array(texts, pa.large_string()), config).tolist() == expected


def band_hashes_one_by_one(text, config):
    size = config.num_bands * config.band_rows
    factors, shifts = np.random.default_rng(config.seed).integers(0, 2**64, (2, size), np.uint64)
    hashes = [word_hash(word, config.numbers == "fold") for word in text.split()]
    shingle = min(config.shingle_words, len(hashes))
    least = np.full(size, 2**64 - 1, np.uint64)
    for i in range(len(hashes) - shingle + 1):
        h = FNV_START
        for one in hashes[i : i + shingle]:
            h = (h ^ one) * GOLDEN & ALL
            h ^= h >> 29
        least = np.minimum(least, factors * np.uint64(mixed(h) >> 32) + shifts)
    found = []
    for band in range(config.num_bands):
        h = band + 1
        for value in least[band * config.band_rows : (band + 1) * config.band_rows].tolist():
            h = mixed(h ^ value >> 32) + GOLDEN & ALL
        found.append(max(h, 1))
    return found


def word_hash(word, fold):
    h = FNV_START
    for character in re.sub("[0-9]+", "0", word.lower()) if fold else word.lower():
        h = (h ^ ord(character)) * 0x100000001B3 & ALL
    return mixed(h)


def mixed(h):
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & ALL
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & ALL
    return h ^ h >> 33


FNV_START, GOLDEN, ALL = 0xCBF29CE484222325, 0x9E3779B97F4A7C15, 2**64 - 1


def test_texts_without_words_are_like_nothing():
    bands = bands_of(["", "...", "!!!", "a", "a"])
    assert not bands[:3].any()
    assert same(bands).tolist() == [0, 1, 2, 3, 3]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4))
def test_clusters_are_the_connected_parts_and_named_by_their_first(columns):
    bands = np.array(columns, np.uint64)
    expected = list(range(6))
    for _ in range(6):  # the plain way: take the least name of all neighbours until nothing changes
        for band in bands:
            for i in range(6):
                for j in range(6):
                    if band[i] and band[i] == band[j]:
                        expected[i] = expected[j] = min(expected[i], expected[j])
    assert clusters(bands).tolist() == expected


def test_what_came_later_drops_nothing_that_came_earlier():
    # 2 is like 0 and like 1: in one go all three are one cluster, coming later it alone is dropped.
    bands = np.array([[5, 6, 5, 7], [8, 9, 9, 3]], np.uint64)
    assert clusters(bands).tolist() == [0, 0, 0, 3]
    assert clusters(bands, (0, 2)).tolist() == [0, 1, 0, 3]
    assert clusters(bands, (0, 1, 2)).tolist() == [0, 1, 0, 3]


def test_other_bands_find_less_alike_documents():
    pairs = [text for pair in planted(100, 0.5) for text in pair]
    wide = NearDedupConfig(enabled=True, num_bands=40, band_rows=3)
    first = same(bands_of(pairs, wide)).reshape(-1, 2)
    assert np.mean(first[:, 0] == first[:, 1]) > 0.95
    other = bands_of(pairs, NearDedupConfig(enabled=True, seed=2))
    assert not (other == bands_of(pairs)).any()


def test_the_first_of_a_cluster_stays_for_any_shards_and_workers(tmp_path):
    draw = random.Random(3)
    texts = [text for pair in planted(30, 0.9) for text in pair]
    texts += [texts[0], *(" ".join(words(draw, 100)) for _ in range(40))]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:03d}.txt").write_text(text)
    found = []
    for shard_bytes, workers in ((1, 1), (10_000, 2), (10**9, 1)):
        config = DataConfig(
            sources=(SourceConfig(name="s", kind="files", path=f"{tmp_path}/*.txt"),),
            quality={"profile": "none"},
            near_dedup=NEAR,
            shard_bytes=shard_bytes,
            workers=workers,
        )
        out = tmp_path / str(shard_bytes)
        for name in ("documents", "splits"):
            (out / name).mkdir(parents=True)
        build_documents(config, take_inventory(config), out / "documents", silent)
        found.append(build_splits(config, out / "documents", out / "splits", silent))
    books = found[0]["books"]
    assert (books["duplicates"], books["near_duplicates"], books["kept"]) == (1, 30, 70)
    for other in found[1:]:
        assert other["books"] == books
        assert other["train_digest"] == found[0]["train_digest"]
        assert other["validation_digest"] == found[0]["validation_digest"]
