"""A model directory that is used by its path is what was written, or is refused."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from lmcore.config import ModelConfig
from lmcore.errors import CheckpointError
from lmcore.eval import generate
from lmcore.model.hf import __main__ as hf
from lmcore.model.hf.files import weights_digest
from lmcore.model.hf.weights import HFWeights
from lmcore.model.io import SavedModel, load_model, save_model
from lmcore.model.transformer import Transformer
from lmcore.store import MANIFEST

LLAMA = {"activation": "swiglu", "qk_norm": False}
CONFIG = ModelConfig(num_layers=1, hidden_size=32, num_heads=2, max_seq_len=32, **LLAMA)


@pytest.fixture
def model(tmp_path):
    """A model directory with the files of a tokenizer."""
    torch.manual_seed(0)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    vocabulary = {chr(97 + i): i + 1 for i in range(20)} | {"<|endoftext|>": 0}
    content = Tokenizer(BPE(vocabulary, []))
    content.add_special_tokens(["<|endoftext|>"])
    content.save(str(tokenizer / "tokenizer.json"))
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    save_model(tmp_path / "model", Transformer(CONFIG, 21), CONFIG, 21, tokenizer)
    return tmp_path / "model"


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def damages(path, draw):
    """Change a file in one way after another; put it back each time."""
    whole = path.read_bytes()
    for _ in range(12):
        flip(path, draw)
        yield "flipped"
        path.write_bytes(whole)
    for name, content in {"truncated": whole[:-1], "empty": b"", "longer": whole + b" "}.items():
        path.write_bytes(content)
        yield name
    path.unlink()
    yield "deleted"
    path.write_bytes(whole)


def test_any_damage_to_any_file_is_refused(model):
    draw = random.Random(5)
    assert SavedModel(model).verified
    for path in sorted(model.iterdir()):
        for how in damages(path, draw):
            if (path.name, how) == (MANIFEST, "deleted"):
                continue
            with pytest.raises(CheckpointError, match="does not hold a whole model"):
                load_model(model)
    assert load_model(model) is not None


def test_commands_refuse_a_model_with_a_flipped_weight(model, tmp_path, capfd):
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-3] ^= 0x40  # an exponent
    (model / "model.safetensors").write_bytes(content)
    assert generate.main([str(model), "--prompt", "a", "--temperature", "0"]) == 1
    assert hf.main(["export", str(model), str(tmp_path / "hf")]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.count("model.safetensors as it was written") == 2


def test_a_model_without_a_manifest_is_read_with_a_word(model, tmp_path, capfd):
    assert generate.main([str(model), "--max-new-tokens", "1"]) == 0
    assert capfd.readouterr().err == ""
    (model / MANIFEST).unlink()
    assert generate.main([str(model), "--max-new-tokens", "1"]) == 0
    assert hf.main(["export", str(model), str(tmp_path / "hf")]) == 0
    assert capfd.readouterr().err.count("unverified") == 2
    (model / MANIFEST).write_text("{}")  # of somebody else
    assert not SavedModel(model).verified


def test_an_export_is_verified_where_it_is_taken_up(model, tmp_path, capfd):
    exported = tmp_path / "hf"
    assert hf.main(["export", str(model), str(exported)]) == 0
    assert hf.main(["import", str(exported)]) == 0
    assert HFWeights(exported).verified
    draw = random.Random(6)
    digest = weights_digest(exported)
    for path in sorted(exported.iterdir()):
        for how in damages(path, draw):
            if (path.name, how) != (MANIFEST, "deleted"):
                with pytest.raises(CheckpointError, match="does not hold a whole model"):
                    HFWeights(exported)
    assert weights_digest(exported) == digest
