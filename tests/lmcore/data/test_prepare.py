import hashlib
import json

import numpy as np
import pytest

from lmcore.config import CodeRules, DataConfig, QualityConfig, SourceConfig, TokenizerConfig, identify
from lmcore.data import encode, prepare
from lmcore.data.encoding import Encoder
from lmcore.data.splits import splits_of_shard
from lmcore.data.tokenizer import load_tokenizer
from lmcore.data.tokens import TokenDataset
from lmcore.errors import DataError
from lmcore.progress import silent

HEADER = '"""Module {0}."""\n\nimport os\n\n\n'
FUNCTION = "def function_{0}_{1}(value):\n    return value + {1}  # \u00e9t\u00e9\n\n\n"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for i in range(60):
        text = HEADER.format(i) + "".join(FUNCTION.format(i, j) for j in range(i % 9 + 1))
        (folder / f"module_{i}.py").write_text(text + ("# <|endoftext|>\n" if i == 7 else ""))
    source = SourceConfig(name="code", kind="files", path=f"{folder}/*.py")
    return DataConfig(
        sources=(source,),
        validation_fraction=0.1,
        tokenizer=TokenizerConfig(vocab_size=320),
        workers=1,
    )


def mill(config, out):
    stages = {name: out / name for name in ("documents", "splits", "tokenizer", "tokens")}
    for path in stages.values():
        path.mkdir(parents=True)
    documents, splits, tokenizer, tokens = stages.values()
    inventory = prepare.take_inventory(config)
    summaries = {
        "documents": prepare.build_documents(config, inventory, documents, silent),
        "splits": prepare.build_splits(config, documents, splits, silent),
        "tokenizer": prepare.build_tokenizer(config, documents, splits, tokenizer, silent),
        "tokens": prepare.build_tokens(config, documents, splits, tokenizer, tokens, silent),
    }
    return stages, summaries


@pytest.fixture(scope="module")
def milled(config, tmp_path_factory):
    return mill(config, tmp_path_factory.mktemp("out"))


@pytest.fixture
def watched(monkeypatch):
    """What the engines are compared on, and how often documents of a shard are read."""
    seen = {"sample": [], "reads": 0}

    def encoder(*arguments, **options):
        seen["sample"] += options.get("sample", ())
        return Encoder(*arguments, **options)

    def read(*arguments):
        seen["reads"] += 1
        return splits_of_shard(*arguments)

    monkeypatch.setattr(encode, "Encoder", encoder)
    monkeypatch.setattr(encode, "splits_of_shard", read)
    return seen


def test_engines_are_compared_around_what_is_beyond_ascii(milled, config, tmp_path, watched):
    documents, splits, tokenizer, _ = milled[0].values()
    again = prepare.build_tokens(config, documents, splits, tokenizer, tmp_path, silent)
    assert again == milled[1]["tokens"]
    assert len(watched["sample"]) == again["documents"]
    assert all("\u00e9" in text and len(text.encode()) <= 64 for text in watched["sample"])


@pytest.mark.parametrize("room", [encode._KEPT_BYTES, 0])
def test_documents_are_read_once_where_there_is_room(milled, config, tmp_path, watched, monkeypatch, room):
    monkeypatch.setattr(encode, "_KEPT_BYTES", room)
    documents, splits, tokenizer, _ = milled[0].values()
    made = prepare.build_tokens(config, documents, splits, tokenizer, tmp_path, silent)
    assert made == milled[1]["tokens"]
    assert watched["reads"] == made["shards"] * (1 if room else 2)


def test_no_document_stays_in_memory_when_a_shard_fails(milled, config, tmp_path, monkeypatch):
    def lost(*_):
        raise DataError("lost")

    monkeypatch.setattr(encode, "_unit", lost)
    documents, splits, tokenizer, _ = milled[0].values()
    with pytest.raises(DataError, match="lost"):
        prepare.build_tokens(config, documents, splits, tokenizer, tmp_path, silent)
    assert not encode._read_already


def hashes(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_input_gives_the_same_bytes(config, milled, tmp_path):
    again, summaries = mill(config, tmp_path)
    assert summaries == milled[1]
    for name, directory in again.items():
        assert hashes(directory) == hashes(milled[0][name])


def test_tokens_decode_to_the_documents(milled):
    stages, summaries = milled
    tokenizer = load_tokenizer(stages["tokenizer"])
    found = {}
    for split in ("train", "validation"):
        dataset = TokenDataset(stages["tokens"] / split)
        dataset.verify()
        texts = {}
        for i in range(dataset.num_documents):
            *tokens, end = dataset.document(i).tolist()
            assert end == dataset.eos_id == 0
            assert 0 not in tokens
            texts[dataset.doc_id(i)] = tokenizer.decode(tokens, skip_special_tokens=False)
        assert dataset.num_bytes == sum(len(text.encode()) for text in texts.values())
        assert dataset.num_tokens == summaries["tokens"][f"{split}_tokens"]
        assert dataset.num_documents == summaries["splits"][f"{split}_documents"]
        assert dataset.vocab_size == summaries["tokenizer"]["vocab_size"] == 320
        found |= texts
    assert len(found) == 60
    assert "# <|endoftext|>" in found["code:module_7.py"]
    assert found["code:module_3.py"].startswith('"""Module 3."""\n\nimport os')


def test_training_documents_are_mixed(milled):
    dataset = TokenDataset(milled[0]["tokens"] / "train")
    numbers = [int(dataset.doc_id(i).split("_")[1][:-3]) for i in range(dataset.num_documents)]
    assert abs(np.corrcoef(numbers, range(len(numbers)))[0, 1]) < 0.5


def test_summaries_are_json_and_tell_what_people_ask(milled):
    summaries = json.loads(json.dumps(milled[1]))
    assert summaries["tokens"]["engine"] in ("gigatoken", "tokenizers")
    assert summaries["tokens"]["engine_reason"]
    assert summaries["tokens"]["bytes_per_token"] > 1
    assert summaries["documents"]["inventory"]["files"] == 60
    assert summaries["splits"]["documents"] == 60


def test_the_tokenizer_learns_from_a_sample_of_the_size_asked_for(config, milled, tmp_path):
    (stages, summaries) = milled
    size = summaries["tokenizer"]["sample_bytes"]
    assert size == summaries["tokens"]["train_bytes"]
    less = config.model_copy(update={"tokenizer": TokenizerConfig(vocab_size=300, sample_bytes=size // 2)})
    found = prepare.build_tokenizer(less, stages["documents"], stages["splits"], tmp_path, silent)
    assert size // 4 < found["sample_bytes"] <= size // 2
    greedy = config.model_copy(update={"tokenizer": TokenizerConfig(vocab_size=50_000)})
    found = prepare.build_tokenizer(greedy, stages["documents"], stages["splits"], tmp_path, silent)
    assert found["vocab_size"] < 50_000
    assert "no more pairs" in found["note"]


def chosen(settings, config):
    return set(identify(*settings, data=config).chosen)


def test_a_setting_belongs_to_the_stage_that_it_decides(config):
    changed = DataConfig(
        quality=QualityConfig(profile="web", code=CodeRules(min_chars=1)),
        split_seed=7,
        workers=3,
        tokenizer=TokenizerConfig(vocab_size=999),
    )
    assert chosen(prepare.DOCUMENTS_SETTINGS, changed) == {"data.quality.profile"}
    assert chosen(prepare.SPLITS_SETTINGS, changed) == {
        "data.quality.profile",
        "data.quality.code.min_chars",
        "data.split_seed",
    }
    assert chosen(prepare.TOKENIZER_SETTINGS, changed) == {"data.tokenizer.vocab_size"}


def test_every_setting_that_decides_belongs_to_a_stage():
    named = (
        *prepare.DOCUMENTS_SETTINGS,
        *prepare.SPLITS_SETTINGS,
        *prepare.TOKENIZER_SETTINGS,
        *prepare.TOKENS_SETTINGS,
    )
    assert identify(*named, data=DataConfig()).values == identify(data=DataConfig()).values
