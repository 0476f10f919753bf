"""What an evaluation needs of a model."""

import pytest

from lmcore.config import DataConfig, EvaluationConfig, EvaluationSetConfig, Recipe, SourceConfig
from lmcore.data.prepare import take_inventory
from lmcore.errors import StorageError
from lmcore.eval.sets import find_sets
from lmcore.store import Artifact, hash_files, sha256_json
from tasks.evaluate import (
    Subject,
    changes_of_protocol,
    evaluate_champion,
    evaluate_stage,
    evaluation_metrics,
    protocol,
    protocol_digest,
)
from tasks.prepare import Prepared, documents_stage
from tasks.report import Summary, markdown, set_summaries
from tasks.tracking_registry import ModelVersion


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_champion_that_lost_a_file_says_which(tmp_path, missing):
    for name in {"model.safetensors", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    champion = ModelVersion(
        name="mill",
        version="3",
        aliases=["champion"],
        model_path=str(tmp_path),
        model_digest="m",
        bits_per_byte=1.5,
        data_digest="d",
        seq_len=64,
        document_mask=False,
        split_seed=0,
        validation_fraction=0.1,
    )
    data = Artifact("data", "0" * 64, tmp_path, "built", "", 0.0, digest="d")
    with pytest.raises(StorageError, match=f"version 3 of mill, cannot be evaluated.*found no {missing}"):
        evaluate_champion.fn(Recipe(), Prepared(data, data, data, data), champion, None)


def test_a_champion_whose_files_have_changed_is_not_measured(tmp_path):
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    champion = ModelVersion(
        name="mill",
        version="3",
        aliases=["champion"],
        model_path=str(tmp_path),
        model_digest=sha256_json(hash_files(tmp_path)),
        bits_per_byte=1.5,
        data_digest="d",
        seq_len=64,
        document_mask=False,
        split_seed=0,
        validation_fraction=0.1,
    )
    (tmp_path / "model.safetensors").write_text("[]")
    data = Artifact("data", "0" * 64, tmp_path, "built", "", 0.0, digest="d")
    with pytest.raises(StorageError, match="version 3 of mill, is not what was registered"):
        evaluate_champion.fn(Recipe(), Prepared(data, data, data, data), champion, None)


def test_files_of_sets_decide_where_there_are_sets(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "the mill turns"}')
    wanted = EvaluationSetConfig(name="a", path=f"{tmp_path}/a.jsonl")
    plain, with_set = Recipe(), Recipe(evaluation=EvaluationConfig(sets=(wanted,)))
    tokens = Artifact("tokens", "0" * 64, tmp_path, "built", "", 0.0, digest="t")
    subject = Subject("mill", tmp_path, "m", 64, document_mask=False)
    before = evaluate_stage(plain, subject, tokens)
    assert before.inputs == {"model": "m", "tokens": "t"}
    assert before.key == evaluate_stage(plain, subject, tokens, find_sets(plain.evaluation)).key
    one = evaluate_stage(with_set, subject, tokens, find_sets(with_set.evaluation))
    (tmp_path / "a.jsonl").write_text('{"text": "the mill turned"}')
    other = evaluate_stage(with_set, subject, tokens, find_sets(with_set.evaluation))
    assert len({before.key, one.key, other.key}) == 3
    assert other.differences(one.record()) == ["input evaluation sets changed"]


@pytest.mark.parametrize(("suffix", "is_page"), [("html", True), ("txt", False)])
def test_what_reads_pages_decides_figures_and_documents(tmp_path, suffix, is_page):
    (tmp_path / f"a.{suffix}").write_text("<p>the mill turns and turns and turns</p>")
    (tmp_path / "b.txt").write_text("the mill stands")
    sets = (EvaluationSetConfig(name="a", path=f"{tmp_path}/a.{suffix}"),)
    recipe = Recipe(
        data=DataConfig(sources=(SourceConfig(name="b", kind="files", path=f"{tmp_path}/b.txt"),)),
        evaluation=EvaluationConfig(sets=sets),
    )
    tokens = Artifact("tokens", "0" * 64, tmp_path, "built", "", 0.0, digest="t")
    subject = Subject("mill", tmp_path, "m", 64, document_mask=False)
    data = recipe.preparation
    for stage in (
        evaluate_stage(recipe, subject, tokens, find_sets(recipe.evaluation)),
        documents_stage(data, take_inventory(data)),
    ):
        assert ("resiliparse" in stage.deciding) == is_page


def test_figures_of_sets_are_metrics_and_a_table():
    sets = {
        "wiki": {"kind": "text", "bits_per_byte": 1.25, "loss": 3.0, "num_documents": 1200},
        "blimp": {
            "kind": "minimal_pairs",
            "accuracy": 0.75,
            "num_pairs": 8,
            "groups": {"order": {"accuracy": 0.5, "num_pairs": 4}},
        },
    }
    metrics = evaluation_metrics({"bits_per_byte": 2.0, "sets": sets})
    assert metrics == {
        "eval/bits_per_byte": 2.0,
        "eval/wiki/bits_per_byte": 1.25,
        "eval/blimp/accuracy": 0.75,
    }
    rows = set_summaries(sets)
    assert [(row.name, row.group, row.value, row.items) for row in rows] == [
        ("wiki", "", 1.25, 1200),
        ("blimp", "", 0.75, 8),
        ("blimp", "order", 0.5, 4),
    ]
    page = markdown(Summary(recipe="mill", stages=[], sets=rows), {})
    assert "| wiki | bits per byte | **1.2500** | 1,200 |" in page
    assert "| blimp | accuracy | **0.7500** | 8 |" in page
    assert "evaluation set" not in markdown(Summary(recipe="mill", stages=[]), {})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"digest": "b"}, "the held-out documents are others"),
        ({"stride_tokens": 8}, "evaluation.stride_tokens went from 64 to 8"),
        ({"max_bytes": 9}, "evaluation.max_bytes went from 1000000 to 9"),
        (
            {"digest": "b", "stride_tokens": 8},
            "the held-out documents are others, evaluation.stride_tokens went",
        ),
    ],
)
def test_what_keeps_two_scores_from_being_compared_is_named(tmp_path, changed, words):
    def measured(digest="a", **evaluation):
        splits = Artifact("splits", "0" * 64, tmp_path, "built", "", 0.0, {"validation_digest": digest})
        prepared = Prepared(splits, splits, splits, splits)
        recipe = Recipe(evaluation=EvaluationConfig(**{"max_bytes": 1_000_000, **evaluation}))
        return protocol(recipe, prepared), protocol_digest(recipe, prepared)

    (then, digest), (now, other) = measured(), measured(**changed)
    assert digest != other
    assert changes_of_protocol(then, now).startswith(words)
    assert changes_of_protocol(then, then) == ""
    assert "not kept" in changes_of_protocol({}, now)
    some = {name: value for name, value in now.items() if name != "evaluation.max_bytes"}
    assert changes_of_protocol(some, now) == "evaluation.max_bytes was not kept"
