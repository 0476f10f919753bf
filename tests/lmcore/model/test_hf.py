"""Models come from Hugging Face directories, and go there, and compute what they did."""

import json
import re
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

from lmcore.config import ModelConfig, TokenizerConfig, parse
from lmcore.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from lmcore.errors import CheckpointError, ConfigError, StorageError
from lmcore.model.hf.config import check_settings, read_config
from lmcore.model.hf.export import export
from lmcore.model.hf.files import weights_digest
from lmcore.model.hf.settings import family_of
from lmcore.model.hf.weights import HFWeights
from lmcore.model.transformer import Transformer
from tests.lmcore.model.conftest import MODELS, VOCAB, make_theirs, tokens_of

every_family = pytest.mark.parametrize("theirs", MODELS, indirect=True)
SHAPE = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "max_seq_len": 32,
    "zero_init_projections": False,
}
LLAMA = ModelConfig(**SHAPE, activation="swiglu", qk_norm=False, num_kv_heads=2)
SOFTMAX = {"num_experts": 4, "score": "softmax", "balance": "auxiliary", "intermediate_size": 48}
MIXTRAL = parse(ModelConfig, {**LLAMA.model_dump(), "moe": SOFTMAX}, where="test")
QWEN3 = ModelConfig(**SHAPE, activation="swiglu", tie_embeddings=False, head_dim=10, num_kv_heads=1)


def load_theirs(directory):
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def make_ours(config, vocab_size=VOCAB):
    model = Transformer(config, vocab_size).eval()
    model.init_weights(3)
    return model


@torch.no_grad()
def read_ours(weights):
    model = Transformer(weights.config, weights.vocab_size).eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(weights(name, parameter.shape))
    return model


@torch.no_grad()
def farthest(logits, other):
    return (logits - other).abs().max().item()


@every_family
@torch.no_grad()
def test_a_model_computes_the_same_here_and_after_going_back(theirs, tmp_path):
    model, directory = theirs
    assert len(list(directory.glob("*.safetensors"))) > 2
    weights = HFWeights(directory)
    ours = read_ours(weights)
    expected = model(tokens_of()).logits
    assert farthest(ours(tokens_of()), expected) < 1e-5
    export(tmp_path / "out", ours.state_dict().items(), ours.config, VOCAB, max_file_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert farthest(load_theirs(tmp_path / "out")(tokens_of()).logits, expected) < 1e-5
    again = HFWeights(tmp_path / "out", ours.config)
    assert list(again) == list(weights)
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("config", [LLAMA, QWEN3, MIXTRAL, LLAMA.model_copy(update={"bias": True})])
@torch.no_grad()
def test_a_model_of_ours_computes_the_same_there(config, tmp_path):
    ours = make_ours(config)
    export(tmp_path / "fp32", ours.named_parameters(), config, VOCAB)
    assert {p.name for p in (tmp_path / "fp32").iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
    }
    assert farthest(load_theirs(tmp_path / "fp32")(tokens_of(30)).logits, ours(tokens_of(30))) < 1e-5
    export(tmp_path / "bf16", ours.named_parameters(), config, VOCAB, dtype="bf16")
    assert load_theirs(tmp_path / "bf16").dtype == torch.bfloat16
    rounded = HFWeights(tmp_path / "bf16")
    for name, parameter in ours.named_parameters():
        assert torch.equal(rounded(name), parameter.bfloat16().float())


def test_both_forms_of_rotary_settings_mean_the_same(tmp_path):
    ours = make_ours(read_config_of("llama 3.1", tmp_path).config)
    export(tmp_path / "out", ours.named_parameters(), ours.config, VOCAB)
    description = json.loads((tmp_path / "out" / "config.json").read_text())
    found = []
    for forgotten in ((), ("rope_parameters",), ("rope_scaling", "rope_theta")):
        values = {key: value for key, value in description.items() if key not in forgotten}
        (tmp_path / "out" / "config.json").write_text(json.dumps(values))
        found.append(read_config(tmp_path / "out").config)
    assert found == [ours.config] * 3
    assert ours.config.rope_scaling.factor == 8


def read_config_of(name, folder):
    make_theirs(name).config.save_pretrained(folder / "described")
    values = json.loads((folder / "described" / "config.json").read_text())
    values["architectures"] = None
    (folder / "described" / "config.json").write_text(json.dumps(values))
    return read_config(folder / "described")


# --- tokenizers ------------------------------------------------------------------------------------


def test_the_tokenizer_goes_with_the_model_and_gives_the_same_tokens(tmp_path):
    from transformers import AutoTokenizer

    text = "def mill(stone):\n    return stone * 3  # naïve 日本 🙂\n"
    for pattern in ("gpt2", "llama3"):
        source = tmp_path / pattern
        source.mkdir()
        settings = TokenizerConfig(vocab_size=300, pattern=pattern, special_tokens=("<|pad|>",))
        save_tokenizer(train_tokenizer(settings, [text] * 5), source)
        size = load_tokenizer(source).get_vocab_size()
        out = tmp_path / f"{pattern}-out"
        export(out, make_ours(LLAMA, size).named_parameters(), LLAMA, size, source)
        theirs = AutoTokenizer.from_pretrained(out)
        assert theirs(text)["input_ids"] == load_tokenizer(source).encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == text
        assert (theirs.eos_token, theirs.eos_token_id, theirs.model_max_length) == ("<|endoftext|>", 0, 32)
        model = load_theirs(out)
        assert model.config.eos_token_id == model.generation_config.eos_token_id == 0
        written = model.generate(**theirs("def", return_tensors="pt"), max_new_tokens=3, do_sample=False)
        assert written.shape[1] <= len(theirs("def")["input_ids"]) + 3


@pytest.mark.parametrize("setting", ["padding", "dropout", "post_processor"])
def test_a_tokenizer_kept_by_an_earlier_version_is_written_without_settings_of_a_batch(tmp_path, setting):
    from transformers import AutoTokenizer

    text = "the mill turns"
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), [text] * 5)
    expected = tokenizer.encode(text).ids
    if setting == "padding":
        tokenizer.enable_padding(length=64)
    elif setting == "dropout":
        tokenizer.model.dropout = 1.0
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    save_tokenizer(tokenizer, tmp_path)
    size = tokenizer.get_vocab_size()
    export(tmp_path / "out", make_ours(LLAMA, size).named_parameters(), LLAMA, size, tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode(text).ids == expected
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == expected


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer at .* cannot be read"):
        export(tmp_path / "out", make_ours(LLAMA).named_parameters(), LLAMA, VOCAB, tmp_path)
    assert not list(tmp_path.iterdir())


# --- writing ---------------------------------------------------------------------------------------


def test_one_parameter_is_held_at_a_time(tmp_path):
    model = make_ours(LLAMA)
    alive = weakref.WeakSet()

    def tensors():
        for name, parameter in model.named_parameters():
            assert len(alive) <= 1  # what was given last may still be in the hands of the loop
            tensor = parameter.detach().clone()
            alive.add(tensor)
            yield name, tensor

    export(tmp_path / "out", tensors(), LLAMA, VOCAB)
    assert not alive


def test_tensors_may_come_in_any_order(tmp_path):
    model = make_ours(QWEN3)
    named = list(model.named_parameters())
    for name, order in (("a", named), ("b", reversed(named))):
        export(tmp_path / name, order, QWEN3, VOCAB, max_file_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) > 4
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in files)
    sizes = [path.stat().st_size for path in (tmp_path / "a").glob("*.safetensors")]
    assert max(sizes) < 20_000 + 1_000  # the header comes on top
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    stored = {n for path in (tmp_path / "a").glob("*.safetensors") for n in load_file(path)}
    assert set(index["weight_map"]) == stored
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())


def test_what_is_broken_off_leaves_nothing(tmp_path):
    model = make_ours(LLAMA)
    parameters = dict(model.named_parameters())
    norm = parameters["norm.weight"]
    for wrong, found in (
        ({**parameters, "more": norm}, "found more [32]"),
        ({name: p for name, p in parameters.items() if name != "norm.weight"}, "expected norm.weight"),
        ({**parameters, "norm.weight": norm[1:]}, "expected [32] for norm.weight, found norm.weight [31]"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(found)):
            export(tmp_path / "out", wrong.items(), LLAMA, VOCAB)

    def stopped():
        yield from list(parameters.items())[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", stopped(), LLAMA, VOCAB)
    assert not list(tmp_path.iterdir())
    (tmp_path / "taken").mkdir()
    export(tmp_path / "taken", parameters.items(), LLAMA, VOCAB)
    with pytest.raises(ConfigError, match="is there already"):
        export(tmp_path / "taken", parameters.items(), LLAMA, VOCAB)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"something else in that place.*Not a directory at .*below"):
        export(tmp_path / "file" / "below", parameters.items(), LLAMA, VOCAB)


@pytest.mark.parametrize(
    ("changes", "nearest", "named"),
    [
        ({"activation": "relu2", "qk_norm": True}, "qwen3", 'model.activation "swiglu"'),
        ({"qk_norm": True, "bias": True}, "llama", "model.qk_norm false"),
        ({"moe": {**SOFTMAX, "balance": "bias"}}, "mixtral", 'model.moe.balance "auxiliary", found'),
        ({"moe": {**SOFTMAX, "num_shared_experts": 1}}, "mixtral", "found model.moe.num_shared_experts 1"),
        (
            {"qk_norm": True, "moe": {**SOFTMAX, "score": "sigmoid", "num_dense_layers": 1}},
            "qwen3_moe",
            'model.moe.score "softmax", model.moe.num_dense_layers 0, found model.moe.score "sigmoid"',
        ),
        ({"norm": "layernorm"}, "llama", 'model.norm "rmsnorm", found model.norm "layernorm"'),
        ({"hidden_size": 30, "head_dim": 8}, "llama", "model.hidden_size 28, found model.hidden_size 30"),
        (
            {
                "position": "learned",
                "norm": "layernorm",
                "activation": "gelu",
                "bias": True,
                "num_kv_heads": 2,
            },
            "gpt2",
            "model.num_kv_heads 4, found model.num_kv_heads 2",
        ),
    ],
)
def test_what_no_family_can_say_is_refused_before_anything_is_written(changes, nearest, named, tmp_path):
    config = parse(ModelConfig, {**LLAMA.model_dump(), **changes}, where="test")
    with pytest.raises(ConfigError, match=f"the nearest is {nearest}") as caught:
        export(tmp_path / "out", iter(()), config, VOCAB)
    assert named in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_families_are_told_by_the_settings():
    assert family_of(LLAMA).model_type == "llama"
    assert family_of(QWEN3).model_type == "qwen3"
    assert family_of(MIXTRAL).model_type == "mixtral"
    spread = parse(ModelConfig, {**QWEN3.model_dump(), "moe": SOFTMAX | {"layer_interval": 2}}, where="test")
    assert family_of(spread).model_type == "qwen3_moe"


# --- reading ---------------------------------------------------------------------------------------


@pytest.fixture
def change(tmp_path):
    """A directory, and a function that changes its config and its tensors."""
    model = make_ours(LLAMA)
    export(tmp_path / "in", model.named_parameters(), LLAMA, VOCAB)

    def changed(tensors=None, **config):
        path = tmp_path / "in" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        if tensors is not None:
            stored = load_file(tmp_path / "in" / "model.safetensors")
            tensors(stored)
            save_file(stored, tmp_path / "in" / "model.safetensors")
        return tmp_path / "in"

    return changed


def drop(name):
    return lambda stored: stored.pop(name)


def put(name, tensor):
    return lambda stored: stored.__setitem__(name, tensor)


@pytest.mark.parametrize(
    ("kind", "tensors", "config", "told"),
    [
        (
            CheckpointError,
            drop("model.norm.weight"),
            {},
            "lacks tensors: expected model.norm.weight, found none",
        ),
        (CheckpointError, put("model.more", torch.ones(2)), {}, "that its model has not"),
        (CheckpointError, put("model.more", torch.ones(2)), {}, "found model.more"),
        (CheckpointError, put("model.norm.weight", torch.ones(31)), {}, "model.norm.weight [32] of F32"),
        (CheckpointError, put("model.norm.weight", torch.ones(31)), {}, "found [31] of F32"),
        (CheckpointError, put("model.norm.weight", torch.ones(32).double()), {}, "found [32] of F64"),
        (CheckpointError, None, {"num_hidden_layers": 3}, "lacks tensors: expected model.layers.2.input"),
        (CheckpointError, None, {"num_hidden_layers": 1}, "found model.layers.1.input_layernorm.weight"),
        (CheckpointError, None, {"num_hidden_layers": None}, "expected num_hidden_layers"),
        (ConfigError, None, {"model_type": "mamba"}, "found mamba"),
        (ConfigError, None, {"architectures": ["LlamaForSequenceClassification"]}, "is no language model"),
        (ConfigError, None, {"hidden_act": "gelu"}, 'expected hidden_act "silu", found hidden_act "gelu"'),
        (ConfigError, None, {"quantization_config": {"bits": 4}}, "quantization_config null"),
        (ConfigError, None, {"layer_types": ["sliding_attention"]}, "found layer_types sliding_attention"),
        (ConfigError, None, {"mlp_bias": True}, "the same for attention_bias and mlp_bias (model.bias)"),
        (
            ConfigError,
            None,
            {"rope_parameters": {"rope_type": "yarn", "factor": 2}},
            "rotary positions that we",
        ),
        (ConfigError, None, {"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_a_bad_directory_is_refused(change, kind, tensors, config, told):
    with pytest.raises(kind) as caught:
        HFWeights(change(tensors, **config))
    assert told in str(caught.value)


def test_damaged_and_missing_files_are_refused(change, tmp_path):
    directory = change()
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        HFWeights(directory)
    weights.rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: a pickle, .*save_pretrained"):
        HFWeights(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="found neither"):
        HFWeights(directory)
    index = directory / "model.safetensors.index.json"
    for weight_map, told in (
        ({"a": "model-00001.safetensors"}, "does not hold all"),
        ({"a": "../b"}, "elsewhere"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=told):
            weights_digest(directory)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        HFWeights(directory)
    (directory / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"expected a config\.json, found no JSON"):
        HFWeights(directory)
    with pytest.raises(
        CheckpointError, match=r"expected a config\.json, found no such file or folder; the nearest"
    ):
        HFWeights(tmp_path / "nowhere")


def test_what_transformers_ignores_we_ignore(tmp_path):
    model = make_theirs("gpt2")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    expected = read_ours(HFWeights(tmp_path))(tokens_of())
    # As the files of the first GPT-2 are: without the prefix, with the masks and the tied head.
    old = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    masks = {f"h.{i}.attn.{mask}": torch.ones(1) for i in range(2) for mask in ("bias", "masked_bias")}
    save_file(old | masks | {"lm_head.weight": torch.zeros(VOCAB, 48)}, tmp_path / "model.safetensors")
    assert torch.equal(read_ours(HFWeights(tmp_path))(tokens_of()), expected)


def test_parameters_are_read_when_asked_for_and_are_ones_own(change):
    directory = change()
    weights = HFWeights(directory)
    before = weights("norm.weight", (32,))
    before.zero_()
    assert weights["norm.weight"].all()
    assert before.dtype == torch.float32
    assert torch.equal(weights("head.weight"), weights("embedding.weight"))  # tied
    assert "head.weight" not in weights
    for name, shape in (("norm.weight", (31,)), ("nothing", None)):
        with pytest.raises(CheckpointError, match="no such parameter"):
            weights(name, shape)


def test_settings_must_be_those_of_the_model(change):
    directory = change()
    free = {"dropout": 0.1, "init_std": 0.5, "max_seq_len": 16, "zero_init_projections": True}
    assert check_settings(directory, LLAMA.model_copy(update=free)).vocab_size == VOCAB
    worked_out = {"head_dim": 8, "intermediate_size": LLAMA.mlp_size}
    assert HFWeights(directory, LLAMA.model_copy(update=worked_out)).config.head_dim == 8
    with pytest.raises(ConfigError) as caught:
        HFWeights(directory, LLAMA.model_copy(update={"num_layers": 3, "num_kv_heads": None}))
    expected = (
        "expected model.num_layers 2, model.num_kv_heads 2, found model.num_layers 3, model.num_kv_heads 4"
    )
    assert expected in str(caught.value)
    assert "gristmill import" in str(caught.value)


def test_experts_may_be_balanced_otherwise_from_now_on(tmp_path):
    export(tmp_path / "in", make_ours(MIXTRAL).named_parameters(), MIXTRAL, VOCAB)
    biased = parse(ModelConfig, {**MIXTRAL.model_dump(), "moe": SOFTMAX | {"balance": "bias"}}, where="test")
    with torch.no_grad():
        found = [read_ours(HFWeights(tmp_path / "in", config))(tokens_of(30)) for config in (MIXTRAL, biased)]
    assert torch.equal(*found)  # a bias begins at zero
    more = parse(
        ModelConfig, {**MIXTRAL.model_dump(), "moe": SOFTMAX | {"num_experts_per_token": 3}}, where="test"
    )
    with pytest.raises(ConfigError, match=r"expected model\.moe\.num_experts_per_token 2, found"):
        check_settings(tmp_path / "in", more)


def test_the_digest_is_of_what_decides(change, tmp_path):
    directory = change()
    digest = weights_digest(directory)
    shutil.copytree(directory, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("")
    assert weights_digest(tmp_path / "copy") == digest
    assert weights_digest(change(put("model.norm.weight", torch.zeros(32)))) != digest
