"""Raw files to tokens."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.parameters import NO_SETS, NOTHING, MainSettings, RecipeName, read_recipe, run_name
from lmcore.config import DataConfig
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


@flow(name="data", flow_run_name=run_name, persist_result=False)
def data_flow(
    recipe: RecipeName = "quickstart",
    name: str = "",
    settings: MainSettings = MainSettings(),  # noqa: B008 - frozen; draws the form
    changes: str = "",
    recipe_file: str = "",
    data: dict[str, Any] = NOTHING,
    evaluation_sets: list[dict[str, Any]] = NO_SETS,
    tracking: dict[str, Any] = NOTHING,
) -> Summary:
    """Prepare data, and report on it.

    Args:
        recipe: The recipe whose values hold where nothing else is said.
        name: Name of the run and of the registered model, such as my-model; empty: the recipe's.
        settings: The settings that are changed most. An empty one keeps the recipe's value.
        changes: Any other setting, one a line, such as `train.optimizer.name=adamw`.
        recipe_file: YAML file of a recipe of your own, in place of the one above.
        data: Settings of the data section, as JSON.
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
        evaluation_sets=evaluation_sets,
        tracking=tracking,
    )
    with tracked(wanted, "data") as run:
        prepared = prepare_flow(wanted.preparation)
        return report_data(wanted, run, prepared)


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
