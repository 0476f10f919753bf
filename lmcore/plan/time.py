"""How long a step takes: products, attention, memory, messages that nothing hides, and idle stages.

Every piece is counted; what cannot be counted is one of the constants of ``Efficiency``, the same for all
runs. Decision 0019 says what each was taken from, and sets predictions beside published runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lmcore.config import TrainConfig
from lmcore.parallel.apply import DTYPES
from lmcore.plan.communication import Traffic, traffic_of
from lmcore.plan.hardware import Cluster
from lmcore.plan.kernels import compiles, has_mask
from lmcore.plan.shape import Shape

OPTIMIZER_PASSES = {"adamw": 28, "adam": 28, "adafactor": 24, "sgd": 20, "muon": 20}  # bytes a number


@dataclass(frozen=True)
class Efficiency:
    """What of the data sheets a training gets.

    Attributes:
        product: Share of the peak that long matrix products reach inside a model.
        product_depth: Length of the sum at which a product reaches half of that: filling and emptying tiles.
        fp8: What of ``product`` is left for products of eight-bit floats.
        power: How the rate of products follows what a GPU may draw, as an exponent.
        memory: Share of the memory's rate.
        eager: Passes over memory without torch.compile, for one with it.
        network: Share of a link's or network card's rate that large messages reach.
        message_seconds: To start a collective, and ``hop_seconds`` for each node that it passes.
        pieces: What of attention's rate is left where keys come in pieces of other processes.
        selective: Share of a block's products that a selective checkpoint computes again.
        async_tp: Share of tensor parallel's messages that is hidden.
        contention: What hidden messages cost all the same, as a share of their time: NCCL takes 16 to 24 of a
            GPU's 132 multiprocessors.
    """

    product: float = 0.60
    product_depth: float = 128.0
    fp8: float = 0.80
    power: float = 0.5
    memory: float = 0.85
    eager: float = 4.0
    network: float = 0.80
    message_seconds: float = 10e-6
    hop_seconds: float = 3e-6
    pieces: float = 0.7
    selective: float = 0.0
    async_tp: float = 0.0
    contention: float = 0.15


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        products: Matrix products, those of what is computed again too.
        attention: Fused attention.
        memory: What is bound by memory: norms, activations, casts, the loss.
        optimizer: Its update.
        exposed: Messages that nothing hides, by axis.
        bubble: Stages that wait for others.
    """

    products: float
    attention: float
    memory: float
    optimizer: float
    exposed: dict[str, float] = field(default_factory=dict)
    bubble: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        computing = self.products + self.attention + self.memory + self.optimizer
        return computing + sum(self.exposed.values()) + self.bubble


def step_time(
    shape: Shape,
    train: TrainConfig,
    cluster: Cluster,
    *,
    compiled: bool | None = None,
    skips_masked: bool = False,
    efficiency: Efficiency | None = None,
) -> StepTime:
    """Predict a step.

    Args:
        shape: Of the model.
        train: Layout, batch and precision.
        cluster: Where it runs.
        compiled: Whether torch.compile merges what is bound by memory; None: as ``train.compile`` has it.
        skips_masked: Whether attention over several processes skips what the causal mask hides; ours, which
            is given a mask, computes it.
        efficiency: Its constants.
    """
    use = efficiency or Efficiency()
    compiled = compiles(shape.config, train) if compiled is None else compiled
    work = _Work(shape, train, cluster, compiled, skips_masked, use)
    batches = train.grad_accum_steps
    products, attention, memory = (
        work.products() * batches,
        work.attention() * batches,
        work.memory() * batches,
    )
    computing = products + attention + memory
    exposed = _exposed(traffic_of(shape, train), cluster, use, computing, train)
    bubble = _bubble_share(train) * (computing + sum(exposed.get(axis, 0.0) for axis in ("tp", "cp", "ep")))
    return StepTime(products, attention, memory, work.optimizer(), exposed, bubble)


class _Work:
    """What the busiest process computes for one micro-batch."""

    def __init__(
        self,
        shape: Shape,
        train: TrainConfig,
        cluster: Cluster,
        compiled: bool,
        skips_masked: bool,
        use: Efficiency,
    ) -> None:
        self.shape, self.train, self.use, self.compiled = shape, train, use, compiled
        self.skips_masked, self.cluster = skips_masked, cluster
        parallel, gpu = train.parallel, cluster.gpu
        self.tokens = train.micro_batch_size * train.seq_len / parallel.cp
        self.layers = -(-shape.config.num_layers // parallel.pp)
        self.mode = train.activation_checkpointing
        # Schedules without bubbles go back for inputs and again for weights, each time from a checkpoint.
        self.again = 2 if parallel.pipeline_schedule in ("zbv", "interleaved_zero_bubble") else 1
        power = (cluster.watts / gpu.watts) ** use.power
        self.bandwidth = gpu.memory_bytes_per_second * use.memory
        fp32 = train.precision == "fp32"
        self.rate_16 = (gpu.flops_32 if fp32 else gpu.flops_16) * use.product * power
        self.rate = self.rate_16
        if train.precision == "fp8":
            self.rate = gpu.flops_8 * use.product * use.fp8 * power
        self.attention_rate = (gpu.flops_32 * use.product if fp32 else gpu.flops_16 * gpu.attention) * power

    def products(self) -> float:
        """Seconds of matrix products, forward and backward, and again."""
        config, tp = self.shape.config, self.train.parallel.tp
        again = self.again * {"full": 1.0, "selective": self.use.selective}.get(self.mode, 0.0)
        seconds = 0.0
        for rows, depth, width, share in self._matrices():
            seconds += share * self._product(rows, depth, width, self.rate, 1 + again)
        seconds *= self.layers / config.num_layers
        # The head is never of eight bits; its stage has fewer blocks to make up for it only by chance.
        head = self._product(self.tokens, config.hidden_size, self.shape.vocab_size / tp, self.rate_16, 1)
        return seconds + head

    def _matrices(self) -> Iterator[tuple[float, float, float, float]]:
        """Rows, depth and width of the products of all blocks, and how many there are of each."""
        config, tp = self.shape.config, self.train.parallel.tp
        queries = config.num_heads * config.head_size
        qkv = queries + 2 * config.kv_heads * config.head_size
        gated = 2 if config.activation == "swiglu" else 1
        layers = config.num_layers
        mixtures = self.shape.num_mixtures
        width, mlp = config.hidden_size, config.mlp_size / tp
        yield self.tokens, width, qkv / tp, layers
        yield self.tokens, queries / tp, width, layers
        yield self.tokens, width, gated * mlp, layers - mixtures
        yield self.tokens, mlp, width, layers - mixtures
        if mixtures:
            moe, size = config.moe, config.expert_size
            own = self.tokens / (tp if self.train.parallel.sequence_parallel else 1)
            experts = moe.num_experts / self.train.parallel.ep
            rows = own * moe.num_experts_per_token * self.train.parallel.ep / moe.num_experts
            yield rows, width, gated * size, mixtures * experts
            yield rows, size, width, mixtures * experts
            if moe.num_shared_experts:
                size *= moe.num_shared_experts
                yield own, width, gated * size, mixtures
                yield own, size, width, mixtures

    def _product(self, rows: float, depth: float, width: float, rate: float, forward: float) -> float:
        """Seconds of a product [rows, depth] x [depth, width], ``forward`` times, and of both gradients."""
        flops = 2 * rows * depth * width
        return sum(
            times
            * max(flops * (1 + self.use.product_depth / inner) / rate, self._touched(rows, depth, width))
            for inner, times in ((depth, forward), (width, 1), (rows, 1))
        )

    def _touched(self, rows: float, depth: float, width: float) -> float:
        return 2 * (rows * depth + depth * width + rows * width) / self.bandwidth

    def attention(self) -> float:
        """Seconds of attention: two products going forward, five going back (Dao 2023, section 2.3)."""
        config, parallel = self.shape.config, self.train.parallel
        heads = config.num_heads * config.head_size / parallel.tp
        length = self.train.seq_len
        masked = has_mask(config, self.train) and not (parallel.cp > 1 and self.skips_masked)
        seen = length if masked else length / 2  # at most: how long documents are is not known here
        forward = 1 + self.again if self.mode == "full" else 1
        flops = 4 * self.tokens * seen * heads * (forward + 2.5) * self.layers
        rate = self.attention_rate * (self.use.pieces if parallel.cp > 1 else 1.0)
        return flops / rate

    def memory(self) -> float:
        """Seconds of what is bound by memory."""
        config, tp = self.shape.config, self.train.parallel.tp
        element = DTYPES[self.train.precision].itemsize
        along = tp if self.train.parallel.sequence_parallel else 1
        heads = (config.num_heads + config.kv_heads) * config.head_size / tp
        mlp, stream = self._mlp_width(), config.hidden_size / along
        gated = 3 if config.activation == "swiglu" else 2
        # Two norms with the sums before them read two tensors and write two; rotation, activation.
        forward = 8 * stream + 2 * heads + gated * mlp
        backward = 12 * stream + 2 * heads + 2 * gated * mlp
        again = forward * self.again if self.mode != "none" else 0.0
        moved = element * (forward + backward + again) * self.layers
        if not self.compiled:
            moved *= self.use.eager
        if self.train.precision == "fp8":
            moved += self._quantized()
        # The loss reads and writes logits in fp32 a few times, forward and backward.
        moved += (element * 3 + 4 * 6) * self.shape.vocab_size / tp
        return self.tokens * moved / self.bandwidth

    def _mlp_width(self) -> float:
        config = self.shape.config
        if not self.shape.num_mixtures:
            return config.mlp_size / self.train.parallel.tp
        along = self.train.parallel.tp if self.train.parallel.sequence_parallel else 1
        return config.expert_size * (config.moe.num_experts_per_token + config.moe.num_shared_experts) / along

    def _quantized(self) -> float:
        """Bytes a token to find the largest number of what is multiplied, and to round it, twice over."""
        config, tp = self.shape.config, self.train.parallel.tp
        width, queries = config.hidden_size, config.num_heads * config.head_size / tp
        qkv = queries + 2 * config.kv_heads * config.head_size / tp
        mlp = self._mlp_width()
        up = mlp * (2 if config.activation == "swiglu" else 1)
        numbers = (2 * width + queries + mlp) + (qkv + up + 2 * width)
        weights = self.shape.in_blocks / config.num_layers / tp
        return 8 * (numbers + weights / self.tokens) * self.layers

    def optimizer(self) -> float:
        """Seconds of an update of this process's part of the weights."""
        train, parallel = self.train, self.train.parallel
        shards = parallel.dp_shard * parallel.cp if parallel.is_sharded else 1
        held = self.shape.total / parallel.pp / parallel.tp / shards
        each = OPTIMIZER_PASSES[train.optimizer.name] + 8  # the norm of the gradient, and clipping
        seconds = held * each / self.bandwidth
        if train.optimizer.offload:
            seconds += held * 16 / 25e9  # moments over PCI Express and back, about 25 GB/s each way
        if train.optimizer.name == "muon":
            seconds += self._orthogonalizing()
        return seconds

    def _orthogonalizing(self) -> float:
        """Five steps of Newton and Schulz on every matrix, shared by the processes that hold it."""
        config, parallel = self.shape.config, self.train.parallel
        sharers = max(1, parallel.num_processes // parallel.pp)
        flops = self.shape.in_blocks / parallel.pp
        # Of a matrix [m, n], m <= n: 2 n m^2 for its square and as much for the product, m^3 in between.
        return 5 * 6 * flops * config.hidden_size / sharers / self.rate_16


def _bubble_share(train: TrainConfig) -> float:
    """What stages wait, over what they work (Narayanan et al. 2021; zero bubble: Qi et al. 2023, 2024)."""
    parallel = train.parallel
    if parallel.pp == 1:
        return 0.0
    chunks = parallel.num_stages // parallel.pp
    share = (parallel.pp - 1) / train.grad_accum_steps
    if parallel.pipeline_schedule == "zbv":
        return share / 6  # none where forward, backward and weights take the same time; they do not quite
    if parallel.pipeline_schedule == "interleaved_zero_bubble":
        return share / chunks / 3  # gradients of weights, a third of the work, fill it
    return share / chunks


def _exposed(
    traffic: list[Traffic], cluster: Cluster, use: Efficiency, computing: float, train: TrainConfig
) -> dict[str, float]:
    """Seconds of messages that no work hides, by axis.

    Those of weights go on beside computing, but for the first and the last block's; replicas add up beside
    the last micro-batch alone.
    """
    exposed: dict[str, float] = {}
    for one in traffic:
        seconds = _seconds(one, cluster, use)
        if not one.hidden:
            left = seconds * (1 - use.async_tp) if one.axis == "tp" else seconds
        else:
            left = _left(one, seconds, computing, train)
            left += use.contention * (seconds - left)
        exposed[one.axis] = exposed.get(one.axis, 0.0) + left
    return exposed


def _left(one: Traffic, seconds: float, computing: float, train: TrainConfig) -> float:
    """Of messages beside computing, what is longer than it, or has nothing beside it."""
    alone = seconds / max(1.0, one.messages)  # the first message, or the last
    last = computing / train.grad_accum_steps
    if one.axis == "replicas":  # beside the last backward pass alone
        return max(seconds - last * 2 / 3, alone)
    if one.axis == "fsdp":
        return max(seconds - (computing if train.parallel.pp == 1 else last), 2 * alone)
    return alone


def _seconds(one: Traffic, cluster: Cluster, use: Efficiency) -> float:
    bandwidth = cluster.bandwidth(one.size, one.inside) * use.network
    nodes = cluster.num_nodes(one.size, one.inside)
    return one.bytes / bandwidth + one.messages * (use.message_seconds + use.hop_seconds * (nodes - 1))
