"""Raw text to a measured, registered model."""

from __future__ import annotations

from prefect import flow

from flows.data import prepare_flow
from lmcore.config import DataConfig, EvaluationConfig, ModelConfig, TrackingConfig, TrainConfig, make_recipe
from tasks.evaluate import evaluate_model, take_sets
from tasks.registry import register_model
from tasks.report import Summary, report, report_data
from tasks.tracked import tracked
from tasks.train import train_model


@flow(name="pipeline", flow_run_name="{name}", persist_result=False)
def pipeline_flow(
    name: str = "quickstart",
    data: DataConfig = DataConfig(),  # noqa: B008 - frozen; draws the form
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    tracking: TrackingConfig = TrackingConfig(),  # noqa: B008
) -> Summary:
    """Prepare data, train, evaluate, and register the model; promote it if it beats the champion.

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
    with tracked(recipe, "pipeline") as run:
        sets = take_sets(recipe.evaluation)
        prepared = prepare_flow(recipe.preparation)
        report_data(recipe, run, prepared)
        trained = train_model(recipe, prepared, run)
        evaluated = evaluate_model(recipe, prepared, trained, run, sets)
        registered = register_model(recipe, prepared, trained, evaluated, run)
        return report(recipe, run, prepared, trained, evaluated, registered)
