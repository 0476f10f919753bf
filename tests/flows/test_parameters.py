"""What a form, a schedule and the API give the flows: a recipe, and changes to it."""

from pathlib import Path

import pytest
import yaml

from flows.catalog import data_flow, evaluate_flow, pipeline_flow, train_flow
from flows.parameters import MainSettings, is_generated, read_recipe, title, title_of
from flows.recipe_files import find_recipe
from lmcore.config import load_recipe
from lmcore.errors import ConfigError

DEPLOYMENTS = yaml.safe_load((Path(__file__).parents[2] / "infra" / "prefect.yaml").read_text())[
    "deployments"
]
FLOWS = {"pipeline": pipeline_flow, "data": data_flow, "train": train_flow, "evaluate": evaluate_flow}
TEXTS = {"name": "", "recipe": "quickstart", "recipe_file": "", "changes": ""}


def read(settings=None, **given):
    sections = {name: value for name, value in given.items() if name not in TEXTS}
    texts = TEXTS | {name: value for name, value in given.items() if name in TEXTS}
    return read_recipe(**texts, settings=settings or MainSettings(), **sections)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["name"])
def test_a_deployment_has_the_values_of_its_recipe_and_no_copy_of_them(deployment):
    assert set(deployment["parameters"]) == {"recipe"}
    assert read(**deployment["parameters"]) == load_recipe(find_recipe("quickstart"))
    assert all("parameters" not in schedule for schedule in deployment.get("schedules", ()))
    assert (
        deployment["parameters"]["recipe"]
        in FLOWS[deployment["name"]].parameters.properties["recipe"]["enum"]
    )


@pytest.mark.parametrize("name", FLOWS)
def test_a_form_is_short_and_begins_with_what_is_changed_most(name):
    schema = FLOWS[name].parameters
    order = sorted(schema.properties, key=lambda one: schema.properties[one]["position"])
    assert order[:4] == ["recipe", "name", "settings", "changes"]
    main = schema.definitions["MainSettings"]["properties"]
    assert len(order) + len(main) < 25
    # Prefect draws "or null" as two tabs, of which one says `Property is type "None"`.
    assert "anyOf" not in str(schema.model_dump())
    labels = [field["title"] for field in main.values()]
    assert labels[:4] == ["Source files", "Source bytes", "Steps", "Learning rate"]


def test_the_first_learning_rate_is_that_of_the_optimizer():
    muon = read(MainSettings(learning_rate=0.011)).train.optimizer
    assert (muon.muon_learning_rate, muon.learning_rate) == (0.011, 0.008)
    adamw = read(MainSettings(learning_rate=0.011), changes="train.optimizer.name=adamw").train.optimizer
    assert (adamw.name, adamw.learning_rate) == ("adamw", 0.011)
    other = read(MainSettings(learning_rate=0.011), train={"optimizer": {"name": "sgd"}}).train.optimizer
    assert (other.name, other.learning_rate) == ("sgd", 0.011)
    with pytest.raises(ConfigError, match="of muon alone"):
        read(MainSettings(adamw_learning_rate=0.1), changes="train.optimizer.name=adamw")


def test_settings_sections_and_changes_win_in_this_order(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("a")
    recipe = read(
        MainSettings(steps=50, path=str(text), num_layers=3),
        name="mine",
        changes="# a note\ntrain.steps=60\n\nevaluation.stride_tokens=32\n",
        train={"steps": 40, "seed": 5},
        tracking={"experiment": "other"},
    )
    assert (recipe.train.steps, recipe.train.seed, recipe.model.num_layers) == (60, 5, 3)
    assert (recipe.data.sources[0].kind, recipe.data.sources[0].path) == ("files", str(text))
    assert (recipe.name, recipe.tracking.experiment, recipe.evaluation.stride_tokens) == ("mine", "other", 32)
    assert recipe.train.optimizer.muon_learning_rate == 0.02  # all else is the quickstart's


def test_a_recipe_of_ones_own_takes_the_place_of_the_named_one(tmp_path):
    own = tmp_path / "my-own.yaml"
    own.write_text(
        "name: my-own\ndata: {sources: [{name: a, kind: files, path: a.txt}]}\ntrain: {steps: 33}\n"
    )
    assert read(MainSettings(vocab_size=600), recipe_file=str(own)).data.tokenizer.vocab_size == 600
    assert read(recipe_file=str(own)) == load_recipe(own)
    with pytest.raises(ConfigError, match="did you mean num_layers"):
        read(changes="model.num_layer=3")


def test_a_run_is_called_what_was_typed_or_what_was_changed():
    def called(settings=None, **given):
        sections = {name: value for name, value in given.items() if name not in TEXTS}
        texts = TEXTS | {name: value for name, value in given.items() if name in TEXTS}
        return title(**texts, settings=settings or MainSettings(), **sections)

    assert called() == "quickstart"
    assert called(MainSettings(learning_rate=0.002, steps=500)) in (
        "quickstart lr=0.002 steps=500",
        "quickstart steps=500 lr=0.002",
    )
    assert called(changes="train.seed=3\ntrain.optimizer.name=adamw") == "quickstart seed=3 name=adamw"
    assert called(name="typed", changes="train.seed=3") == "typed"
    assert called(recipe_file="/a/my-own.yaml", train={"seed": 4}) == "my-own seed=4"
    assert title_of("r", ["tracking.uri=http://me:secret@host"]) == "r"
    assert title_of("r", [f"data.sources.{i}.path=/a/long/way/to/{i}.txt" for i in range(9)]).endswith("more")


def test_names_that_prefect_makes_up_are_told_from_typed_ones():
    from prefect.utilities.names import generate_slug

    made_up = ["iota239-ko-sector", "rho2-chactun", "alpha-vega", *(generate_slug(2) for _ in range(20))]
    made_up = [name for name in made_up if name != "iota239-ko-sector"]
    assert all(map(is_generated, made_up))
    assert not any(
        map(is_generated, ["from-the-form", "my-run", "alpha-test", "quickstart", "lr 0.1", "run2-b"])
    )
