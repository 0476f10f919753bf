import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from huggingface_hub import HfFileSystem
from huggingface_hub.hf_file_system import safe_revision

from lmcore.config import DataConfig, QualityConfig, SourceConfig
from lmcore.data.documents import build_documents
from lmcore.data.hub import root_of
from lmcore.data.sources import find_files, take_inventory
from lmcore.errors import DataError
from lmcore.progress import silent

CARD = """---
license: cc0-1.0
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: test
    path: [en/test-*]
- config_name: de
  data_dir: german
  data_files: "*.parquet"
---
# Corn
"""


def config(path, **options):
    source = SourceConfig(name="s", kind="huggingface", path=str(path), **options)
    return DataConfig(sources=(source,), quality=QualityConfig(profile="none"), workers=1)


def names(path, **options):
    return [file.name for file in take_inventory(config(path, **options)).files]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "corn"
    for name in ("en/train-0.parquet", "en/train-1.parquet", "en/test-0.parquet", "german/all.parquet"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [f"text of {name}"]}), root / name)
    (root / "dataset_infos.json").write_text("{}")
    (root / "corn.py").write_text("class Corn: ...")
    (root / "LICENSE.txt").write_text("free")
    (root / ".gitattributes").write_text("*.parquet filter=lfs")
    (root / ".cache").mkdir()
    (root / ".cache" / "old.parquet").write_bytes(b"x")
    (root / "README.md").write_text("# Corn\n")
    return root


def test_all_data_files_of_a_folder_are_read_and_nothing_about_them(folder, tmp_path):
    everything = [
        "en/test-0.parquet",
        "en/train-0.parquet",
        "en/train-1.parquet",
        "german/all.parquet",
    ]
    assert names(folder, split="all") == everything
    settings = config(folder, split="all")
    (tmp_path / "out").mkdir()
    summary = build_documents(settings, take_inventory(settings), tmp_path / "out", silent)
    assert (summary["documents"], summary["books"]["quarantined"]) == (4, 0)
    rows = pq.read_table(tmp_path / "out" / "documents").to_pylist()
    assert rows[0]["text"] == "text of en/test-0.parquet"


@pytest.mark.parametrize("subset", ["german", "german/", "german/*.parquet", "**/all.parquet"])
def test_a_subset_is_a_folder_or_a_glob(folder, subset):
    assert names(folder, subset=subset) == ["german/all.parquet"]


def test_the_card_says_which_files_are_of_a_subset(folder):
    (folder / "README.md").write_text(CARD)
    assert names(folder, subset="de") == ["german/all.parquet"]
    assert names(folder, subset="en") == ["en/train-0.parquet", "en/train-1.parquet"]
    assert names(folder, subset="en", split="test") == ["en/test-0.parquet"]
    assert len(names(folder, subset="en", split="all")) == 3
    assert names(folder, subset="en/train-*") == ["en/train-0.parquet", "en/train-1.parquet"]
    with pytest.raises(DataError, match=r"several subsets.*Choose one of: en, de"):
        names(folder)
    with pytest.raises(DataError, match=r"no file that can be read.*fr/\*\*.*one of: en, de"):
        names(folder, subset="fr")
    (folder / "README.md").write_text(CARD.replace("config_name: de", "config_name: de\n  default: true"))
    assert names(folder) == ["german/all.parquet"]
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")
    assert len(names(folder, split="all")) == 4


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("jsonl", bytes),
        ("json", bytes),
        ("jsonl.gz", gzip.compress),
        ("json.gz", gzip.compress),
        ("jsonl.zst", zstandard.compress),
    ],
)
def test_lines_of_json_are_read_under_each_of_their_names(tmp_path, suffix, compress):
    lines = "".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(50)).encode()
    (tmp_path / "raw/data").mkdir(parents=True)
    (tmp_path / f"raw/data/train.{suffix}").write_bytes(compress(lines))
    settings = config(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    assert build_documents(settings, take_inventory(settings), tmp_path / "out", silent)["documents"] == 50


def test_a_snapshot_of_links_as_the_hub_keeps_it_is_read(folder, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "train.parquet").symlink_to(folder / "german/all.parquet")
    (file,) = take_inventory(config(snapshot)).files
    assert (file.name, file.num_bytes) == ("train.parquet", (folder / "german/all.parquet").stat().st_size)


def test_the_same_data_in_two_kinds_of_file_is_an_error(folder):
    (folder / "en/train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"several kinds.*jsonl, parquet.*\*\*/\*\.jsonl"):
        names(folder)
    assert names(folder, subset="**/*.jsonl") == ["en/train.jsonl"]


def test_a_folder_without_data_says_what_it_holds(tmp_path):
    (tmp_path / "notes.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no file that can be read.*found notes\.docx"):
        names(tmp_path)


def test_the_place_does_not_matter(folder, tmp_path):
    first = take_inventory(config(folder)).digest
    assert take_inventory(config(folder.rename(tmp_path / "moved"))).digest == first


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "hf://datasets/owner/corn"),
        ({"revision": "v1.0"}, "hf://datasets/owner/corn@v1.0"),
        ({"revision": "a/branch"}, "hf://datasets/owner/corn@a%2Fbranch"),
        ({"revision": "refs/convert/parquet"}, "hf://datasets/owner/corn@refs/convert/parquet"),
        ({"revision": "refs/pr/3"}, "hf://datasets/owner/corn@refs/pr/3"),
    ],
)
def test_what_is_no_folder_is_on_the_hub(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    source = SourceConfig(name="s", kind="huggingface", path="owner/corn", **options)
    assert root_of(source) == expected
    assert HfFileSystem._strip_protocol(expected) == expected.removeprefix("hf://")
    if options:  # names are what comes behind the root, so it must be written as the hub's listing does
        assert expected.endswith("@" + safe_revision(options["revision"]))
    (tmp_path / "owner/corn").mkdir(parents=True)
    assert root_of(source) == "owner/corn"


def test_what_only_a_data_set_has_is_refused_elsewhere():
    with pytest.raises(ValueError, match="only kind 'huggingface' takes a subset"):
        SourceConfig(name="s", kind="files", path="x", subset="en")
    with pytest.raises(ValueError, match="needs a path"):
        SourceConfig(name="s", kind="huggingface")


# --- splits ----------------------------------------------------------------------------------------


def make(root, *files):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": f"text of {name}"}) + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"), 1),
        (("train.jsonl", "test.jsonl", "dev.jsonl"), 1),
        (("train/a.jsonl", "train/b.jsonl", "validation/a.jsonl"), 2),
        (("wiki_train.jsonl", "wiki_val.jsonl", "wiki-eval-2.jsonl"), 1),
        (("training/a.jsonl", "testing/a.jsonl", "evaluation/a.jsonl"), 1),
        (("TRAIN.jsonl", "Test.jsonl"), 1),
        (("wiki-1.jsonl", "wiki-2.jsonl", "test.jsonl"), 2),
        (("a.jsonl", "contest.jsonl", "latest.jsonl", "devices.jsonl"), 4),
        (("test_suite/train.jsonl", "test_suite/test.jsonl"), 1),
        (("dev-tools/train-0.jsonl", "web/train-0.jsonl"), 2),
        (("train/en/a.jsonl", "train/eval.jsonl", "a/test/b/c.jsonl"), 1),
        (("train.jsonl", "notes.jsonl"), 1),
    ],
)
def test_the_training_split_alone_is_read(tmp_path, files, taken):
    found = names(make(tmp_path, *files))
    assert len(found) == taken
    summary = take_inventory(config(tmp_path)).summary()
    left = len(files) - taken
    assert sum(summary.get("passed_over", {}).get("s", {}).values()) == left
    assert len(names(tmp_path, split="all")) == len(files)


def test_other_splits_are_read_where_they_are_named(tmp_path):
    make(
        tmp_path,
        "train.jsonl",
        "test.jsonl",
        "data/sft-00000-of-00002.jsonl",
        "data/sft-00001-of-00002.jsonl",
    )
    assert names(tmp_path, split="test") == ["test.jsonl"]
    assert len(names(tmp_path, split="sft")) == 2
    with pytest.raises(DataError, match=r"no split 'prefs'.*one of: sft, test, train"):
        names(tmp_path, split="prefs")


def test_a_data_set_without_a_training_split_is_a_question(tmp_path):
    make(tmp_path, "test-0.jsonl", "validation-0.jsonl")
    with pytest.raises(DataError, match=r"no split 'train'.*one of: test, validation.*Set split"):
        names(tmp_path)
    assert names(tmp_path, subset="test-*") == ["test-0.jsonl"]  # the subset says so itself


def test_a_subset_that_does_not_name_its_split_is_a_question_too(tmp_path):
    make(tmp_path, "en/test-0.jsonl", "de/train-0.jsonl", "fr/validation.jsonl")
    with pytest.raises(DataError, match=r"no split 'train'.*one of: test"):
        names(tmp_path, subset="en")
    with pytest.raises(DataError, match=r"no split 'train'.*one of: validation"):
        names(tmp_path, subset="f*/**")
    assert names(tmp_path, subset="fr/validation*") == ["fr/validation.jsonl"]


def test_a_data_set_is_read_through_links_as_its_cache_lays_it(tmp_path):
    make(tmp_path, "blobs/3f", "elsewhere/train-1.jsonl")
    snapshot = tmp_path / "snapshots" / "[abc]"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-0.jsonl").symlink_to("../../../blobs/3f")
    (snapshot / "more").symlink_to(tmp_path / "elsewhere")
    (snapshot / "more-again").symlink_to(snapshot)
    assert names(snapshot) == ["data/train-0.jsonl", "more/train-1.jsonl"]
    (snapshot / "data" / "train-2.jsonl").symlink_to("../gone")
    with pytest.raises(DataError, match=r"train-2\.jsonl -> \.\./gone"):
        names(snapshot)


@pytest.mark.parametrize("as_values", [True, False])
def test_every_split_of_a_data_set_is_looked_for_in_decontamination(tmp_path, as_values):
    make(tmp_path, "train.jsonl", "test.jsonl", "validation.jsonl")
    values = {"name": "bench", "kind": "huggingface", "path": str(tmp_path)}

    def found(**options):
        source = values | options if as_values else SourceConfig(**values, **options)
        settings = DataConfig.model_validate({"decontamination": {"sources": [source]}})
        again = DataConfig.model_validate(settings.model_dump())
        assert again == settings
        return [file.name for file in find_files(again.decontamination.sources).files]

    assert found() == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    assert found(split="test") == ["test.jsonl"]
    assert found(split="train") == ["train.jsonl"]


def test_a_card_names_the_splits(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    splits = {"train": "a.jsonl", "dev": ["b.jsonl"], "heldout": "c.jsonl"}
    card = json.dumps({"configs": [{"config_name": "default", "data_files": splits}]})
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    assert names(tmp_path) == ["a.jsonl"]
    assert names(tmp_path, split="validation") == ["b.jsonl"]
    assert names(tmp_path, split="heldout") == ["c.jsonl"]


def test_hidden_files_of_a_data_set_are_passed_over(tmp_path):
    make(
        tmp_path, "train.jsonl", "._train.jsonl", "__MACOSX/train.jsonl", ".cache/train.jsonl", "train.jsonl~"
    )
    assert names(tmp_path) == ["train.jsonl"]
