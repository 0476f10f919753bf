"""The machines that a plan is for: GPUs by their makers' data sheets, and what lies between them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from lmcore.config import TrainConfig
from lmcore.errors import ConfigError
from lmcore.train.peaks import Peak, known_peak, vendor_peak

GB = 1e9


@dataclass(frozen=True)
class GPU:
    """One GPU, by the data sheet of its SXM form.

    Attributes:
        name: As people say it.
        flops_16: Dense products in bf16, FLOP/s.
        flops_8: Dense products of eight-bit floats, FLOP/s; 0: it has none.
        flops_32: Products in fp32 as torch makes them, without TF32, FLOP/s.
        memory_bytes: Of its own.
        memory_bytes_per_second: Between it and the GPU.
        link_bytes_per_second: To the other GPUs of its node (NVLink), each way.
        network_bytes_per_second: Its share of the node's network, each way.
        watts: What it may draw (TDP).
        node_watts: Its share of what a whole node of the maker may draw, with processors, fans and network.
        attention: Share of ``flops_16`` that fused causal attention reaches.
        source: Where the numbers come from.
    """

    name: str
    flops_16: float
    flops_8: float
    flops_32: float
    memory_bytes: float
    memory_bytes_per_second: float
    link_bytes_per_second: float
    network_bytes_per_second: float
    watts: float
    node_watts: float
    attention: float
    source: str

    def peak(self, train: TrainConfig) -> Peak:
        """What MFU of a training is a share of: ``train.costs.peak_tflops``, or else the vendor's figure.

        Where the GPU has no products of the training's precision it is the figure for 16 bits.
        """
        found = known_peak(train.costs, self.name, train.precision)
        return found or Peak(self.flops_16, f"the vendor's figure for {self.name}, 16-bit")


def _gpu(name: str, *rest: float, source: str) -> GPU:
    """A GPU whose rates are those of the one table of peaks that there is."""
    peaks = (vendor_peak(name, kind) for kind in ("16-bit", "8-bit", "FP32"))
    return GPU(name, *(peak.flops if peak else 0.0 for peak in peaks), *rest, source=source)


# Attention: FlashAttention-2, which torch brings, reaches 50 to 73% of an A100 (Dao 2023), and 35% of an H100
# (Shah et al. 2024). Of a B200 we know of no such figure: it is taken to be as of an H100.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu(
            *("A100", 80 * GB, 2.039e12, 300 * GB, 25 * GB, 400, 6500 / 8, 0.55),
            source="NVIDIA A100 80GB SXM data sheet (2021); DGX A100 data sheet: 8 x 200 Gb/s, 6.5 kW",
        ),
        _gpu(
            *("H100", 80 * GB, 3.35e12, 450 * GB, 50 * GB, 700, 10200 / 8, 0.35),
            source="NVIDIA H100 SXM data sheet (2023); DGX H100 data sheet: 8 x 400 Gb/s, 10.2 kW",
        ),
        _gpu(
            *("H200", 141 * GB, 4.8e12, 450 * GB, 50 * GB, 700, 10200 / 8, 0.35),
            source="NVIDIA H200 SXM data sheet (2024); DGX H200 data sheet: 8 x 400 Gb/s, 10.2 kW",
        ),
        _gpu(
            *("B200", 180 * GB, 8e12, 900 * GB, 50 * GB, 1000, 14300 / 8, 0.35),
            source="NVIDIA DGX B200 data sheet (2024): 8 x 400 Gb/s, 14.3 kW; HGX B200 data sheet",
        ),
    )
}


def find_gpu(name: str) -> GPU:
    """The GPU of that name, however it is spelled: "h100", "NVIDIA H100 80GB HBM3".

    Raises:
        ConfigError: it is not in the table.
    """
    words = name.upper().replace("-", " ").replace("_", " ").split()
    found = [GPUS[word] for word in words if word in GPUS]
    if len(found) == 1:
        return found[0]
    near = difflib.get_close_matches(name.upper(), GPUS, n=2, cutoff=0.4)
    raise ConfigError(
        f"--gpu {name!r} is not in the planner's table",
        expected=f"one of {', '.join(GPUS)}",
        found=repr(name),
        remedy=f"Did you mean {' or '.join(near)}?" if near else "Take the one that is most like it.",
    )


@dataclass(frozen=True)
class Cluster:
    """GPUs, and how they are put together.

    Attributes:
        gpu: Of which kind.
        num_gpus: How many.
        gpus_per_node: That share the fast links.
        memory_bytes: Of each, if it is not what the table says.
        power_watts: What each may draw, if less than its TDP; 0: that.
        link_bytes_per_second, network_bytes_per_second: If they are not what the table says; 0: they are.
    """

    gpu: GPU
    num_gpus: int
    gpus_per_node: int = 8
    memory_bytes: float = 0.0
    power_watts: float = 0.0
    link_bytes_per_second: float = 0.0
    network_bytes_per_second: float = 0.0

    @property
    def memory(self) -> float:
        """Bytes of each GPU."""
        return self.memory_bytes or self.gpu.memory_bytes

    @property
    def watts(self) -> float:
        """What each GPU may draw."""
        return self.power_watts or self.gpu.watts

    def bandwidth(self, size: int, inside: int) -> float:
        """Bytes a second, each way, that each member of a group can send to it.

        Within a node the links are used; beyond it rings pass through all network cards that the members in
        a node have, never faster than the links.

        Args:
            size: Members of the group.
            inside: Ranks from one member to the next.
        """
        link = self.link_bytes_per_second or self.gpu.link_bytes_per_second
        network = self.network_bytes_per_second or self.gpu.network_bytes_per_second
        if size * inside <= self.gpus_per_node:
            return link
        return min(link, network * max(1, self.gpus_per_node // inside))

    def num_nodes(self, size: int, inside: int) -> int:
        """Nodes that such a group reaches over."""
        return max(1, -(-size * inside // max(inside, self.gpus_per_node)))
