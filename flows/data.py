"""Raw files to tokens."""

from __future__ import annotations

from prefect import flow

from lmcore.config import DataConfig, EvaluationSetConfig, TrackingConfig, make_recipe
from tasks.data_report import draw_report
from tasks.prepare import (
    Prepared,
    clean_documents,
    encode_tokens,
    split_documents,
    take_inventory,
    train_tokenizer,
)
from tasks.report import Summary, report_data
from tasks.tracked import tracked


@flow(name="data", flow_run_name="{name}", persist_result=False)
def data_flow(
    name: str = "quickstart",
    data: DataConfig = DataConfig(),  # noqa: B008 - frozen; draws the form
    evaluation_sets: tuple[EvaluationSetConfig, ...] = (),
    tracking: TrackingConfig = TrackingConfig(),  # noqa: B008
) -> Summary:
    """Prepare data, and report on it.

    Args:
        name: Name of the recipe.
        data: From raw files to tokens.
        evaluation_sets: Texts that documents must not hold, as the pipeline's evaluation names them.
        tracking: Where runs are recorded.
    """
    recipe = make_recipe(name=name, data=data, evaluation={"sets": evaluation_sets}, tracking=tracking)
    with tracked(recipe, "data") as run:
        prepared = prepare_flow(recipe.preparation)
        return report_data(recipe, run, prepared)


@flow(name="prepare", flow_run_name="prepare data", persist_result=False)
def prepare_flow(data: DataConfig) -> Prepared:
    """Clean, filter, deduplicate, split, train a tokenizer, encode to Parquet, and draw what became of it."""
    inventory = take_inventory(data)
    documents = clean_documents(data, inventory)
    splits = split_documents(data, documents)
    tokenizer = train_tokenizer(data, documents, splits)
    tokens = encode_tokens(data, documents, splits, tokenizer)
    report = draw_report(data, documents, splits, tokens)
    return Prepared(documents, splits, tokenizer, tokens, report)
