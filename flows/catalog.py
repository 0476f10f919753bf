"""Which flow runs which part of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from flows.data import data_flow
from flows.evaluate import evaluate_flow
from flows.parameters import title_of
from flows.pipeline import pipeline_flow
from flows.recipe_files import descriptions
from flows.train import train_flow
from lmcore.config import Recipe
from tasks.report import Summary


def run(kind: str, recipe: Recipe, changes: Sequence[str] = ()) -> Summary:
    """Run the flow ``kind`` (data, train, evaluate or pipeline) with the settings of ``recipe``.

    Args:
        kind: Of flow.
        recipe: Every setting.
        changes: What was changed of the recipe's file, as ``a.b=c``: part of the run's name.
    """
    flows = {"data": data_flow, "train": train_flow, "evaluate": evaluate_flow, "pipeline": pipeline_flow}
    flow = flows[kind].with_options(flow_run_name=lambda: title_of(recipe.name, changes))
    wanted = flow.parameters.properties
    parts = recipe.model_dump(mode="json")
    # Where a flow does not evaluate, what it must not learn is a parameter of its own.
    parts["evaluation_sets"] = parts["evaluation"]["sets"]
    named = {"recipe": recipe.name} if recipe.name in descriptions() else {}
    return flow(**named, **{name: part for name, part in parts.items() if name in wanted})
