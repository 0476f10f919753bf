"""The memory of a process: what stays, and the worst moment of a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lmcore.config import TrainConfig
from lmcore.parallel.apply import DTYPES
from lmcore.parallel.pipeline import layers_of_stages, own_stages
from lmcore.plan.activations import FP32, kept_by_block, widths_of
from lmcore.plan.shape import BlockShape, Shape
from lmcore.train.optim import CHUNK_ELEMENTS


@dataclass(frozen=True)
class Memory:
    """Bytes of a process at the moment of a step when it has most.

    Attributes:
        parameters: In fp32, its part of them.
        gradients: In fp32, at that moment.
        optimizer: State of the optimizer, and the moving average of weights.
        gathered: Weights in the type of computing, and gradients before they are shared out.
        activations: What blocks keep, and compute again.
        logits: And their gradient.
        buffers: Tables.
        moment: When that is.
    """

    parameters: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float
    buffers: float
    moment: str

    @property
    def total(self) -> float:
        """All of it."""
        states = self.parameters + self.gradients + self.optimizer
        return states + self.gathered + self.activations + self.logits + self.buffers


def memory_of(shape: Shape, train: TrainConfig, device: str = "cuda") -> Memory:
    """The largest memory of any process of a layout, without what the allocator and CUDA keep for themselves.

    Args:
        shape: Of the model.
        train: Layout, batch, precision and optimizer.
        device: "cuda" or "cpu", which decides what is freed early (``lmcore.parallel.apply``).
    """
    last = train.parallel.pp - 1
    # The first has most micro-batches at once, the last the logits; the second may have more blocks.
    places = sorted({0, min(1, last), last})
    return max(
        (moment for place in places for moment in _Process(shape, train, device, place).moments()),
        key=lambda moment: moment.total,
    )


class _Process:
    """The process at a place of the pipeline."""

    def __init__(self, shape: Shape, train: TrainConfig, device: str, place: int) -> None:
        self.shape, self.train, self.device, self.place = shape, train, device, place
        parallel = train.parallel
        self.element = DTYPES[train.precision].itemsize
        self.shards = parallel.dp_shard * parallel.cp
        layers = layers_of_stages(shape.config.num_layers, parallel.num_stages)
        stages = own_stages(parallel, place)
        self.layers = [layer for stage in stages for layer in layers[stage]]
        self.blocks = [shape.blocks[layer] for layer in self.layers]
        self.kinds = shape.count(self.layers)
        self.kept: dict[tuple[bool, str], float] = {}
        self.chunks = len(stages)
        self.first, self.last = 0 in stages, parallel.num_stages - 1 in stages
        self.mode = train.activation_checkpointing
        self.sequences = getattr(train, "micro_batch_size", 1) or 1
        self.tokens = self.sequences * train.seq_len / parallel.cp
        # Of a token's part of the stream, and of the logits.
        self.sharded = parallel.is_sharded
        self.frees_early = device == "cuda" and parallel.pp == 1

    # --- numbers ---

    def _held_by(self, block: BlockShape) -> float:
        """Numbers of a block that this process has between steps."""
        if not self.sharded:
            return block.total
        return (block.divided / self.train.parallel.tp + block.whole + block.experts) / self.shards

    def _gathered_by(self, block: BlockShape) -> float:
        """Numbers of a block that it computes with."""
        parallel = self.train.parallel
        return block.divided / parallel.tp + block.whole + block.experts / parallel.ep

    @property
    def _table(self) -> float:
        return self.shape.embedding / self.train.parallel.tp

    @functools.cached_property
    def ends(self) -> float:
        """Numbers of the embedding, the last norm and the head, as far as they are here."""
        shape, tp = self.shape, self.train.parallel.tp
        ends = self._table + shape.positions if self.first else 0.0
        if self.last:
            ends += shape.norm + shape.head / tp
            if not shape.head and not self.first:
                ends += self._table  # a tied head in another stage is a copy
        return ends

    @functools.cached_property
    def held(self) -> float:
        """Numbers that it has between steps."""
        ends = self.ends / self.shards if self.sharded else self.ends
        return self._sum(self._held_by) + ends

    def _sum(self, numbers: Callable[[BlockShape], float], blocks: int = 0) -> float:
        """Add ``numbers`` up over our blocks, or over the last ``blocks`` of them."""
        kinds = self.shape.count(self.layers[-blocks:]) if blocks else self.kinds
        return sum(count * numbers(kind) for kind, count in kinds.items())

    # --- bytes ---

    @functools.cached_property
    def states(self) -> float:
        """Bytes of the optimizer's state and the moving average."""
        train = self.train
        name, each = train.optimizer.name, 0.0
        matrices = self._sum(
            lambda block: self._held_by(block) * (block.matrices + block.experts) / block.total
        )
        if name in ("adamw", "adam"):
            each = 2 * FP32 * self.held
        elif name == "muon":
            each = FP32 * matrices + 2 * FP32 * (self.held - matrices)
        elif name == "sgd":
            each = FP32 * self.held if train.optimizer.sgd_momentum else 0.0
        if getattr(train.optimizer, "offload", False):
            each = 0.0
        return each + (FP32 * self.held if train.ema_decay else 0.0)

    def _working(self) -> float:
        """Bytes that the optimizer needs for a moment in a step: Muon's whole matrices, a chunk at a time."""
        if self.train.optimizer.name != "muon" or not self.blocks:
            return 0.0
        largest = max(block.largest_matrix for block in self.kinds)
        chunk = max(largest, min(CHUNK_ELEMENTS, self._sum(lambda block: block.matrices)))
        # Updates and results; among several, results one behind another too; products of the largest.
        copies = 3 if self.train.parallel.num_processes > 1 else 2
        return FP32 * copies * chunk + 3 * self.element * largest

    @functools.cached_property
    def tables(self) -> float:
        """Bytes of rotary tables and masks."""
        config = self.shape.config
        table = FP32 * config.max_seq_len * config.head_size if config.position == "rope" else 0.0
        cp = self.train.parallel.cp
        masked = self.train.seq_len**2 / cp if cp > 1 else 0.0
        if self.train.document_mask:
            masked = self.sequences * self.train.seq_len**2 / cp
        return table * self.chunks + masked

    def _kept(self, layer: int, mode: str) -> float:
        config = self.shape.config
        kind = config.moe.replaces_mlp(layer), mode
        if kind not in self.kept:
            self.kept[kind] = self.tokens * kept_by_block(config, self.train, layer, mode, self.device)
        return self.kept[kind]

    def _in_flight(self) -> float:
        """Micro-batches whose activations a process holds at once, in units of all its blocks."""
        parallel, batches = self.train.parallel, self.train.grad_accum_steps
        pp, chunks = parallel.pp, self.chunks
        if pp == 1:
            return 1.0
        schedule = parallel.pipeline_schedule
        if schedule == "gpipe":
            return float(batches)
        if schedule == "1f1b":
            return float(min(batches, pp - self.place))
        if schedule == "zbv":
            return float(min(batches, pp))
        warmup = (
            (chunks - 1) * pp + 2 * (pp - self.place - 1) + 1
        )  # forward passes of a piece (Narayanan 2021)
        if schedule == "interleaved_zero_bubble":
            warmup += pp - 1 - self.place
        return min(batches, warmup / chunks)

    def _logit_bytes(self, each: int) -> float:
        """``each`` bytes for every logit that is there at a time."""
        if not self.last:
            return 0.0
        chunk = getattr(self.train, "loss_chunk_tokens", 0)
        tokens = min(self.tokens, chunk) if chunk else self.tokens
        return each * tokens * self.shape.vocab_size / self.train.parallel.tp

    # --- moments ---

    def moments(self) -> Iterator[Memory]:
        """The moments that may be the worst, from the last micro-batch's loss to the optimizer's step."""
        gradients, weights = _Gradients(self), _Weights(self)
        activations = [self._kept(layer, self.mode) for layer in self.layers]
        flying = sum(activations) * self._in_flight()
        stream = self.tokens * widths_of(self.shape.config, self.train).whole
        if self.last:
            # The last norm's input and result, for the head.
            flying += 2 * stream
            # Logits, the same in fp32, and their probabilities; going back the gradients of both instead, of
            # which the second is cast at once where the loss is of a part of the vocabulary.
            forward = 2 * FP32 + (self.element if self.element < FP32 else 0)
            backward = 2 * FP32 + (self.element if self.train.parallel.tp > 1 else FP32)
            backward += self.element if self.train.parallel.pp > 1 else 0  # a pipeline lets go of them later
            for moment, each in (("loss", forward), ("loss going back", backward)):
                yield self._at(moment, gradients.before, weights.at_loss, flying, self._logit_bytes(each))
        head = self.element * self.shape.vocab_size * self.shape.config.hidden_size / self.train.parallel.tp
        head = head if self.last and self.sharded else 0.0
        for done, layer in self._telling():
            again = self._kept(layer, "none") - activations[-1 - done]
            left = flying - sum(activations[len(activations) - done :])
            passing = self._passing(layer)
            yield self._at(
                f"backward of block {layer}",
                gradients.after(done),
                weights.going_back(done) + head,
                left + again + passing,
                0.0,
            )
        yield self._at("last reduction", gradients.after(len(self.layers)), weights.last, 0.0, 0.0)
        yield self._at("optimizer step", gradients.all, 0.0, self._working(), 0.0)

    def _telling(self) -> list[tuple[int, int]]:
        """How many blocks went back, and the next one: at both ends, between which like blocks are even."""
        backward = list(enumerate(reversed(self.layers)))
        return backward if len(self.kinds) > 1 else backward[:2] + backward[2:][-2:]

    def _passing(self, layer: int) -> float:
        """Gradients on their way through an MLP, beyond the tensors that they let go of."""
        config = self.shape.config
        w = widths_of(config, self.train)
        width = w.mlp
        if config.moe.replaces_mlp(layer):
            width = w.element * config.expert_size * config.moe.num_experts_per_token
        return self.tokens * (w.stream + width * (2 if config.activation == "swiglu" else 1))

    def _at(
        self, moment: str, gradients: float, gathered: float, activations: float, logits: float
    ) -> Memory:
        return Memory(
            float(FP32 * self.held),
            float(gradients),
            float(self.states),
            float(gathered),
            float(activations),
            float(logits),
            float(self.tables),
            moment,
        )


class _Gradients:
    """Bytes of fp32 gradients as a step goes on."""

    def __init__(self, process: _Process) -> None:
        self.process = process
        train = process.train
        self.accumulates = train.grad_accum_steps > 1
        self.all = FP32 * process.held
        # In a pipeline, and on CPUs, gradients are shared out with the last micro-batch only.
        self.unshared = 0.0
        if process.sharded and self.accumulates and not process.frees_early:
            self.unshared = FP32 * (process._sum(process._gathered_by) + process.ends)

    @property
    def before(self) -> float:
        """Before the last micro-batch goes back."""
        if not self.accumulates:
            return 0.0
        return self.unshared or self.all

    def after(self, numblocks: int) -> float:
        """After ``numblocks`` blocks of the last micro-batch went back."""
        process = self.process
        done = list(reversed(process.blocks))[:numblocks]
        mine = FP32 * sum(map(process._held_by, done))
        if self.unshared:
            return self.unshared + mine - FP32 * sum(map(process._gathered_by, done))
        return self.all if self.accumulates else mine


class _Weights:
    """Bytes of weights and gradients in the type of computing, beside the parts in fp32."""

    def __init__(self, process: _Process) -> None:
        self.process = process
        by_kind = {kind: process._gathered_by(kind) for kind in process.kinds}
        self.blocks = [by_kind[block] for block in process.blocks]
        self.all = sum(self.blocks)

    @property
    def at_loss(self) -> float:
        """When the loss is computed."""
        process, element = self.process, self.process.element
        if not process.sharded:
            # Autocast's copies, of what is not computed again.
            kept = process.mode != "full"
            return 0.0 if element == FP32 else element * (kept * self.all + process.ends)
        if process.frees_early:
            return element * (process.ends + self.blocks[-1])
        return element * (process.ends + self.all)

    def going_back(self, done: int) -> float:
        """While a block goes back, after ``done`` of them did: weights, and gradients not yet shared out."""
        process, element = self.process, self.process.element
        ours = list(reversed(self.blocks))[done]
        if not process.sharded:
            if element == FP32:
                return 0.0
            left = sum(self.blocks[: len(self.blocks) - done]) if process.mode != "full" else ours
            return element * (left + process.ends)
        before = list(reversed(self.blocks))[done - 1] if done else 0.0  # in fp32, on the wire meanwhile
        after = self.blocks[-done - 2] if done + 1 < len(self.blocks) else 0.0  # being gathered
        weights = ours + after if process.frees_early else self.all
        if process.train.parallel.pp > 1 and process.train.grad_accum_steps > 1:
            before = 0.0  # reduced at the very end
        return element * (process.ends + weights + ours) + FP32 * before

    @property
    def last(self) -> float:
        """When the gradients of what is at both ends are shared out."""
        process, element = self.process, self.process.element
        if not process.sharded:
            return 0.0
        return (2 * element + FP32) * process.ends
