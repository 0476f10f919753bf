"""What is asked of the planner, and what it answers, in plain values."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from lmcore.config import ModelConfig, TrainConfig, parse
from lmcore.errors import ConfigError
from lmcore.plan.estimate import Rates
from lmcore.plan.hardware import GB, Cluster, find_gpu
from lmcore.plan.search import Plan, Wanted, make_plan
from lmcore.plan.shape import Shape, shape_of
from lmcore.plan.time import Efficiency


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Plan what ``request`` says: "model", "train", "vocab_size", "gpu", "gpus", and what is not as usual.

    Raises:
        ConfigError: the GPU is not known, nothing divides, or nothing fits.
    """
    started = time.perf_counter()
    model = parse(ModelConfig, request["model"], where="the model")
    train = parse(TrainConfig, request["train"], where="the training")
    wanted = _wanted(shape_of(model, request["vocab_size"]), train, request)
    plan = make_plan(wanted)
    return _described(wanted, plan, time.perf_counter() - started)


def _wanted(shape: Shape, train: TrainConfig, request: dict[str, Any]) -> Wanted:
    gpu = find_gpu(request.get("gpu", "H100"))
    if train.precision == "fp8" and not gpu.flops_8:
        raise ConfigError(
            f"train.precision is fp8, and an {gpu.name} has no products of eight bits",
            expected="a GPU of compute capability 8.9 or newer",
            found=gpu.name,
            remedy="Plan for another GPU, or set train.precision=bf16.",
        )
    cluster = Cluster(
        gpu,
        request["gpus"],
        request.get("gpus_per_node", 8),
        request.get("gpu_memory", 0.0) * GB,
        request.get("gpu_watts", 0.0),
        request.get("link_gb", 0.0) * GB,
        request.get("network_gb", 0.0) * GB,
    )
    return Wanted(
        shape,
        train,
        cluster,
        _rates(train, request),
        request.get("headroom", 0.1),
        efficiency=Efficiency(),
    )


def _rates(train: TrainConfig, request: dict[str, Any]) -> Rates:
    """Those of the request, or else those of the recipe (``train.costs``)."""
    costs = train.costs
    said = {
        "per_gpu_hour": costs.price_per_device_hour,
        "per_kwh": costs.price_per_kwh,
        "grams_co2_per_kwh": costs.grams_co2_per_kwh,
        "currency": costs.currency,
    }
    said |= {name: value for name, value in request.get("rates", {}).items() if value is not None}
    return Rates(**said)


def _described(wanted: Wanted, plan: Plan, seconds: float) -> dict[str, Any]:
    cluster, train, shape = wanted.cluster, wanted.train, wanted.shape
    return {
        "parameters": shape.total,
        "tokens": train.steps * train.global_batch_tokens,
        "steps": train.steps,
        "global_batch_tokens": train.global_batch_tokens,
        "seq_len": train.seq_len,
        "precision": train.precision,
        "optimizer": train.optimizer.name,
        "gpus": cluster.num_gpus,
        "gpu": dataclasses.asdict(cluster.gpu),
        "mfu_peak": dataclasses.asdict(cluster.gpu.peak(train)),
        "gpus_per_node": cluster.gpus_per_node,
        "gpu_memory_bytes": cluster.memory,
        "room_bytes": wanted.room,
        "rates": dataclasses.asdict(wanted.rates),
        "num_layouts": plan.num_layouts,
        "layouts": [
            {**choice.estimate.as_json(), "fits": choice.fits, "why": choice.why} for choice in plan.choices
        ],
        "planning_seconds": round(seconds, 2),
    }
