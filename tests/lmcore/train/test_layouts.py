"""One equation for the loss: every layout trains the same model."""

import itertools

import numpy as np
import pytest
from safetensors.torch import load

pytestmark = pytest.mark.long
LAYOUTS = {
    "accumulation": {"micro_batch_size": 2},
    "fsdp": {"dp_shard": 2},
    "fsdp-accumulation": {"dp_shard": 2, "micro_batch_size": 1},
    "ddp": {"dp_replicate": 2},
    "ddp-accumulation": {"dp_replicate": 2, "micro_batch_size": 2},
    "hsdp": {"dp_replicate": 2, "dp_shard": 2},
}
STYLES = {
    "llama": {
        "optimizer": {"name": "muon", "weight_decay": 0.1},
        "document_mask": True,
        "model": {"zero_init_projections": False, "num_kv_heads": 1, "intermediate_size": 33},
    },
    "gpt2": {
        "optimizer": {"name": "adamw", "weight_decay": 0.1},
        "model": {
            "position": "learned",
            "norm": "layernorm",
            "activation": "gelu",
            "qk_norm": False,
            "bias": True,
            "tie_embeddings": True,
            "zero_init_projections": False,
        },
    },
}
OPTIMIZERS = {
    name: {
        **STYLES["llama"],
        "optimizer": {"name": name, "learning_rate": 0.01, "weight_decay": 0.1},
        "z_loss": 1e-3,
        "ema_decay": 0.9,
    }
    for name in ("adam", "adafactor", "sgd")
}
MIXTURES = {
    "bias": {
        "optimizer": {"name": "muon", "weight_decay": 0.1},
        "model": {
            "activation": "swiglu",
            "moe": {"num_experts": 3, "balance": "bias", "num_dense_layers": 1},
        },
    },
    "auxiliary": {
        "optimizer": {"name": "adafactor", "learning_rate": 0.01},
        "model": {
            "activation": "swiglu",
            "zero_init_projections": False,
            "moe": {
                "num_experts": 5,
                "intermediate_size": 40,
                "num_shared_experts": 1,
                "score": "softmax",
                "balance": "auxiliary",
                "auxiliary_loss_weight": 0.5,
            },
        },
    },
}


def test_mixtures_agree(make_run, run_together):
    whole = {style: make_run(style, **MIXTURES[style]) for style in MIXTURES}
    layouts = ("accumulation", "fsdp-accumulation", "ddp-accumulation", "hsdp")
    divided = {
        (style, layout): make_run(f"{style}-{layout}", **MIXTURES[style], **LAYOUTS[layout])
        for style, layout in itertools.product(MIXTURES, layouts)
    }
    half = {
        (style, layout): make_run(f"{style}-{layout}", precision="bf16", **MIXTURES[style], **{layout: 2})
        for style in MIXTURES
        for layout in ("dp_shard", "dp_replicate")
    }
    run_together([*whole.values(), *divided.values(), *half.values()])
    for (style, layout), run in divided.items():
        for value in ("train/loss", "train/grad_norm", "train/expert_imbalance"):
            expected, found = (list(r.values(value).values()) for r in (whole[style], run))
            assert len(expected) == 4
            assert found == pytest.approx(expected, rel=1e-5), f"{style} {layout} {value}"
        assert run.result["validation_loss"] == pytest.approx(
            whole[style].result["validation_loss"], rel=1e-5
        )
        weights = load(whole[style].weights)
        assert any(name.endswith("expert_bias") for name in weights) == (style == "bias")
        for key, tensor in load(run.weights).items():
            np.testing.assert_allclose(tensor, weights[key], atol=2e-4, err_msg=f"{style} {layout} {key}")
    for (style, layout), run in half.items():
        expected, found = (list(r.values("train/loss").values()) for r in (whole[style], run))
        assert found == pytest.approx(expected, rel=0.01), f"{style} {layout}"


def test_optimizers_agree_on_shards(make_run, run_together):
    whole = {name: make_run(name, **settings) for name, settings in OPTIMIZERS.items()}
    divided = {
        (name, layout): make_run(f"{name}-{layout}", **settings, **LAYOUTS[layout])
        for name, settings in OPTIMIZERS.items()
        for layout in ("fsdp-accumulation", "hsdp")
    }
    run_together([*whole.values(), *divided.values()])
    for (name, layout), run in divided.items():
        for value in ("train/loss", "train/z_loss", "train/grad_norm"):
            expected, found = (list(r.values(value).values()) for r in (whole[name], run))
            assert len(expected) == 4
            assert found == pytest.approx(expected, rel=1e-5), f"{name} {layout} {value}"
        theirs = whole[name].result["validation_loss"]
        assert run.result["validation_loss"] == pytest.approx(theirs, rel=1e-5)
        weights = load(whole[name].weights)
        for key, tensor in load(run.weights).items():
            np.testing.assert_allclose(tensor, weights[key], atol=2e-4, err_msg=f"{name} {layout} {key}")


def test_layouts_agree(make_run, run_together):
    whole = {style: make_run(style, **STYLES[style]) for style in STYLES}
    divided = {
        (style, layout): make_run(f"{style}-{layout}", **STYLES[style], **LAYOUTS[layout])
        for style, layout in itertools.product(STYLES, LAYOUTS)
    }
    half = {
        (precision, layout): make_run(
            f"{precision}-{layout}", precision=precision, **STYLES["gpt2"], **{layout: 2}
        )
        for precision in ("bf16", "fp16")
        for layout in ("dp_shard", "dp_replicate")
    }
    run_together([*whole.values(), *divided.values(), *half.values()])
    for (style, layout), run in divided.items():
        for value in ("train/loss", "train/grad_norm"):
            expected, found = whole[style].values(value), run.values(value)
            assert len(expected) == 4
            name = f"{style} {layout} {value}"
            np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5, err_msg=name)
        weights = load(whole[style].weights)
        for key, tensor in load(run.weights).items():
            np.testing.assert_allclose(tensor, weights[key], atol=2e-4, err_msg=f"{style} {layout} {key}")
        assert run.result["validation_loss"] == pytest.approx(
            whole[style].result["validation_loss"], rel=1e-5
        )
    for run in half.values():
        # A loss of few steps hardly moves with the scale of a gradient; its norm does.
        for value in ("train/loss", "train/grad_norm"):
            expected, found = (list(r.values(value).values()) for r in (whole["gpt2"], run))
            assert found == pytest.approx(expected, rel=0.02), value
            assert found != expected
