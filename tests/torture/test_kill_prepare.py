"""Data preparation killed twenty times at random: what was finished is not made again."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

PREPARE = """
import sys
from pathlib import Path
from lmcore.config import DataConfig, SourceConfig
from lmcore.data import prepare
from lmcore.progress import silent
from lmcore.store import Store
from tasks.prepare import documents_stage, splits_stage, tokenizer_stage, tokens_stage

if __name__ == "__main__":
    corpus, store, workers, executor = sys.argv[1:]
    config = DataConfig(
        sources=(SourceConfig(name="c", kind="files", path=corpus + "/*.txt"),),
        quality={"profile": "prose", "gopher": {"min_stop_words": 0}},
        near_dedup={"enabled": True},
        tokenizer={"vocab_size": 2_000},
        workers=int(workers),
        executor=executor,
        shard_bytes=60_000,
    )
    inventory = prepare.take_inventory(config)
    shop = prepare.workshop(config, inventory.text_bytes, Path(store))
    print("ready", flush=True)
    ensure = Store(Path(store)).ensure
    documents = ensure(
        documents_stage(config, inventory),
        lambda out: prepare.build_documents(config, inventory, out, silent, shop),
    )
    splits = ensure(
        splits_stage(config, documents),
        lambda out: prepare.build_splits(config, documents.path, out, silent, shop.workers),
    )
    tokenizer = ensure(
        tokenizer_stage(config, documents, splits),
        lambda out: prepare.build_tokenizer(config, documents.path, splits.path, out, silent),
    )
    ensure(
        tokens_stage(config, documents, splits, tokenizer),
        lambda out: prepare.build_tokens(
            config, documents.path, splits.path, tokenizer.path, out, silent, shop
        ),
    )
    print("done", flush=True)
"""
WORDS = "mill stone grain flour water wheel sack miller river bread oven field wind sail gear shaft hopper"
KILLS = 20


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(80):
        draw = random.Random(number)
        text = "\n".join(" ".join(draw.choices(WORDS.split(), k=12)) + "." for _ in range(900))
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


def start(corpus, store, workers, executor):
    command = [sys.executable, str(corpus.parent / "prepare.py"), str(corpus), str(store)]
    return subprocess.Popen(
        [*command, str(workers), executor],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


def finish(corpus, store, workers, executor):
    process = start(corpus, store, workers, executor)
    out, _ = process.communicate(timeout=300)
    assert out.endswith("done\n")


def wait_for(process, store, count):
    """Until so many artifacts are committed: how fast that is differs too much for a time to be drawn."""
    while process.poll() is None and sum(1 for _ in store.glob("*/[!.]*/manifest.json")) < count:
        time.sleep(0.002)


def manifests(store):
    paths = [path for path in store.glob("*/*/manifest.json") if not path.parent.name.startswith(".")]
    return [json.loads(path.read_text()) for path in paths]


def finished(store):
    """Key and time of each artifact that is committed."""
    return {(m["stage"], m["key"]): m["created"] for m in manifests(store)}


def digests(store):
    return {(m["stage"], m["key"]): m["digest"] for m in manifests(store)}


def test_twenty_kills_lose_no_finished_shard_and_change_nothing(corpus, tmp_path):
    (tmp_path / "prepare.py").write_text(PREPARE)
    straight = tmp_path / "straight"
    finish(corpus, straight, 1, "threads")
    expected = digests(straight)
    assert sum(stage == "documents-shard" for stage, _ in expected) > 50
    draw, store, workers = random.Random(), tmp_path / "killed", 2
    seen = []
    for number in range(KILLS):
        before = finished(store)
        if len(before) == len(expected):  # all was done: begin again
            store = tmp_path / f"killed{number}"
            before = {}
        process = start(corpus, store, workers, ("threads", "processes")[number % 2])
        process.stdout.readline()
        wait_for(process, store, len(before) + draw.randrange((len(expected) - len(before) + 3) // 3))
        time.sleep(draw.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)  # its workers have ended too when the pipe closes
        after = finished(store)
        assert before.items() <= after.items(), "what was finished was made again"
        seen.append(len(after))
        unfinished = list(store.glob("*-shard/.build-*"))
        keys = {path.name.split("-")[1] for path in unfinished}
        assert len(keys - {key for _, key in after}) <= workers * (number + 1)
    assert sum(count < len(expected) for count in seen) >= KILLS // 2, f"kills came too late: {seen}"
    assert len(set(seen)) >= 4, f"kills came too early: {seen}"
    finish(corpus, store, 4, "threads")
    assert digests(store) == expected
