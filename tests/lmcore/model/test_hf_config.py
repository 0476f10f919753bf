"""What the `config.json` of well-known models means: the counts are those that are published for them."""

import json

import pytest

from lmcore.errors import CheckpointError
from lmcore.model.hf.config import read_config, to_config
from lmcore.model.hf.layout import layout

LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GPT2_SMALL = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN3_30B_A3B = {
    **QWEN3_06B,
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
PUBLISHED = {
    "gpt2": (GPT2_SMALL, 124_439_808),
    "llama": (LLAMA_3_2_1B, 1_235_814_400),
    "qwen3": (QWEN3_06B, 596_049_920),
    "mixtral": (MIXTRAL_8X7B, 46_702_792_704),
    "qwen3_moe": (QWEN3_30B_A3B, 30_532_122_624),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_means_the_published_model(name, tmp_path):
    values, count = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = read_config(tmp_path)
    parameters = layout(found.family, found.config, found.vocab_size)
    assert sum(parameter.numel() for parameter in parameters.values()) == count
    # Every tensor is part of one parameter, and holds as many numbers.
    tensors = [tensor for parameter in parameters.values() for tensor in parameter.tensors]
    assert len(set(tensors)) == len(tensors)
    assert sum(shape.numel() for p in parameters.values() for shape in p.tensors.values()) == count

    # And what we write of it says all of it.
    written = to_config(found.config, found.vocab_size, "bfloat16", 7)
    rotary = {"rope_scaling", "rope_theta"}
    same = values.keys() & written.keys() - rotary
    assert {key: written[key] for key in same} == {key: values[key] for key in same}
    (tmp_path / "config.json").write_text(json.dumps(written))
    again = read_config(tmp_path)
    assert to_config(again.config, again.vocab_size, "bfloat16", 7) == written


def test_a_shape_is_never_guessed(tmp_path):
    for key in ("num_key_value_heads", "vocab_size", "num_experts"):
        values = {name: value for name, value in QWEN3_30B_A3B.items() if name != key}
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=f"no whole description of a qwen3_moe: expected {key}"):
            read_config(tmp_path)
