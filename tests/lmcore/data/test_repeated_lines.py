"""Lines that many documents share stay in the first of them; nothing changes where that is off."""

import dataclasses
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import DataConfig, QualityConfig, RepeatedLinesConfig, SourceConfig, TokenizerConfig
from lmcore.data import prepare
from lmcore.data.browse import Wanted, documents
from lmcore.data.decoding import Decoder
from lmcore.data.line_units import units_of
from lmcore.data.pool import Processes, Threads
from lmcore.data.repeated_lines import NOTHING_LEFT, left_of, take_out
from lmcore.data.splits import SPLITS, read_split
from lmcore.data.tokens import TokenDataset
from lmcore.progress import silent

FOOTER = "All flour is ground by the miller himself."
OFTEN = RepeatedLinesConfig(enabled=True, max_documents=3, min_chars=20)


def own_line(draw):
    return " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(12))


def corpus(path, count=40, seed=0):
    draw = random.Random(seed)
    texts = [
        "\n".join([own_line(draw), f"  {FOOTER} ", "short", own_line(draw), FOOTER]) for _ in range(count)
    ]
    if count > 7:
        texts[7] = f"{FOOTER}\n\n {FOOTER}\n"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


def config_of(path, repeated=OFTEN, **options):
    return DataConfig(
        sources=(SourceConfig(name="s", kind="files", path=str(path)),),
        quality=QualityConfig(profile="none"),
        repeated_lines=repeated,
        validation_fraction=0.1,
        tokenizer=TokenizerConfig(vocab_size=300),
        **options,
    )


def split(root, config, workers=None, inventory=None):
    root.mkdir()
    made = {name: root / name for name in ("documents", "splits")}
    for directory in made.values():
        directory.mkdir()
    inventory = inventory or prepare.take_inventory(config)
    prepare.build_documents(config, inventory, made["documents"], silent)
    return prepare.build_splits(config, made["documents"], made["splits"], silent, workers)


def texts_of(root):
    seen = [d for name in SPLITS for d in read_split(root / "documents", root / "splits", name)]
    return {document.doc_id: document.text for document in seen}


def by_record(texts):
    return [text for _, text in sorted(texts.items(), key=lambda item: int(item[0].rpartition("#")[2]))]


def test_a_footer_stays_in_the_first_document_alone(tmp_path):
    texts = corpus(tmp_path / "a.jsonl")
    summary = split(tmp_path / "out", config_of(tmp_path / "a.jsonl"))
    found = by_record(texts_of(tmp_path / "out"))
    assert found[0] == texts[0]
    assert len(found) == 39
    for text, whole in zip(found[1:], [*texts[1:7], *texts[8:]], strict=True):
        first, _, short, second, _ = whole.split("\n")
        assert text == f"{first}\n{short}\n{second}\n"
    assert summary["books"]["dropped"] == {NOTHING_LEFT: 1}
    assert summary["documents"] == 39


def test_what_is_seen_by_inspect_is_what_is_learned(tmp_path):
    corpus(tmp_path / "a.jsonl")
    split(tmp_path / "out", config_of(tmp_path / "a.jsonl"))
    out, kept = tmp_path / "out", texts_of(tmp_path / "out")
    seen = {d.doc_id: d for d in documents(out / "documents", out / "splits", Wanted())}
    assert {doc_id: seen[doc_id].text for doc_id in kept} == kept
    (dropped,) = (d for doc_id, d in seen.items() if doc_id not in kept)
    assert (dropped.decision, dropped.rule) == ("dropped", NOTHING_LEFT)


def test_tokens_are_those_of_what_is_left(tmp_path):
    corpus(tmp_path / "a.jsonl")
    config = config_of(tmp_path / "a.jsonl")
    split(tmp_path / "out", config)
    out = tmp_path / "out"
    for name in ("tokenizer", "tokens"):
        (out / name).mkdir()
    prepare.build_tokenizer(config, out / "documents", out / "splits", out / "tokenizer", silent)
    prepare.build_tokens(config, out / "documents", out / "splits", out / "tokenizer", out / "tokens", silent)
    decoder = Decoder(out / "tokenizer")
    tokens = TokenDataset(out / "tokens" / "train")
    decoded = [decoder.decode(tokens.document(i)[:-1]).decode() for i in range(tokens.num_documents)]
    expected = [d.text for d in read_split(out / "documents", out / "splits", "train")]
    assert sorted(decoded) == sorted(expected)
    assert sum(FOOTER in text for text in decoded) <= 1
    assert tokens.num_bytes == sum(len(text.encode()) for text in expected)


@pytest.mark.parametrize("workers", [Threads(1), Threads(4), Processes(2)], ids=repr)
def test_workers_and_shards_decide_nothing(tmp_path, workers):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(6):
        corpus(folder / f"{number}.jsonl", 20, seed=number)
    split(tmp_path / "whole", config_of(folder / "*.jsonl", shard_bytes=10**9))
    found = split(tmp_path / "parts", config_of(folder / "*.jsonl", shard_bytes=1_000), workers)
    assert found["shards"] > 3
    assert texts_of(tmp_path / "parts") == texts_of(tmp_path / "whole")


def test_what_came_later_takes_nothing_out_of_what_came_earlier(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    earlier = corpus(folder / "0.jsonl", 3, seed=1)
    root, config = tmp_path / "first", config_of(folder / "*.jsonl", shard_bytes=1_000)
    split(root, config)
    assert by_record(texts_of(root)) == earlier  # in no more than three documents
    corpus(folder / "1.jsonl", 8, seed=2)
    inventory = dataclasses.replace(prepare.take_inventory(config), earlier=(1,))
    root = tmp_path / "second"
    split(root, config, inventory=inventory)
    texts = texts_of(root)
    assert [texts[f"s:0.jsonl#{i}"] for i in range(3)] == earlier
    assert all(FOOTER not in texts[f"s:1.jsonl#{i}"] for i in range(7))


def test_where_it_is_off_nothing_changes(tmp_path):
    texts = corpus(tmp_path / "a.jsonl")
    split(tmp_path / "out", config_of(tmp_path / "a.jsonl", RepeatedLinesConfig()))
    assert by_record(texts_of(tmp_path / "out")) == texts
    (path,) = (tmp_path / "out" / "splits" / "decisions").iterdir()
    assert "taken_out" not in pq.read_schema(path).names


def test_other_text_has_another_digest(tmp_path):
    corpus(tmp_path / "a.jsonl")
    digests = {
        split(tmp_path / name, config_of(tmp_path / "a.jsonl", repeated))["train_digest"]
        for name, repeated in (("on", OFTEN), ("off", RepeatedLinesConfig()))
    }
    assert len(digests) == 2


def units(text, unit):
    """Start and end of each line or paragraph, and what is compared; in plain Python, on bytes."""
    places, start = [], 0
    for line in text.splitlines(keepends=True):
        places.append((start, start + len(line), line))
        start += len(line)
    if unit == "paragraph":
        joined = []
        for start, end, line in places:
            blank = not line.strip()
            if joined and (blank or not joined[-1][3]):
                joined[-1] = (joined[-1][0], end, joined[-1][2] + line, joined[-1][3] or blank)
            else:
                joined.append((start, end, line, blank))
        places = [(start, end, text) for start, end, text, _ in joined]
    return [(start, end, held.strip()) for start, end, held in places]


@settings(deadline=None)
@given(
    st.lists(st.text("ab é\n ", max_size=30), min_size=1, max_size=4),
    st.sampled_from(["line", "paragraph"]),
    st.integers(1, 4),
)
def test_lines_and_paragraphs_are_those_of_plain_python(texts, unit, min_chars):
    config = RepeatedLinesConfig(enabled=True, unit=unit, min_chars=min_chars)
    found = units_of(pa.array(texts, pa.large_string()), config)
    expected = [
        (number, start, end, held)
        for number, text in enumerate(texts)
        for start, end, held in units(text.encode(), unit)
        if len(held.decode()) >= min_chars
    ]
    places = zip(found.texts.tolist(), found.starts.tolist(), found.ends.tolist(), strict=True)
    assert list(places) == [place[:3] for place in expected]
    # The same hash for the same content, another one for another.
    pairs = {(held, digest) for (*_, held), digest in zip(expected, found.hashes.tolist(), strict=True)}
    assert len(pairs) == len({held for held, _ in pairs}) == len({digest for _, digest in pairs})


@given(st.lists(st.text("aé\n", max_size=12), min_size=1, max_size=5), st.data())
def test_what_is_cut_is_gone_and_the_rest_is_there(texts, data):
    cuts = []
    for text in texts:
        ends = [0]
        for character in text:
            ends.append(ends[-1] + len(character.encode()))
        chosen = sorted(data.draw(st.sets(st.sampled_from(ends), max_size=4)))
        cuts.append(chosen[: len(chosen) // 2 * 2])
    array = pa.array(["before", *texts], pa.large_string()).slice(1)
    taken = pa.array([[], *cuts], pa.large_list(pa.int64())).slice(1)
    found = take_out(array, taken).to_pylist()
    assert found == [left_of(text, cut) for text, cut in zip(texts, cuts, strict=True)]
    for text, cut, rest in zip(texts, cuts, found, strict=True):
        raw = text.encode()
        gone = [raw[start:end] for start, end in zip(cut[::2], cut[1::2], strict=True)]
        assert len(rest.encode()) + sum(map(len, gone)) == len(raw)
