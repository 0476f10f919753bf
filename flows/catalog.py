"""Which flow runs which part of a recipe."""

from __future__ import annotations

from flows.data import data_flow
from flows.evaluate import evaluate_flow
from flows.pipeline import pipeline_flow
from flows.train import train_flow
from lmcore.config import Recipe
from tasks.report import Summary


def run(kind: str, recipe: Recipe) -> Summary:
    """Run the flow ``kind`` (data, train, evaluate or pipeline) with the settings of ``recipe``."""
    flows = {"data": data_flow, "train": train_flow, "evaluate": evaluate_flow, "pipeline": pipeline_flow}
    flow = flows[kind]
    wanted = flow.parameters.properties
    parts = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    # Where a flow does not evaluate, what it must not learn is a parameter of its own.
    parts["evaluation_sets"] = recipe.evaluation.sets
    return flow(**{name: part for name, part in parts.items() if name in wanted})
