"""The settings of a run, as MLflow compares them."""

from lmcore.config import Recipe, SourceConfig, load_recipe, parse
from tasks.tracked import settings_of


def test_every_setting_is_told_under_the_path_that_changes_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {sources: [{name: a, kind: files, path: a.txt}]}\n")
    told = settings_of(load_recipe(path), "pipeline")
    assert len(told) > 200
    for setting, value in {
        "train.optimizer.learning_rate": "0.004",
        "train.compile": "blocks",
        "data.sources.0.path": "b.txt",
        "data.language.enabled": "true",
        "model.num_kv_heads": "1",
        "evaluation.prompts": '["the mill"]',
    }.items():
        other = settings_of(load_recipe(path, [f"{setting}={value}"]), "pipeline")
        assert {name for name in told if told[name] != other[name]} == {setting}
        assert other[setting] == value


def test_a_flow_that_does_less_has_fewer_settings():
    data = settings_of(Recipe(), "data")
    assert {name.partition(".")[0] for name in data} == {"data", "evaluation"}
    train = settings_of(Recipe(), "train-flow")
    assert {name.partition(".")[0] for name in train} == {"data", "evaluation", "model", "train"}
    assert "evaluation.prompts" not in train


def test_many_sources_are_one_value():
    sources = tuple(SourceConfig(name=f"s{number}", kind="files", path="x") for number in range(30))
    recipe = parse(Recipe, {"data": {"sources": sources}}, where="test")
    assert '"s29"' in settings_of(recipe, "pipeline")["data.sources"]


def test_a_secret_that_came_by_is_not_told():
    source = SourceConfig.model_construct(name="a", kind="files", path="s3://me:hunter2@bucket/x")
    recipe = Recipe.model_construct(
        **{name: getattr(Recipe(), name) for name in Recipe.model_fields}
        | {"data": Recipe().data.model_copy(update={"sources": (source,)})}
    )
    told = settings_of(recipe, "pipeline")
    assert not [value for value in told.values() if "hunter2" in value]
    assert "data.sources.0.path" in told
