"""Decisions of datatrove's filters, one document after another, as JSON; and how many of ours differ.

In the peer's environment (pip install 'datatrove[processing,io]' spacy), then in ours:

python tests/benchmarks/parity.py peer DOCS.jsonl[.zst] PEER.json     (`odd` for the documents of the tests)
python tests/benchmarks/parity.py compare DOCS.jsonl[.zst] PEER.json
"""

from __future__ import annotations

import collections
import json
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lmcore/data"))

GROUPS = ("repetition", "gopher", "c4", "fineweb")


def read(path: str) -> list[str]:
    """Texts of a file of lines of JSON."""
    if path == "odd":
        from odd_documents import documents

        return documents(400)
    raw = Path(path).read_bytes()
    if path.endswith(".zst"):
        import zstandard

        raw = zstandard.ZstdDecompressor().stream_reader(raw).read()
    return [json.loads(line)["text"] for line in raw.split(b"\n") if line]


# --- the peer --------------------------------------------------------------------------------------


def decide(text: str) -> dict[str, Any]:
    """Reason of each of datatrove's filters to drop ``text``, or none; FineWeb sees what C4 left."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    document = Document(text=text, id="")
    filters = (
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    )
    reasons: dict[str, Any] = {}
    for group, one in zip(GROUPS, filters, strict=True):
        try:
            found = one.filter(document)
        except ZeroDivisionError:
            found = False, "nothing left"
        reasons[group] = None if found is True else found[1]
        if group == "c4" and reasons["c4"]:
            break
    return reasons


def ask_the_peer(documents: str, target: str) -> None:
    """Write the peer's decisions."""
    texts = read(documents)
    start = time.perf_counter()
    with Pool(2) as pool:
        decisions = pool.map(decide, texts, chunksize=20)
    print(f"{len(texts)} documents in {time.perf_counter() - start:.1f} s on 2 processes")
    Path(target).write_text(json.dumps(decisions))


# --- ours ------------------------------------------------------------------------------------------


def compare(documents: str, peer: str) -> None:
    """Print for each group of rules how many documents are decided otherwise."""
    ours, theirs = decide_all(read(documents)), json.loads(Path(peer).read_text())
    for group in (*GROUPS, "all"):
        both = [
            (mine[group], other)
            for mine, other in zip(ours, map(verdict, theirs), strict=True)
            if group in other
            for other in [other[group]]
        ]
        differ = collections.Counter(pair for pair in both if bool(pair[0]) != bool(pair[1]))
        print(
            f"{group:<11} {len(both):6} documents, {sum(bool(o) for _, o in both):6} dropped by the peer, "
            f"{sum(differ.values()):4} decided otherwise {dict(differ.most_common(3))}"
        )


def verdict(reasons: dict[str, Any]) -> dict[str, Any]:
    """``reasons`` with that of the first filter that drops."""
    return {**reasons, "all": next((reason for reason in reasons.values() if reason), None)}


def decide_all(texts: list[str]) -> list[dict[str, Any]]:
    """Our rules on ``texts``, in the same form."""
    import pyarrow as pa

    from lmcore.config import QualityConfig
    from lmcore.data.quality import broken_rule_of, rules_in
    from lmcore.data.signals import measure

    config = QualityConfig(profile="web")
    start = time.perf_counter()
    measured = measure(pa.array(texts, pa.large_string()), config)
    print(f"{len(texts)} documents in {time.perf_counter() - start:.2f} s on one thread")
    columns = {
        group: broken_rule_of(
            rules_in(group, getattr(config, group)), measured.signals, len(texts)
        ).to_pylist()
        for group in GROUPS
    }
    return [verdict(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


if __name__ == "__main__":
    {"peer": ask_the_peer, "compare": compare}[sys.argv[1]](*sys.argv[2:])
