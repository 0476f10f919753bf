"""Raw files to tokens."""

from __future__ import annotations

from prefect import flow

from lmcore.config import DataConfig
from tasks.prepare import (
    Prepared,
    clean_documents,
    encode_tokens,
    split_documents,
    take_inventory,
    train_tokenizer,
)
from tasks.report import report_data


@flow(name="data", flow_run_name="prepare data", persist_result=False)
def data_flow(data: DataConfig = DataConfig()) -> Prepared:  # noqa: B008 - frozen; draws the form
    """Clean, filter, deduplicate, split, train a tokenizer, and encode to Parquet.

    Args:
        data: From raw files to tokens.
    """
    inventory = take_inventory(data)
    documents = clean_documents(data, inventory)
    splits = split_documents(data, documents)
    tokenizer = train_tokenizer(data, documents, splits)
    tokens = encode_tokens(data, documents, splits, tokenizer)
    prepared = Prepared(documents, splits, tokenizer, tokens)
    report_data(prepared)
    return prepared
