"""Small random models of transformers, one for each family and each way in which families differ."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

VOCAB = 61
WIDE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
LLAMA_3_1 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
QWEN3_MOE = {
    **WIDE,
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
}
MODELS = {
    "llama": ("Llama", WIDE),
    "llama, tied, no groups": ("Llama", {**WIDE, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama, biases": ("Llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("Llama", {**WIDE, "rope_parameters": LLAMA_3_1, "head_dim": 24}),
    "llama, old": (
        "Llama",
        {**WIDE, "rope_theta": 500.0, "rope_scaling": {**LLAMA_3_1, "rope_theta": 500.0}},
    ),
    "qwen3": ("Qwen3", {**WIDE, "head_dim": 16, "rms_norm_eps": 1e-3}),
    "qwen3, tied": ("Qwen3", {**WIDE, "head_dim": 16, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {**WIDE, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", {**QWEN3_MOE, "norm_topk_prob": True}),
    "qwen3_moe, dense layers": ("Qwen3Moe", {**QWEN3_MOE, "num_hidden_layers": 3, "decoder_sparse_step": 2}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 80}),
}


def make_theirs(name):
    """The model of that name, with random weights, biases and norms too."""
    import transformers

    kind, settings = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(
        config
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


@pytest.fixture
def theirs(request, tmp_path):
    """A model of transformers, and the directory of several files that it was saved to."""
    model = make_theirs(request.param)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    return model, tmp_path / "theirs"


def tokens_of(length=40):
    """Two rows of tokens."""
    return torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(0))
