"""Settings: strict, explained, and split into what decides a result and what does not."""

import itertools
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from lmcore.config import (
    Config,
    DataConfig,
    Recipe,
    SourceConfig,
    TrackingConfig,
    TrainConfig,
    identify,
    load_recipe,
    parse,
)
from lmcore.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "flows" / "recipes").glob("*.yaml"))


def all_config_classes() -> list[type[Config]]:
    found, queue = [], [Config]
    while queue:
        for kind in queue.pop().__subclasses__():
            if kind.__module__ == "lmcore.config":
                found.append(kind)
            queue.append(kind)
    return found


@pytest.mark.parametrize("kind", all_config_classes(), ids=lambda kind: kind.__name__)
def test_every_field_is_described_and_ordered(kind):
    properties = kind.model_json_schema()["properties"]
    for position, (name, field) in enumerate(properties.items()):
        assert field.get("description"), f"{kind.__name__}.{name} has no description"
        assert field["position"] == position


@pytest.mark.parametrize("kind", all_config_classes(), ids=lambda kind: kind.__name__)
def test_no_setting_is_named_as_what_others_look_for(kind):
    # Prefect walks through parameters, and takes what has `keys` for a mapping.
    assert not {"keys", "items", "values", "get", "copy"} & set(kind.model_fields)


@pytest.mark.parametrize("kind", all_config_classes(), ids=lambda kind: kind.__name__)
def test_numbers_with_a_dimension_have_a_unit(kind):
    suffixes = ("_bytes", "_tokens", "_seconds", "_steps", "_len", "_fraction", "_ratio", "_chars", "_words")
    for name, field in kind.model_fields.items():
        if name.endswith(suffixes) and not issubclass(type(field.default), BaseModel):
            assert "[" in (field.description or ""), f"{kind.__name__}.{name} has no unit"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_named_after_their_file(path):
    # Large ones leave open what to learn from.
    source = [] if path.stem in ("quickstart", "continue-from-hf") else ["data.sources.0.path=data/*.txt"]
    assert load_recipe(path, source).name == path.stem


def test_quickstart_is_the_defaults_written_out_but_for_what_was_found_later():
    path = next(p for p in RECIPES if p.stem == "quickstart")
    expected = Recipe().model_dump(mode="json")
    expected["train"]["optimizer"] |= {"muon_learning_rate": 0.02, "muon_momentum": 0.9}
    assert yaml.safe_load(path.read_text()) == expected


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("model.num_layer=3", "did you mean num_layers?"),
        ("train.optimizer.lr=3", "learning_rate"),
        ("train.learning_rate=0.1", "(did you mean train.optimizer.learning_rate or"),
        ("learning_rate=0.1", "(did you mean train.optimizer.learning_rate or"),
        ("train.lr=0.1", "(did you mean train.optimizer.learning_rate or"),
        ("train.weight_decay=0.1", "(did you mean train.optimizer.weight_decay?)"),
        ("train.vocab_size=300", "(did you mean data.tokenizer.vocab_size?)"),
        ("model.seq_len=64", "(did you mean model.max_seq_len"),
        ("train.steps=many", "train.steps: must be a whole number, found 'many'"),
        ("train.steps=1.5", "train.steps: must be a whole number, found 1.5"),
        ("train.optimizer.learning_rate=fast", "learning_rate: must be a number, found 'fast'"),
        ("train.optimizer.learning_rate=-1", "learning_rate: must be greater than 0, found -1"),
        ("data.exact_dedup=perhaps", "exact_dedup: must be true or false, found 'perhaps'"),
        ("train.optimizer=adamw", "train.optimizer: must be a table of settings, found 'adamw'"),
        ("train.steps=0", "train.steps"),
        ("train.steps=10", "warmup_steps 10 leaves nothing of 10 steps; use at most 9"),
        ("data.sources=[]", "data.sources"),
        ("train.global_batch_tokens=5000", "use 4864 or 5120"),
        ("train.micro_batch_size=5", "divisible by micro_batch_size 5"),
        ("train.parallel.ep=2", "num_experts is 0; use ep 1"),
        ("train.parallel.dp_shard=3", r"not divisible by 6 processes"),
        ("model.num_heads=7", "not divisible by num_heads 7"),
        ("model.max_seq_len=64", "longer than model.max_seq_len"),
        ("train.steps.more=1", "train.steps"),
        ("nonsense", "a.b=value"),
        ("tracking.uri=https://me:secret@host", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking.uri=https://host/?token=secret", "MLFLOW_TRACKING_TOKEN"),
        ("tracking.uri=127.0.0.1:5000", "'127.0.0.1:5000' is no address of an MLflow; use http://"),
        ("tracking.uri=ftp://host", "is no address of an MLflow"),
        ("tracking.uri=./mlruns", "is no address of an MLflow"),
    ],
)
def test_a_wrong_setting_is_explained(tmp_path, override, hint):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nmodel: {hidden_size: 256, num_heads: 4, max_seq_len: 512}\n"
        "train: {seq_len: 256, global_batch_tokens: 4096, micro_batch_size: 8}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, [override])
    assert hint in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "name: [", "\x00"])
def test_a_recipe_that_is_no_table_is_refused(tmp_path, text):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError):
        load_recipe(recipe)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_overrides_read_numbers_as_people_write_them(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\ndata: {sources: [{name: a, kind: python_stdlib}]}\n")
    loaded = load_recipe(recipe, ["train.optimizer.learning_rate=1e-3", "model.num_kv_heads=null"])
    assert loaded.train.optimizer.learning_rate == 0.001
    assert loaded.model.num_kv_heads is None


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().steps = 3  # type: ignore[misc]


def test_experts_and_their_processes_must_be_divided_by_ep():
    quickstart = next(p for p in RECIPES if p.stem == "quickstart")
    layout = ["train.parallel.dp_shard=4", "train.micro_batch_size=4", "train.parallel.ep=4"]
    assert load_recipe(quickstart, [*layout, "model.moe.num_experts=8"]).train.parallel.ep == 4
    with pytest.raises(ConfigError, match=r"does not divide the 6 experts .*; use 2"):
        load_recipe(quickstart, [*layout, "model.moe.num_experts=6"])
    with pytest.raises(ConfigError, match="does not divide the 4 processes of dp_shard x cp; use 2"):
        load_recipe(quickstart, [*layout, "model.moe.num_experts=6", "train.parallel.ep=3"])


def test_identity_leaves_out_defaults_and_what_does_not_decide():
    base = identify(train=TrainConfig())
    assert base.chosen == {}
    other_layout = parse(TrainConfig, {"parallel": {"dp_replicate": 1}, "checkpoint_every": 7}, where="test")
    assert identify(train=other_layout) == base
    changed = parse(TrainConfig, {"optimizer": {"learning_rate": 0.5}}, where="test")
    assert identify(train=changed).chosen == {"train.optimizer.learning_rate": 0.5}


def test_identity_can_be_limited_to_paths():
    data = DataConfig()
    names = identify("data.tokenizer", data=data).values
    assert names
    assert all(name.startswith("data.tokenizer.") for name in names)


def test_where_a_source_lies_is_not_its_identity():
    def source(path: str) -> DataConfig:
        return parse(DataConfig, {"sources": [{"name": "a", "kind": "files", "path": path}]}, where="test")

    assert identify(data=source("/one/*.txt")) == identify(data=source("/two/*.txt"))


def test_an_address_with_a_port_holds_no_password():
    for path in ("http://host:8080/a@b/*.txt", "s3://bucket/a?b/key=1/*.txt", "/a/?token=1/*.txt"):
        DataConfig(sources=(SourceConfig(name="a", kind="files", path=path),))


@pytest.mark.parametrize(
    "uri",
    ["", "http://host:5000", "https://host/mlflow", "sqlite:////a/b.db", "postgresql+psycopg2://host/db"],
)
def test_addresses_of_mlflow(uri):
    assert TrackingConfig(uri=uri).uri == uri


def test_a_source_is_identified_by_what_it_chooses():
    def source(**fields) -> DataConfig:
        values = {"sources": [{"name": "a", "kind": "files", "path": "/a/*.txt", **fields}]}
        return parse(DataConfig, values, where="test")

    assert identify(data=source(text_field="text")) == identify(data=source())
    assert identify(data=source()).chosen == {"data.sources": [{"name": "a", "kind": "files"}]}
    assert identify(data=source(text_field="body")) != identify(data=source())


@pytest.mark.parametrize(
    "path",
    [
        "s3://key:secret@host/a/*.txt",
        "ftp://me:pass@there/x",
        "zip://*.txt::ftp://u:secret@h/x.zip",
        "s3://k:se/cret@b/x",
        "https://a.blob.core.windows.net/c/x.jsonl?sv=1&sig=secret",
        "https://b.s3.amazonaws.com/x.jsonl?X-Amz-Signature=secret",
        "https://host/x.jsonl?api_key=secret",
    ],
)
def test_a_password_in_a_path_is_refused(path):
    with pytest.raises(ConfigError, match="holds a password") as caught:
        parse(DataConfig, {"sources": [{"name": "a", "kind": "files", "path": path}]}, where="test")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("setting", ["train.steps=yes", "data.workers=no", "model.num_kv_heads=on"])
def test_yes_is_no_number(tmp_path, setting):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {sources: [{name: a, kind: python_stdlib}]}\n")
    with pytest.raises(ConfigError, match="must be a number; found"):
        load_recipe(recipe, [setting])
    assert load_recipe(recipe, ["model.bias=yes"]).model.bias


def test_a_recipe_says_what_to_learn_from(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\n")
    with pytest.raises(ConfigError, match=r"r\.yaml does not say what to learn from: expected data\.sources"):
        load_recipe(recipe)


@pytest.mark.parametrize("text", ["", "false", "[]", "name: 2024-13-45", "? [a, b]\n: c", "[" * 5_000])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        load_recipe(recipe)


def test_overrides_reach_into_lists_and_are_checked(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {sources: [{name: a, kind: files, path: x}, {name: b}]}\n")
    assert load_recipe(recipe, ["data.sources.1.max_bytes=5"]).data.sources[1].max_bytes == 5
    for wrong in ("data.sources.2.max_bytes=5", "data.sources.x=5", "data.0=1", "train.steps=0x_"):
        with pytest.raises(ConfigError):
            load_recipe(recipe, [wrong])


def test_a_key_that_comes_twice_is_refused(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\ntrain:\n  steps: 3\n  seq_len: 16\n  steps: 30\n")
    with pytest.raises(ConfigError, match=r"'steps' comes twice.*line 5"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.mixture=[{source: c, weight: 1}]", "train.mixture names c, but data.sources are a, b"),
        ("train.mixture=[{source: a}, {source: a}]", "each source may be named once"),
        ("train.mixture=[{source: a, weight: 0}]", "train.mixture.0.weight"),
        ("train.mixture=[{source: a, epochs: 2}]", "did you mean train.mixture.0.max_epochs?"),
        ("train.packing=first_fit", "train.packing"),
    ],
)
def test_a_wrong_mixture_is_explained(tmp_path, override, hint):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {sources: [{name: a}, {name: b}]}\n")
    load_recipe(recipe, ["train.mixture=[{source: b, weight: 2}, {source: a, max_epochs: null}]"])
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, [override])
    assert hint in str(caught.value)


def test_a_mixture_decides_what_is_trained_and_nothing_before():
    mixed = parse(TrainConfig, {"mixture": [{"source": "a"}], "packing": "best_fit"}, where="test")
    chosen = {"train.mixture": [{"source": "a"}], "train.packing": "best_fit"}
    assert identify(train=mixed).chosen == chosen


def test_batch_arithmetic_closes():
    for ranks, micro in itertools.product((1, 2, 4), (1, 2)):
        values = {
            "seq_len": 64,
            "global_batch_tokens": 64 * 16,
            "micro_batch_size": micro,
            "parallel": {"dp_replicate": ranks},
        }
        train = parse(TrainConfig, values, where="test")
        assert train.grad_accum_steps * micro * ranks * train.seq_len == train.global_batch_tokens


def test_a_password_in_a_path_that_is_not_wanted_is_not_shown():
    source = {"name": "code", "kind": "python_stdlib", "path": "s3://me:hunter2@bucket/*.txt"}
    with pytest.raises(ConfigError, match="holds a password") as caught:
        parse(DataConfig, {"sources": [source]}, where="test")
    assert "hunter2" not in str(caught.value)


BAD_NAMES = (
    "..",
    ".",
    ".hidden",
    "-rf",
    "--help",
    "a/b",
    "../x",
    "a\\b",
    "a\0b",
    "a b\n",
    "",
    "x" * 101,
    "a\n",
)


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("place", ["source", "recipe", "set", "experiment", "decontamination"])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(place, name):
    values = {
        "source": {"data": {"sources": [{"name": name}]}},
        "recipe": {"name": name},
        "set": {"evaluation": {"sets": [{"name": name, "path": "x"}]}},
        "experiment": {"tracking": {"experiment": name}},
        "decontamination": {"data": {"decontamination": {"sources": [{"name": name, "path": "x"}]}}},
    }
    with pytest.raises(ConfigError):
        parse(Recipe, values[place], where="test")


def test_names_with_dots_and_underscores_inside_are_taken():
    for name in ("a..b", "_x", "0", "pile-cc.v2", "x" * 100):
        assert parse(DataConfig, {"sources": [{"name": name}]}, where="test").sources[0].name == name
    pairs = {"name": "x" * 95, "kind": "minimal_pairs", "path": "p.jsonl"}
    recipe = parse(Recipe, {"evaluation": {"sets": [pairs]}}, where="test")
    assert [len(source.name) for source in recipe.preparation.decontamination.sources] == [100, 99]


@pytest.mark.parametrize(
    "values", [{"data": {"sources": [{"name": "a", "path": "a\0b"}]}}, {"train": {"initial_weights": "/\0"}}]
)
def test_a_path_with_a_nul_is_refused(values):
    with pytest.raises(ConfigError, match="NUL"):
        parse(Recipe, values, where="test")
