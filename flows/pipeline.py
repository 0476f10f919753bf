"""Raw text to a measured, registered model."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.data import prepare_flow
from flows.parameters import NOTHING, MainSettings, RecipeName, read_recipe, run_name
from tasks.evaluate import evaluate_model, take_sets
from tasks.registry import register_model
from tasks.report import Summary, report, report_data
from tasks.tracked import tracked
from tasks.train import train_model


@flow(name="pipeline", flow_run_name=run_name, persist_result=False)
def pipeline_flow(
    recipe: RecipeName = "quickstart",
    name: str = "",
    settings: MainSettings = MainSettings(),  # noqa: B008 - frozen; draws the form
    changes: str = "",
    recipe_file: str = "",
    data: dict[str, Any] = NOTHING,
    model: dict[str, Any] = NOTHING,
    train: dict[str, Any] = NOTHING,
    evaluation: dict[str, Any] = NOTHING,
    tracking: dict[str, Any] = NOTHING,
) -> Summary:
    """Prepare data, train, evaluate, and register the model; promote it if it beats the champion.

    Args:
        recipe: The recipe whose values hold where nothing else is said.
        name: Name of the run and of the registered model, such as my-model; empty: the recipe's.
        settings: The settings that are changed most. An empty one keeps the recipe's value.
        changes: Any other setting, one a line, such as `train.optimizer.name=adamw`.
        recipe_file: YAML file of a recipe of your own, in place of the one above.
        data: Settings of the data section, as JSON.
        model: Settings of the model section, as JSON.
        train: Settings of the train section, as JSON.
        evaluation: Settings of the evaluation section, as JSON.
        tracking: Settings of the tracking section, as JSON.
    """
    wanted = read_recipe(
        name=name,
        recipe=recipe,
        recipe_file=recipe_file,
        settings=settings,
        changes=changes,
        data=data,
        model=model,
        train=train,
        evaluation=evaluation,
        tracking=tracking,
    )
    with tracked(wanted, "pipeline") as run:
        sets = take_sets(wanted.evaluation)
        prepared = prepare_flow(wanted.preparation)
        report_data(wanted, run, prepared)
        trained = train_model(wanted, prepared, run)
        evaluated = evaluate_model(wanted, prepared, trained, run, sets)
        registered = register_model(wanted, prepared, trained, evaluated, run)
        return report(wanted, run, prepared, trained, evaluated, registered)
