"""The families of models that Hugging Face and we both have: the one table of what is what.

For each family: what of ours it always is, where its ``config.json`` says the rest, and of which of its
tensors each parameter of ours is made. Reading and writing both follow this table, which needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# How tensors of a family become a parameter of ours, and back (``layout.py``).
Way = Literal[
    "whole",
    "transposed",
    "heads",
    "fused_heads",
    "transposed_fused_heads",
    "pairs",
    "gated",
    "stacked",
    "stacked_gated",
]


@dataclass(frozen=True)
class Source:
    """Tensors that make one parameter of ours.

    Attributes:
        tensors: Their names behind the family's prefix; ``{i}`` is the number of the block, ``{e}`` that of
            the expert, of which there are all.
        way: How they make it.
    """

    tensors: tuple[str, ...]
    way: Way = "whole"


@dataclass(frozen=True)
class Family:
    """What a ``model_type`` means.

    Attributes:
        model_type: Its name in ``config.json``.
        architecture: Its class in ``transformers``.
        style: Settings of ours that all its models have; of a mixture ``moe.score`` and so on.
        keys: Settings of ours, and the keys of ``config.json`` that say them, each of them the same.
        absent: What a key means that ``config.json`` leaves out; a key that is not here must be there.
        fixed: Keys that must have one of these values for us to compute the same; left out they mean the
            first, which is what we write.
        written: Keys that say nothing to us, and what we write.
        aliases: Other names of keys, read where the first is left out.
        rope_theta: Base of the rotary frequencies where ``config.json`` does not say it; None: not rotary.
        width_is_heads: Whether the width of the model must be a whole number of heads.
        prefix: How the names of its tensors begin, but for the head's; some directories leave it out.
        tensors: Parameters of ours, and what makes each; ``{i}`` is the number of the block.
        buffers: Patterns of tensors that some directories hold and nothing needs.
    """

    model_type: str
    architecture: str
    style: Mapping[str, Any]
    keys: Mapping[str, tuple[str, ...]]
    absent: Mapping[str, Any]
    fixed: Mapping[str, tuple[Any, ...]]
    tensors: Mapping[str, Source]
    prefix: str
    rope_theta: float | None = None
    width_is_heads: bool = False
    written: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()

    @property
    def is_mixture(self) -> bool:
        """Whether its blocks have experts."""
        return "moe.num_experts" in self.keys


HEAD = "lm_head.weight"  # has no prefix

_SHAPE = {
    "num_layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "num_heads": ("num_attention_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size",),
    "max_seq_len": ("max_position_embeddings",),
    "norm_eps": ("rms_norm_eps",),
    "tie_embeddings": ("tie_word_embeddings",),
    "init_std": ("initializer_range",),
}
_ABSENT = {"tie_word_embeddings": False, "initializer_range": 0.02, "rms_norm_eps": 1e-6}
_STYLE = {"position": "rope", "norm": "rmsnorm", "activation": "swiglu"}
_DENSE = {"moe.num_experts": 0}
_EXPERTS = {
    "moe.score": "softmax",
    "moe.num_shared_experts": 0,
    "moe.num_dense_layers": 0,
    "bias": False,
}
_FULL_ATTENTION = {"use_sliding_window": (False,), "attention_bias": (False,)}

_STREAM = {
    "embedding.weight": Source(("embed_tokens.weight",)),
    "norm.weight": Source(("norm.weight",)),
    "head.weight": Source((HEAD,)),
    "blocks.{i}.attention_norm.weight": Source(("layers.{i}.input_layernorm.weight",)),
    "blocks.{i}.mlp_norm.weight": Source(("layers.{i}.post_attention_layernorm.weight",)),
}


def _attention(kind: str) -> dict[str, Source]:
    qkv = tuple(f"layers.{{i}}.self_attn.{part}_proj.{kind}" for part in "qkv")
    return {
        f"blocks.{{i}}.attention.qkv.{kind}": Source(qkv, "heads"),
        f"blocks.{{i}}.attention.out.{kind}": Source((f"layers.{{i}}.self_attn.o_proj.{kind}",)),
    }


def _mlp(kind: str) -> dict[str, Source]:
    gated = tuple(f"layers.{{i}}.mlp.{part}_proj.{kind}" for part in ("gate", "up"))
    return {
        f"blocks.{{i}}.mlp.up.{kind}": Source(gated, "gated"),
        f"blocks.{{i}}.mlp.down.{kind}": Source((f"layers.{{i}}.mlp.down_proj.{kind}",)),
    }


_HEAD_NORMS = {
    f"blocks.{{i}}.attention.{part}_norm.weight": Source(
        (f"layers.{{i}}.self_attn.{part}_norm.weight",), "pairs"
    )
    for part in "qk"
}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    style={**_STYLE, **_DENSE, "qk_norm": False},
    keys={**_SHAPE, "bias": ("attention_bias", "mlp_bias")},
    absent={
        **_ABSENT,
        "num_key_value_heads": None,
        "head_dim": None,
        "attention_bias": False,
        "mlp_bias": False,
    },
    fixed={"hidden_act": ("silu",)},
    rope_theta=10_000.0,
    width_is_heads=True,
    prefix="model.",
    tensors={**_STREAM, **_attention("weight"), **_attention("bias"), **_mlp("weight"), **_mlp("bias")},
    buffers=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    style={**_STYLE, **_DENSE, "qk_norm": True, "bias": False},
    keys=_SHAPE,
    absent={**_ABSENT, "head_dim": 128},
    fixed={"hidden_act": ("silu",), **_FULL_ATTENTION},
    rope_theta=10_000.0,
    prefix="model.",
    tensors={**_STREAM, **_attention("weight"), **_HEAD_NORMS, **_mlp("weight")},
)


def _gpt2_tensors() -> dict[str, Source]:
    tensors = {
        "embedding.weight": Source(("wte.weight",)),
        "position_embedding.weight": Source(("wpe.weight",)),
        "head.weight": Source((HEAD,)),
    }
    for kind in ("weight", "bias"):
        turned = kind == "weight"  # its linear layers are written [in, out]
        linear: Way = "transposed" if turned else "whole"
        tensors |= {
            f"norm.{kind}": Source((f"ln_f.{kind}",)),
            f"blocks.{{i}}.attention_norm.{kind}": Source((f"h.{{i}}.ln_1.{kind}",)),
            f"blocks.{{i}}.mlp_norm.{kind}": Source((f"h.{{i}}.ln_2.{kind}",)),
            f"blocks.{{i}}.attention.qkv.{kind}": Source(
                (f"h.{{i}}.attn.c_attn.{kind}",), "transposed_fused_heads" if turned else "fused_heads"
            ),
            f"blocks.{{i}}.attention.out.{kind}": Source((f"h.{{i}}.attn.c_proj.{kind}",), linear),
            f"blocks.{{i}}.mlp.up.{kind}": Source((f"h.{{i}}.mlp.c_fc.{kind}",), linear),
            f"blocks.{{i}}.mlp.down.{kind}": Source((f"h.{{i}}.mlp.c_proj.{kind}",), linear),
        }
    return tensors


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    style={
        "position": "learned",
        "norm": "layernorm",
        "activation": "gelu",
        "qk_norm": False,
        "bias": True,
        **_DENSE,
    },
    keys={
        "num_layers": ("n_layer",),
        "hidden_size": ("n_embd",),
        "num_heads": ("n_head",),
        "intermediate_size": ("n_inner",),
        "max_seq_len": ("n_positions",),
        "norm_eps": ("layer_norm_epsilon",),
        "tie_embeddings": ("tie_word_embeddings",),
        "init_std": ("initializer_range",),
    },
    absent={
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    written={"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    width_is_heads=True,
    prefix="transformer.",
    tensors=_gpt2_tensors(),
    buffers=(r"h\.\d+\.attn\.(masked_)?bias",),
)


def _experts(mixture: str, gate: str, up: str, down: str) -> dict[str, Source]:
    each = f"layers.{{i}}.{mixture}.experts.{{e}}"
    return {
        "blocks.{i}.mlp.router.weight": Source((f"layers.{{i}}.{mixture}.gate.weight",)),
        "blocks.{i}.mlp.experts.up": Source(
            (f"{each}.{gate}.weight", f"{each}.{up}.weight"), "stacked_gated"
        ),
        "blocks.{i}.mlp.experts.down": Source((f"{each}.{down}.weight",), "stacked"),
    }


MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    style={**_STYLE, **_EXPERTS, "qk_norm": False, "moe.normalize_top_k": True, "moe.layer_interval": 1},
    keys={
        **{name: keys for name, keys in _SHAPE.items() if name != "intermediate_size"},
        "moe.num_experts": ("num_local_experts",),
        "moe.num_experts_per_token": ("num_experts_per_tok",),
        "moe.intermediate_size": ("intermediate_size",),
    },
    absent={**_ABSENT, "rms_norm_eps": 1e-5, "head_dim": None},
    fixed={"hidden_act": ("silu",), "sliding_window": (None,)},
    rope_theta=1_000_000.0,
    prefix="model.",
    tensors={**_STREAM, **_attention("weight"), **_experts("block_sparse_moe", "w1", "w3", "w2")},
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    style={**_STYLE, **_EXPERTS, "qk_norm": True},
    keys={
        **_SHAPE,
        "moe.num_experts": ("num_experts",),
        "moe.num_experts_per_token": ("num_experts_per_tok",),
        "moe.intermediate_size": ("moe_intermediate_size",),
        "moe.normalize_top_k": ("norm_topk_prob",),
        "moe.layer_interval": ("decoder_sparse_step",),
    },
    absent={**_ABSENT, "head_dim": None, "norm_topk_prob": False, "decoder_sparse_step": 1},
    fixed={"hidden_act": ("silu",), "mlp_only_layers": ([], None), **_FULL_ATTENTION},
    rope_theta=10_000.0,
    prefix="model.",
    aliases={"num_experts": "num_local_experts"},
    tensors={
        **_STREAM,
        **_attention("weight"),
        **_HEAD_NORMS,
        **_mlp("weight"),
        **_experts("mlp", "gate_proj", "up_proj", "down_proj"),
    },
)

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, QWEN3, MIXTRAL, QWEN3_MOE)}
