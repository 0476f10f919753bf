"""Runs whose speed was published, and what we predict for them.

torchtitan: benchmarks/llama3_h100_202412_torchtitan.md, asyncTP_llama3_h100_2025-06_torchtitan.md,
llama3-8b_h200_202506_trainy-whitefiber.md, and docs/performance.md of April and September 2024 (A100, and
405B on 128 H100). Its H100 have 96 GB of HBM2e at 2.4 TB/s and a limit of 500 W. Where a batch goes through a
pipeline it is cut into as many micro-batches as there are stages in a row (its default). Llama 3: Grattafiori
et al. 2024, table 4, on H100 of 700 W.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from lmcore.config import ModelConfig, TrainConfig
from lmcore.plan.hardware import GPUS, Cluster
from lmcore.plan.memory import memory_of
from lmcore.plan.shape import Shape, shape_of
from lmcore.plan.time import Efficiency, StepTime, step_time

# Layers, width, heads, key heads, width of the MLP, vocabulary.
MODELS = {
    "Llama 3 8B": (32, 4096, 32, 8, 14336, 128_256),
    "Llama 3 70B": (80, 8192, 64, 8, 28672, 128_256),
    "Llama 3 405B": (126, 16384, 128, 8, 53248, 128_256),
    "Llama 2 13B": (40, 5120, 40, 40, 13824, 32_000),
    "Llama 2 70B": (80, 8192, 64, 8, 28672, 32_000),
}
H100_500W = dataclasses.replace(GPUS["H100"], memory_bytes=96e9, memory_bytes_per_second=2.4e12)


@dataclass(frozen=True)
class Run:
    """A published run.

    Attributes:
        model: Its name.
        gpu: "A100", "H100", "H200", or "H100 500W".
        parallel: Axes and schedule.
        sequences: Of a step, of each of the processes that have different ones.
        speed: Tokens a second and GPU, or, from 10^6 on, operations.
        gib: Memory that was reported; 0: none was.
        fitted: Constants that were taken from it; empty: none, though it was known when they were chosen.
    """

    model: str
    gpu: str
    parallel: dict[str, Any]
    sequences: int
    speed: float
    seq_len: int = 8192
    mode: str = "full"
    precision: str = "fp8"
    compiled: bool = True
    micro_batches: int = 1
    async_tp: bool = False
    gib: float = 0.0
    fitted: str = ""

    @property
    def train(self) -> TrainConfig:
        """Its settings."""
        parallel = {"dp_replicate": 1, **self.parallel}
        dp = parallel.get("dp_shard", 1)
        return TrainConfig(
            seq_len=self.seq_len,
            micro_batch_size=self.sequences // self.micro_batches,
            global_batch_tokens=self.seq_len * self.sequences * dp,
            precision=self.precision,
            parallel=parallel,
            optimizer={"name": "adamw"},
            activation_checkpointing=self.mode,
            loss_chunk_tokens=0,
        )

    @property
    def cluster(self) -> Cluster:
        """Its machines."""
        size = self.train.parallel.num_processes
        if self.gpu == "H100 500W":
            return Cluster(H100_500W, size, power_watts=500)
        return Cluster(GPUS[self.gpu], size)

    @property
    def shape(self) -> Shape:
        """Its model."""
        return _shape(self.model, self.seq_len)

    @property
    def published(self) -> float:
        """Tokens a second and GPU."""
        if self.speed < 1e6:
            return self.speed
        return self.speed / self.shape.flops_per_token(self.seq_len)

    def predict(self) -> StepTime:
        """Our prediction. torchtitan's selective checkpoints compute every second product again."""
        efficiency = Efficiency(selective=0.5, async_tp=0.5 if self.async_tp else 0.0)
        return step_time(
            self.shape,
            self.train,
            self.cluster,
            compiled=self.compiled,
            skips_masked=True,
            efficiency=efficiency,
        )

    @property
    def predicted(self) -> float:
        """Tokens a second and GPU."""
        return self.train.global_batch_tokens / self.predict().total / self.cluster.num_gpus

    @property
    def predicted_gib(self) -> float:
        """Memory that our own code would have for the same layout."""
        return memory_of(self.shape, self.train).total / 2**30

    def __str__(self) -> str:
        sizes = " ".join(f"{axis} {size}" for axis, size in self.parallel.items() if isinstance(size, int))
        words = [self.precision, self.mode, "" if self.compiled else "eager", "async TP" * self.async_tp]
        if "interleaved" in str(self.parallel.get("pipeline_schedule")):
            words.append("interleaved")
        length = "" if self.seq_len in (4096, 8192) else f", {self.seq_len // 1024}k"
        return f"{self.model}, {self.gpu}: {sizes}{length}, {' '.join(filter(None, words))}"


@functools.cache
def _shape(name: str, seq_len: int) -> Shape:
    layers, width, heads, kv_heads, mlp, vocab_size = MODELS[name]
    config = ModelConfig(
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=mlp,
        max_seq_len=seq_len,
        activation="swiglu",
        qk_norm=False,
        tie_embeddings=False,
    )
    return shape_of(config, vocab_size)


def _interleaved(stages: int) -> dict[str, Any]:
    return {"pipeline_schedule": "interleaved_1f1b", "stages_per_process": stages}


_H = "H100 500W"
_FSDP8, _FSDP128, _TP64 = {"dp_shard": 8}, {"dp_shard": 128}, {"dp_shard": 8, "tp": 8}
_TP128, _TP256 = {"dp_shard": 16, "tp": 8}, {"dp_shard": 32, "tp": 8}
_8B, _70B, _405B = "Llama 3 8B", "Llama 3 70B", "Llama 3 405B"
_OP: dict[str, Any] = {"mode": "selective"}
_BF16: dict[str, Any] = {"precision": "bf16"}
_PIPED: dict[str, Any] = {"micro_batches": 8, "async_tp": True}
_META: dict[str, Any] = {"precision": "bf16", "mode": "none"}

RUNS = (
    # 2024-12, tables 1 and 3.
    Run(_8B, _H, _FSDP8, 2, 5762, gib=82.4, compiled=False, **_OP, **_BF16, fitted="eager"),
    Run(_8B, _H, _FSDP8, 2, 6667, gib=77.0, **_OP, **_BF16, fitted="product, power"),
    Run(_8B, _H, _FSDP8, 2, 8532, gib=76.8, **_OP, fitted="fp8"),
    Run(_8B, _H, _FSDP128, 2, 5605, gib=67.0, compiled=False, **_OP, **_BF16),
    Run(_8B, _H, _FSDP128, 2, 6514, gib=62.0, **_OP, **_BF16, fitted="contention"),
    Run(_8B, _H, _FSDP128, 2, 8380, gib=61.8, **_OP),
    # Table 2.
    Run(_8B, _H, _FSDP8, 1, 3890, 32_768, gib=83.9),
    Run(_8B, _H, {"dp_shard": 4, "cp": 2}, 1, 2540, 65_536, gib=84.2, fitted="pieces"),
    Run(_8B, _H, {"dp_shard": 2, "cp": 4}, 1, 1071, 131_072, gib=84.0, fitted="pieces"),
    Run(_8B, _H, {"dp_shard": 1, "cp": 8}, 1, 548, 262_144, gib=84.5, fitted="pieces"),
    # Table 4.
    Run(_70B, _H, _TP256, 16, 829, gib=71.9),
    Run(_70B, _H, _TP256, 16, 876, gib=67.6, async_tp=True),
    # Table 5.
    Run(_405B, _H, {**_TP64, "pp": 8}, 32, 100, gib=82.5, **_PIPED),
    Run(_405B, _H, {**_TP64, "pp": 8, **_interleaved(2)}, 32, 128, gib=72.7, **_PIPED),
    # Table 6.
    Run(_405B, _H, {**_TP64, "pp": 8}, 8, 76, 32_768, gib=75.3, **_PIPED),
    Run(
        _405B,
        _H,
        {"dp_shard": 4, "cp": 2, "tp": 8, "pp": 8},
        8,
        47,
        65_536,
        gib=75.9,
        fitted="pieces",
        **_PIPED,
    ),
    Run(
        _405B,
        _H,
        {"dp_shard": 2, "cp": 4, "tp": 8, "pp": 8},
        8,
        31,
        131_072,
        gib=77.1,
        fitted="pieces",
        **_PIPED,
    ),
    Run(
        _405B,
        _H,
        {"dp_shard": 1, "cp": 8, "tp": 8, "pp": 8},
        8,
        16,
        262_144,
        gib=84.9,
        fitted="pieces",
        **_PIPED,
    ),
    # 2025-06.
    Run(_70B, _H, _TP256, 16, 597.3, **_BF16),
    Run(_70B, _H, _TP256, 16, 809.8),
    Run(_8B, _H, _TP64, 12, 4378, **_OP, **_BF16),
    Run(_8B, _H, _TP64, 12, 5078.1, **_OP),
    Run(_8B, "H200", {"dp_shard": 32}, 2, 10938, gib=47.96, **_OP),
    Run(_8B, "H200", {"dp_shard": 64}, 2, 10753, gib=46.97, **_OP),
    # 2024-09.
    Run(_405B, _H, _TP128, 2, 109, compiled=False, **_BF16),
    Run(_405B, _H, _TP128, 2, 177),
    # 2024-04; that it was compiled is our reading.
    Run(_8B, "A100", {"dp_shard": 64}, 1, 2973, **_OP, **_BF16, fitted="product"),
    Run(_70B, "A100", {"dp_shard": 64}, 1, 331, **_BF16),
    Run("Llama 2 13B", "A100", {"dp_shard": 64}, 2, 2162, 4096, mode="none", **_BF16),
    Run("Llama 2 13B", "A100", {"dp_shard": 64}, 2, 1904, 4096, **_OP, **_BF16),
    Run("Llama 2 70B", "A100", {"dp_shard": 64}, 2, 353, 4096, **_BF16),
    # Llama 3; how often its stages are interleaved is not published, seven of 126 blocks is our reading.
    Run(
        _405B,
        "H100",
        {"dp_shard": 64, "tp": 8, "pp": 16, **_interleaved(7)},
        32,
        430e12,
        micro_batches=32,
        **_META,
    ),
    Run(
        _405B,
        "H100",
        {"dp_shard": 128, "tp": 8, "pp": 16, **_interleaved(7)},
        16,
        400e12,
        micro_batches=16,
        **_META,
    ),
    Run(
        *(
            _405B,
            "H100",
            {"dp_shard": 8, "cp": 16, "tp": 8, "pp": 16, **_interleaved(7)},
            16,
            380e12,
            131_072,
        ),
        micro_batches=16,
        **_META,
    ),
)
