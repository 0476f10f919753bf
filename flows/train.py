"""Raw text to a trained model."""

from __future__ import annotations

from prefect import flow

from flows.data import prepare_flow
from lmcore.config import (
    DataConfig,
    EvaluationSetConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
    make_recipe,
)
from tasks.report import Summary, report, report_data
from tasks.tracked import tracked
from tasks.train import train_model


@flow(name="train", flow_run_name="{name}", persist_result=False)
def train_flow(
    name: str = "quickstart",
    data: DataConfig = DataConfig(),  # noqa: B008 - frozen; draws the form
    evaluation_sets: tuple[EvaluationSetConfig, ...] = (),
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    tracking: TrackingConfig = TrackingConfig(),  # noqa: B008
) -> Summary:
    """Prepare data (reused when nothing changed) and train a model.

    Args:
        name: Name of the recipe, and of the registered model unless tracking says otherwise.
        data: From raw files to tokens.
        evaluation_sets: Texts that documents must not hold, as the pipeline's evaluation names them.
        model: The Transformer.
        train: Training.
        tracking: Where runs are recorded.
    """
    recipe = make_recipe(
        name=name,
        data=data,
        model=model,
        train=train,
        evaluation={"sets": evaluation_sets},
        tracking=tracking,
    )
    with tracked(recipe, "train-flow") as run:
        prepared = prepare_flow(recipe.preparation)
        report_data(recipe, run, prepared)
        trained = train_model(recipe, prepared, run)
        return report(recipe, run, prepared, trained)
