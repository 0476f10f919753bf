"""What the matrix is made of: layouts, models and ways to run them."""

# Settings of train.parallel.
LAYOUTS = {
    "ddp": {"dp_replicate": 2},
    "fsdp": {"dp_shard": 2},
    "hsdp": {"dp_replicate": 2, "dp_shard": 2},
    "tp": {"tp": 2, "sequence_parallel": False},
    "tp+sp": {"tp": 2},
    "pp gpipe": {"pp": 2, "pipeline_schedule": "gpipe"},
    "pp 1f1b": {"pp": 2},
    "pp interleaved": {"pp": 2, "pipeline_schedule": "interleaved_1f1b"},
    "pp interleaved zero bubble": {"pp": 2, "pipeline_schedule": "interleaved_zero_bubble"},
    "pp zbv": {"pp": 2, "pipeline_schedule": "zbv"},
    "cp": {"cp": 2},
    "fsdp x tp": {"dp_shard": 2, "tp": 2},
    "ddp x tp": {"dp_replicate": 2, "tp": 2, "sequence_parallel": False},
    "fsdp x cp": {"dp_shard": 2, "cp": 2},
    "ddp x cp": {"dp_replicate": 2, "cp": 2},
    "tp x cp": {"tp": 2, "cp": 2},
    "fsdp x pp": {"dp_shard": 2, "pp": 2},
    "ddp x pp": {"dp_replicate": 2, "pp": 2, "pipeline_schedule": "interleaved_1f1b"},
    "tp x pp": {"tp": 2, "pp": 2},
    "cp x pp": {"cp": 2, "pp": 2, "pipeline_schedule": "zbv"},
    "fsdp x pp zero bubble": {"dp_shard": 2, "pp": 2, "pipeline_schedule": "interleaved_zero_bubble"},
}
LARGE = {  # on one model each; the last are of eight processes
    "fsdp4": {"dp_shard": 4},
    "tp4+sp": {"tp": 4},
    "pp4 1f1b": {"pp": 4},
    "cp4": {"cp": 4},
    "fsdp x tp x pp": {"dp_shard": 2, "tp": 2, "pp": 2},
    "fsdp x tp x cp": {"dp_shard": 2, "tp": 2, "cp": 2},
    "tp x cp x pp": {"tp": 2, "cp": 2, "pp": 2},
}
EXPERTS = {
    "ep": {"dp_shard": 2, "ep": 2},
    "ep4": {"dp_shard": 4, "ep": 4},
    "fsdp x ep": {"dp_shard": 4, "ep": 2},
    "ddp x ep": {"dp_replicate": 2, "dp_shard": 2, "ep": 2},
    "tp x ep": {"tp": 2, "dp_shard": 2, "ep": 2},
    "cp x ep": {"cp": 2, "dp_shard": 2, "ep": 2},
    "cp as ep": {"cp": 2, "ep": 2},
    "pp x ep": {"pp": 2, "dp_shard": 2, "ep": 2, "pipeline_schedule": "zbv"},
}
_SHAPE = {"num_layers": 4, "hidden_size": 32, "num_heads": 4, "max_seq_len": 32, "init_std": 0.1}
MODELS = {
    "dense": {
        **_SHAPE,
        "num_kv_heads": 4,
        "activation": "swiglu",
        "intermediate_size": 256,
        "tie_embeddings": False,
        "zero_init_projections": False,
    },
    "tied": {
        **_SHAPE,
        "position": "learned",
        "norm": "layernorm",
        "activation": "gelu",
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": True,
        "zero_init_projections": False,
        "dropout": 0.1,
    },
    "moe": {
        **_SHAPE,
        "activation": "swiglu",
        "tie_embeddings": True,
        "zero_init_projections": False,
        "moe": {
            "num_experts": 4,
            "num_experts_per_token": 2,
            "intermediate_size": 64,
            "num_shared_experts": 1,
            "balance": "auxiliary",
            "auxiliary_loss_weight": 0.1,
        },
    },
}
PLAIN = {}
PACKED = {"packing": "best_fit", "document_mask": True, "activation_checkpointing": "full", "z_loss": 1e-3}
SAVING = {  # memory, by all means there are
    **PACKED,
    "activation_checkpointing": "selective",
    "loss_chunk_tokens": 7,
    "optimizer": {"name": "muon", "eps": 1e-3, "weight_decay": 0.1, "offload": True},
}
MUON = {"optimizer": {"name": "muon", "eps": 1e-3, "weight_decay": 0.1}, "ema_decay": 0.9}
ADAFACTOR = {"optimizer": {"name": "adafactor", "learning_rate": 0.01, "weight_decay": 0.1}}
SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.1}}
OPTIMIZERS = [  # on the layouts that divide matrices in the most ways
    (layout, {**LAYOUTS, **EXPERTS, **LARGE}[layout], model, way)
    for layout, model, way in (
        ("fsdp x tp x pp", "dense", "muon"),
        ("pp zbv", "tied", "muon"),
        ("tp x ep", "moe", "muon"),
        ("fsdp x ep", "moe", "adafactor"),
        ("fsdp x tp", "dense", "adafactor"),
        ("tp x pp", "dense", "sgd"),
    )
]
SAVERS = [
    (layout, {**LAYOUTS, **EXPERTS, **LARGE}[layout], model, "saving")
    for layout, model in (
        ("ddp", "moe"),
        ("hsdp", "moe"),
        ("fsdp x tp", "dense"),
        ("tp x pp", "tied"),
        ("pp zbv", "tied"),
        ("pp interleaved zero bubble", "dense"),
        ("fsdp x cp", "tied"),
        ("ep", "moe"),
    )
]


def all_cases():
    """(layout, settings, model, way): each layout on each model, and each packed and checkpointed on one."""
    cases = []
    for number, (name, parallel) in enumerate(LAYOUTS.items()):
        # The mixture is tied too: mixes of layouts need no third model.
        models = [model for model in MODELS if model != "tied" or " x " not in name]
        cases += [(name, parallel, model, "plain") for model in models]
        cases.append((name, parallel, list(MODELS)[number % 3], "packed"))
    for number, (name, parallel) in enumerate(EXPERTS.items()):
        cases += [(name, parallel, "moe", way) for way in ("plain", "packed")[: 1 + number % 2]]
    order = ["moe", "dense", "tied"]
    return cases + [
        (name, parallel, order[i % 3], "packed") for i, (name, parallel) in enumerate(LARGE.items())
    ]
