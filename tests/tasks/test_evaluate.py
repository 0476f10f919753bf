"""What an evaluation needs of a model."""

import pytest

from lmcore.config import Recipe
from lmcore.errors import StorageError
from lmcore.store import Artifact
from tasks.evaluate import evaluate_champion
from tasks.prepare import Prepared
from tasks.tracking import ModelVersion


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_champion_that_lost_a_file_says_which(tmp_path, missing):
    for name in {"model.safetensors", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    champion = ModelVersion(
        name="mill",
        version="3",
        aliases=["champion"],
        model_path=str(tmp_path),
        model_digest="m",
        bits_per_byte=1.5,
        data_digest="d",
        seq_len=64,
        document_mask=False,
        split_seed=0,
        validation_fraction=0.1,
    )
    data = Artifact("data", "0" * 64, tmp_path, "built", "", 0.0, digest="d")
    with pytest.raises(StorageError, match=f"version 3 of mill, cannot be evaluated.*found no {missing}"):
        evaluate_champion.fn(Recipe(), Prepared(data, data, data, data), champion, None)
