"""The script of a registered model: reads the files beside it and continues prompts.

MLflow runs it wherever the model is loaded, so it needs nothing of gristmill but the copy of ``lmcore`` in
the model. It runs once when the model is saved, too: torch is imported when the weights are read, not before.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class LanguageModel(PythonModel):
    """Continues the texts of the column ``prompt``, or of the first; returns them in the column ``text``."""

    def load_context(self, context: Any) -> None:
        """Read weights and tokenizer."""
        # By name: a tool that reads imports would have the flows import torch.
        generate = importlib.import_module("lmcore.eval.generate")
        self._generator = generate.Generator.load(Path(context.artifacts["model"]))

    # Without types: of those that it does not know MLflow warns wherever the model is loaded.
    def predict(self, context, model_input, params=None):  # noqa: ANN001, ANN201
        """Return one continuation for each prompt, the prompt left out."""
        import pandas as pd

        config = importlib.import_module("lmcore.config")
        sampling = config.SamplingConfig(**(params or {}))
        table = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        prompts = table["prompt"] if "prompt" in table else table.iloc[:, 0]
        prompts = prompts.explode()  # a mapping of lists comes as one row
        return pd.DataFrame({"text": [self._generator.text(str(prompt), sampling) for prompt in prompts]})


set_model(LanguageModel())
