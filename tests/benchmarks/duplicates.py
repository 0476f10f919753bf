"""Print recall and precision of near-duplicate removal, on copies that are planted among real documents.

python tests/benchmarks/duplicates.py [DOCS.jsonl] [--pairs N] [--script NAME]
python tests/benchmarks/duplicates.py --languages [--pairs N]

Copies of documents have words replaced until a share J of all 5-word shingles of both is common to both. The
documents and splits stages run as they do for anybody, with the default 14 bands of 8. Beside the share that
is found stands 1 - (1 - J^8)^14, what the bands promise at those very similarities, each counted exactly. Of
all that is dropped, planted or not, the exact similarity to the survivor is counted, and to the most alike
document of its cluster. Without DOCS.jsonl the documents are the sources of the running Python's library.
With --script those are copied alone that are written in it (``lmcore.data.scripts``), such as Chinese. With
--languages the documents are made of words of each language that puts no space between them, and of English.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lmcore.config import DataConfig, NearDedupConfig, QualityConfig, SourceConfig
from lmcore.data import prepare
from lmcore.data.arrow import text_array
from lmcore.data.minhash import ngram_hashes
from lmcore.data.scripts import scripts_of
from lmcore.progress import silent

sys.path.insert(0, str(Path(__file__).parents[1] / "lmcore/data"))

SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
NEAR = NearDedupConfig(enabled=True)
LEAST_SHINGLES = 100


def documents(path: Path | None) -> Iterator[str]:
    """Texts of the file, or of the library's sources."""
    if path is not None:
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
        return
    for source in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in source.parts:
            yield source.read_text(encoding="utf-8", errors="replace")


def shingles(texts: list[str]) -> list[np.ndarray]:
    """Distinct hashes of each text's shingles, as the signatures see them; uint64."""
    fold = NEAR.numbers == "fold"
    hashes, counts = ngram_hashes(text_array(texts), NEAR.shingle_words, fold=fold)
    return [np.unique(part) for part in np.split(hashes, np.cumsum(counts)[:-1])]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shingles common to both, of all."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(1, len(a) + len(b) - common)


def edited(text: str, num_shingles: int, similarity: float, draw: random.Random) -> str:
    """``text`` with as many words replaced as make it about that similar."""
    # A word replaced costs a shingle for each of its words, in both.
    count = round(num_shingles * (1 - similarity) / (1 + similarity) / NEAR.shingle_words)
    places = [match.span() for match in re.finditer(r"[A-Za-z]{3,}|[\u3400-\u9fff]{2,3}", text)]
    step = len(places) / max(1, count)
    chosen = {int((i + draw.random() * 0.5) * step) for i in range(count)} if step >= 1 else set()
    parts, end = [], 0
    for place in sorted(chosen):
        start, stop = places[place]
        parts += [text[end:start], _other_word(text[start], draw)]
        end = stop
    return "".join([*parts, text[end:]])


def _other_word(replaced: str, draw: random.Random) -> str:
    if replaced.isascii():
        return "".join(draw.choices("bcdfghjklm", k=9))
    return "".join(chr(draw.randrange(0x4E00, 0x9FA0)) for _ in range(2))


def show_languages(num_pairs: int) -> None:
    """Print recall and false pairs for documents made of the words of each language."""
    from unspaced import WORDS, write

    english = "school teacher student today morning city country friend family work company market people"
    print(
        f"{'language':>9} {'words':>6} {'pairs':>6} {'mean J':>7} {'found':>7} {'promised':>9} {'false':>6}"
    )
    for language, words in {"en": english + " water house music time place world", **WORDS}.items():
        for replaced in (1, 2, 4):
            draw = random.Random(f"{language} {replaced}")
            texts = []
            for _ in range(num_pairs):
                one = draw.choices(words.split(), k=300)
                other = list(one)
                for place in range(150 // replaced, 300, 300 // replaced):
                    other[place] = draw.choice([word for word in words.split() if word != one[place]])
                texts += [" ".join(w) if language == "en" else write(language, w) for w in (one, other)]
            _, survivors = remove(texts)
            grams = shingles(texts)
            exact = np.array([jaccard(*grams[i : i + 2]) for i in range(0, len(texts), 2)])
            hits = np.mean([survivors.get(i + 1) == i for i in range(0, len(texts), 2)])
            false = sum(number != survivor + 1 for number, survivor in survivors.items())
            promised = np.mean(1 - (1 - exact**NEAR.band_rows) ** NEAR.num_bands)
            counts = f"{language:>9} {np.mean([len(g) for g in grams]):6.0f} {num_pairs:6d}"
            print(f"{counts} {exact.mean():7.3f} {hits:7.3f} {promised:9.3f} {false:6d}")


def remove(texts: list[str]) -> tuple[dict[int, int], dict[int, int]]:
    """Copies and near duplicates among ``texts``: number of each, and of what it is a duplicate of."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with (root / "docs.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        config = DataConfig(
            sources=(SourceConfig(name="docs", kind="files", path=str(root / "docs.jsonl")),),
            quality=QualityConfig(profile="none"),
            near_dedup=NEAR,
        )
        for name in ("documents", "splits"):
            (root / name).mkdir()
        prepare.build_documents(config, prepare.take_inventory(config), root / "documents", silent)
        prepare.build_splits(config, root / "documents", root / "splits", silent)
        found: dict[str, dict[int, int]] = {"duplicate": {}, "near_duplicate": {}}
        for path in sorted((root / "splits" / "decisions").glob("*.parquet")):
            for row in pq.read_table(path).to_pylist():
                if row["decision"] in found:
                    found[row["decision"]][_number(row["doc_id"])] = _number(row["duplicate_of"])
        return found["duplicate"], found["near_duplicate"]


def _number(doc_id: str) -> int:
    return int(doc_id.rpartition("#")[2])


def show_recall(texts: list[str], first_copy: int, originals: list[int], survivors: dict[int, int]) -> None:
    """Print the share of planted pairs that is found, by similarity."""
    grams = shingles([texts[i] for i in originals] + texts[first_copy:])
    found: dict[float, list[tuple[float, bool]]] = defaultdict(list)
    for i, original in enumerate(originals):
        similarity = jaccard(grams[i], grams[len(originals) + i])
        nearest = min(SIMILARITIES, key=lambda one: abs(one - similarity))
        ends = {survivors.get(number, number) for number in (original, first_copy + i)}
        if abs(nearest - similarity) <= 0.025:
            found[nearest].append((similarity, len(ends) == 1))
    print(f"{'J':>5} {'pairs':>6} {'mean J':>7} {'found':>7} {'promised':>9}")
    for similarity, pairs in sorted(found.items()):
        exact, hits = np.array(pairs).T
        promised = np.mean(1 - (1 - exact**NEAR.band_rows) ** NEAR.num_bands)
        print(f"{similarity:5.2f} {len(pairs):6d} {exact.mean():7.3f} {hits.mean():7.3f} {promised:9.3f}")


def show_precision(texts: list[str], survivors: dict[int, int]) -> None:
    """Print how alike what is dropped is to what stays, and to the most alike of its cluster."""
    clusters: dict[int, list[int]] = defaultdict(list)
    for number, survivor in survivors.items():
        clusters[survivor].append(number)
    to_survivor, to_nearest = [], []
    for survivor, members in clusters.items():
        grams = shingles([texts[i] for i in (survivor, *members)])
        for i in range(1, len(grams)):
            others = [jaccard(grams[i], other) for j, other in enumerate(grams) if j != i]
            to_survivor.append(others[0])
            to_nearest.append(max(others))
    print(f"\n{len(survivors):,} dropped, in {len(clusters):,} clusters; share of them that is as alike as J")
    print(f"{'J at least':>10} {'to survivor':>12} {'to nearest':>11}")
    for least in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        shares = [np.mean(np.array(values) >= least) for values in (to_survivor, to_nearest)]
        print(f"{least:10.1f} {shares[0]:12.3f} {shares[1]:11.3f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("docs", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=200, help="planted pairs for each similarity")
    parser.add_argument("--script", default="", help="copy documents in this script alone")
    parser.add_argument("--languages", action="store_true", help="made documents, by language")
    options = parser.parse_args()
    if options.languages:
        show_languages(options.pairs)
        return
    draw = random.Random(0)
    texts = list(documents(options.docs))
    grams = shingles(texts)
    scripts = scripts_of(text_array(texts)).to_pylist()
    long_ones = [
        i
        for i, found in enumerate(grams)
        if len(found) >= LEAST_SHINGLES and options.script in ("", scripts[i])
    ]
    originals = draw.sample(long_ones, min(len(long_ones), options.pairs * len(SIMILARITIES)))
    first_copy = len(texts)
    for i, original in enumerate(originals):
        similarity = SIMILARITIES[i % len(SIMILARITIES)]
        texts.append(edited(texts[original], len(grams[original]), similarity, draw))
    print(f"{first_copy:,} documents, {len(originals):,} planted copies")
    copies, survivors = remove(texts)
    originals_kept = [copies.get(number, number) for number in originals]
    show_recall(texts, first_copy, originals_kept, survivors)
    show_precision(texts, survivors)


if __name__ == "__main__":
    main()
