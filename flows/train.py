"""Raw text to a trained model."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.data import prepare_flow
from flows.parameters import NO_SETS, NOTHING, MainSettings, RecipeName, read_recipe, run_name
from tasks.report import Summary, report, report_data
from tasks.tracked import tracked
from tasks.train import train_model


@flow(name="train", flow_run_name=run_name, persist_result=False)
def train_flow(
    recipe: RecipeName = "quickstart",
    name: str = "",
    settings: MainSettings = MainSettings(),  # noqa: B008 - frozen; draws the form
    changes: str = "",
    recipe_file: str = "",
    data: dict[str, Any] = NOTHING,
    model: dict[str, Any] = NOTHING,
    train: dict[str, Any] = NOTHING,
    evaluation_sets: list[dict[str, Any]] = NO_SETS,
    tracking: dict[str, Any] = NOTHING,
) -> Summary:
    """Prepare data (reused when nothing changed) and train a model.

    Args:
        recipe: The recipe whose values hold where nothing else is said.
        name: Name of the run and of the registered model, such as my-model; empty: the recipe's.
        settings: The settings that are changed most. An empty one keeps the recipe's value.
        changes: Any other setting, one a line, such as `train.optimizer.name=adamw`.
        recipe_file: YAML file of a recipe of your own, in place of the one above.
        data: Settings of the data section, as JSON.
        model: Settings of the model section, as JSON.
        train: Settings of the train section, as JSON.
        evaluation_sets: Texts that documents must not hold, as the pipeline's evaluation names them, as JSON.
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
        evaluation_sets=evaluation_sets,
        tracking=tracking,
    )
    with tracked(wanted, "train-flow") as run:
        prepared = prepare_flow(wanted.preparation)
        report_data(wanted, run, prepared)
        trained = train_model(wanted, prepared, run)
        return report(wanted, run, prepared, trained)
