"""A trained model leaves by `gristmill export`, and another recipe goes on from it."""

import json

import pytest
import yaml

LLAMA = ("--set", "model.activation=swiglu", "--set", "model.qk_norm=false")


@pytest.fixture(scope="module")
def mill(make_mill):
    return make_mill("hugging-face")


def called(mill, *arguments, status=0):
    done = mill.call(*arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if status else done.stdout


@pytest.mark.long
def test_a_model_leaves_and_another_run_goes_on_from_it(mill, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe, out = str(mill.recipe), tmp_path / "out"
    called(mill, "train", recipe, *LLAMA)
    called(mill, "export", recipe, str(out), "--dtype", "bf16", *LLAMA)
    assert "is there already" in called(mill, "export", recipe, str(out), *LLAMA, status=1)
    tokens = AutoTokenizer.from_pretrained(out)("the mill turns", return_tensors="pt")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out)(**tokens).logits
    assert logits.isfinite().all()

    printed = called(mill, "import", str(out))
    sections = yaml.safe_load(printed)
    assert printed.startswith("# A llama of ")
    assert sections["data"] == {"tokenizer": {"path": str(out), "end_of_text": "<|endoftext|>"}}
    base = yaml.safe_load(mill.recipe.read_text())
    base["data"].update(sections["data"])
    base["train"].update(sections["train"])
    onward = tmp_path / "onward.yaml"
    onward.write_text(yaml.safe_dump({**base, "model": sections["model"], "name": "onward"}))
    summary = tmp_path / "summary.json"
    called(mill, "train", str(onward), "--json", str(summary))
    stages = {stage["stage"]: stage for stage in json.loads(summary.read_text())["stages"]}
    assert stages["train"]["status"] == "built"

    # The same weights elsewhere are the same; others are not.
    moved = tmp_path / "moved"
    out.rename(moved)
    where = ("--set", f"train.initial_weights={moved}", "--set", f"data.tokenizer.path={moved}")
    assert "reused" in train_line(called(mill, "explain", str(onward), *where))
    described = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**described, "use_cache": False}))
    assert "input initial weights changed" in train_line(called(mill, "explain", str(onward), *where))
    wrong = called(mill, "train", str(onward), *where, "--set", "model.num_layers=2", status=2)
    assert "expected model.num_layers 1, found model.num_layers 2" in wrong


@pytest.mark.long
def test_another_tokenizer_is_refused_before_any_work(mill, tmp_path):
    shape = {**yaml.safe_load(mill.recipe.read_text())["model"], "activation": "swiglu", "qk_norm": False}
    from lmcore.config import ModelConfig
    from lmcore.model.hf.export import export
    from lmcore.model.transformer import Transformer

    config = ModelConfig(**shape)
    export(tmp_path / "model", Transformer(config, 300).named_parameters(), config, 300)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 300}}}))
    where = (f"train.initial_weights={tmp_path / 'model'}", f"data.tokenizer.path={tmp_path}")
    sets = [argument for setting in where for argument in ("--set", setting)]
    home = tmp_path / "home"
    done = mill.call("train", str(mill.recipe), *LLAMA, *sets, GRISTMILL_HOME=str(home))
    assert done.returncode == 2, done.stderr
    assert "its own, of at most 300 entries, found another, of 301" in done.stderr
    assert not list(home.glob("store/*"))


def train_line(table):
    (line,) = [line for line in table.splitlines() if line.startswith("train ")]
    return line


@pytest.mark.long
def test_what_no_family_has_is_refused(mill, tmp_path):
    called(mill, "train", str(mill.recipe))
    error = called(mill, "export", str(mill.recipe), str(tmp_path / "out"), status=1)
    assert 'the nearest is qwen3: expected model.activation "swiglu", found model.activation "relu2"' in error
    assert not list(tmp_path.iterdir())
    assert "expected a config.json" in called(mill, "import", str(tmp_path), status=1)
    learned = called(mill, "train", str(mill.recipe), "--set", "train.initial_weights=here", status=2)
    assert "set data.tokenizer.path" in learned
