"""One layout, with everything that a run with it would need."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lmcore.config import TrainConfig
from lmcore.plan.communication import Traffic, traffic_of
from lmcore.plan.hardware import Cluster
from lmcore.plan.kernels import compiles
from lmcore.plan.memory import Memory, memory_of
from lmcore.plan.shape import Shape
from lmcore.plan.time import Efficiency, StepTime, step_time

AXES = ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep")


@dataclass(frozen=True)
class Rates:
    """What energy and time are charged at.

    Attributes:
        per_gpu_hour: Price of a GPU for an hour; None: not said.
        per_kwh: Price of electricity on top of it; None: not said.
        grams_co2_per_kwh: Of electricity; None: not said.
        overhead: What a building draws over what its computers do (PUE).
        currency: Of the prices.
    """

    per_gpu_hour: float | None = None
    per_kwh: float | None = None
    grams_co2_per_kwh: float | None = None
    overhead: float = 1.2
    currency: str = "USD"


@dataclass(frozen=True)
class Estimate:
    """What a run of one layout needs.

    Attributes:
        train: The settings with this layout.
        memory: Of the fullest process.
        time: Of a step.
        traffic: Of a step.
        mfu: Share of the recipe's peak or the vendor's for its precision, as a training tells it.
        days: Of the whole run, without validation, checkpoints or mishaps.
        kwh: At most: as if every node drew what its maker says it may, and the building on top.
        cost: None where no price was said.
        kg_co2: None where no grams were said.
        compiled: Whether blocks are.
    """

    train: TrainConfig
    memory: Memory
    time: StepTime
    traffic: tuple[Traffic, ...]
    mfu: float
    days: float
    kwh: float
    cost: float | None
    kg_co2: float | None
    compiled: bool

    def as_json(self) -> dict[str, Any]:
        """All of it, in plain values."""
        parallel = self.train.parallel
        sent: dict[str, float] = {}
        for one in self.traffic:
            sent[one.axis] = sent.get(one.axis, 0.0) + one.bytes
        return {
            "layout": {axis: getattr(parallel, axis) for axis in AXES},
            "pipeline_schedule": parallel.pipeline_schedule if parallel.pp > 1 else None,
            "stages_per_process": parallel.num_stages // parallel.pp,
            "micro_batch_size": self.train.micro_batch_size,
            "grad_accum_steps": self.train.grad_accum_steps,
            "activation_checkpointing": self.train.activation_checkpointing,
            "compiled": self.compiled,
            "memory_bytes": {**asdict(self.memory), "total": self.memory.total},
            "sent_bytes_per_step": sent,
            "step_seconds": {**asdict(self.time), "total": self.time.total},
            "tokens_per_second": self.train.global_batch_tokens / self.time.total,
            "mfu": self.mfu,
            "days": self.days,
            "kwh": self.kwh,
            "cost": self.cost,
            "kg_co2": self.kg_co2,
        }


def estimate(
    shape: Shape,
    train: TrainConfig,
    cluster: Cluster,
    rates: Rates,
    *,
    efficiency: Efficiency | None = None,
) -> Estimate:
    """Say what ``train`` would need on ``cluster``."""
    time = step_time(shape, train, cluster, efficiency=efficiency)
    hours = train.steps * time.total / 3600
    gpu_hours = hours * cluster.num_gpus
    watts = cluster.gpu.node_watts - cluster.gpu.watts + cluster.watts
    kwh = gpu_hours * watts / 1000 * rates.overhead
    cost = None
    if rates.per_gpu_hour is not None or rates.per_kwh is not None:
        cost = gpu_hours * (rates.per_gpu_hour or 0.0) + kwh * (rates.per_kwh or 0.0)
    grams = rates.grams_co2_per_kwh
    flops = shape.flops_per_token(train.seq_len) * train.global_batch_tokens
    return Estimate(
        train=train,
        memory=memory_of(shape, train),
        time=time,
        traffic=tuple(traffic_of(shape, train)),
        mfu=flops / time.total / (cluster.num_gpus * cluster.gpu.peak(train).flops),
        days=hours / 24,
        kwh=kwh,
        cost=cost,
        kg_co2=None if grams is None else kwh * grams / 1000,
        compiled=compiles(shape.config, train),
    )
