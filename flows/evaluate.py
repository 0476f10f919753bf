"""A trained model, measured."""

from __future__ import annotations

from prefect import flow

from flows.data import prepare_flow
from lmcore.config import DataConfig, EvaluationConfig, ModelConfig, TrackingConfig, TrainConfig, make_recipe
from tasks.evaluate import evaluate_model, take_sets
from tasks.report import Summary, report, report_data
from tasks.tracked import tracked
from tasks.train import train_model


@flow(name="evaluate", flow_run_name="{name}", persist_result=False)
def evaluate_flow(
    name: str = "quickstart",
    data: DataConfig = DataConfig(),  # noqa: B008 - frozen; draws the form
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    tracking: TrackingConfig = TrackingConfig(),  # noqa: B008
) -> Summary:
    """Measure the model of these settings; data and training are reused when they are there.

    Args:
        name: Name of the recipe, and of the registered model unless tracking says otherwise.
        data: From raw files to tokens.
        model: The Transformer.
        train: Training.
        evaluation: How the model is measured.
        tracking: Where runs and models are recorded.
    """
    recipe = make_recipe(
        name=name, data=data, model=model, train=train, evaluation=evaluation, tracking=tracking
    )
    with tracked(recipe, "evaluate-flow") as run:
        sets = take_sets(recipe.evaluation)
        prepared = prepare_flow(recipe.preparation)
        report_data(recipe, run, prepared)
        trained = train_model(recipe, prepared, run)
        evaluated = evaluate_model(recipe, prepared, trained, run, sets)
        return report(recipe, run, prepared, trained, evaluated)
