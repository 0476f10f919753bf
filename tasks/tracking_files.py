"""A model directory as an MLflow model: files, the code that reads them, signature, example, requirements."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import lmcore
from lmcore.config import SamplingConfig

FILES = "artifacts/model"  # of an MLflow model: the model directory
SCRIPT = Path(__file__).with_name("tracking_pyfunc.py")
# What the code beside the weights imports to load and to draw.
_LIBRARIES = (
    *("mlflow", "fsspec", "numpy", "orjson", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors"),
    *("tokenizers", "torch", "zstandard"),
)


def write_mlflow_model(out: Path, model: Path, model_id: str, run_id: str | None, prompt: str) -> None:
    """Write the MLflow model of the model directory ``model`` to ``out``, all but its weights.

    Args:
        out: A folder that is not there yet.
        model: Holds config.json, safetensors and the tokenizer.
        model_id: Of MLflow's logged model.
        run_id: Of the run that made it.
        prompt: Of the input example.
    """
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, ParamSchema, Schema

    light = out.with_name("model")
    shutil.copytree(model, light, ignore=shutil.ignore_patterns("*.safetensors*"))
    code = out.with_name("code") / "lmcore"
    shutil.copytree(Path(lmcore.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it tells of each look at the example
    with warnings.catch_warnings():
        # It wants types that would bind every caller to lists, and reads pandas in a way that will change.
        warnings.simplefilter("ignore")
        save_model(
            str(out),
            python_model=str(SCRIPT),  # a script and no pickle: nothing of this process is stored
            artifacts={"model": str(light)},
            code_paths=[str(code)],
            # Without a name, one column of any name is right, and a list or a text without one too.
            signature=ModelSignature(
                Schema([ColSpec("string")]), Schema([ColSpec("string", "text")]), ParamSchema(_params())
            ),
            input_example=pd.DataFrame({"prompt": [prompt]}),
            pip_requirements=requirements(),
            mlflow_model=Model(model_uuid=model_id, model_id=model_id, run_id=run_id),
        )
    described = out / "MLmodel"
    text = described.read_text(encoding="utf-8")
    # Where the files lay for a moment on this machine says nothing to others.
    text = re.sub(r"(?m)^( *)uri: .*$", rf"\1uri: {FILES}", text)
    text = re.sub(r"(?m)^( *)model_code_path: .*$", rf"\1model_code_path: {SCRIPT.name}", text)
    described.write_text(text, encoding="utf-8")


def _params() -> list[Any]:
    """What a caller may say of how text is drawn, as `gristmill generate` has it but for a shorter text."""
    from mlflow.types import ParamSpec

    sampling = SamplingConfig(max_new_tokens=40)
    kinds = {int: "long", float: "double"}
    return [ParamSpec(name, kinds[type(value)], value) for name, value in sampling.model_dump().items()]


def requirements() -> list[str]:
    """What loading needs, each as it is installed here; builds of one version, such as +cpu, are alike."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _LIBRARIES]
