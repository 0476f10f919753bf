"""A process of a layout: which numbers it has, and how many bytes they are."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from lmcore.config import TrainConfig
from lmcore.parallel.apply import DTYPES
from lmcore.parallel.head import chunk_size
from lmcore.parallel.pipeline import layers_of_stages, own_stages
from lmcore.plan.activations import FP32, kept_by_block
from lmcore.plan.kernels import has_mask
from lmcore.plan.shape import BlockShape, Shape
from lmcore.train.optim import CHUNK_ELEMENTS

BLOCK = 128  # flex_attention's, in tokens
INDICES = 4 * 4  # bytes: of blocks that are partly and wholly seen, from queries and from keys


class Process:
    """The process at a place of the pipeline."""

    def __init__(
        self, shape: Shape, train: TrainConfig, device: str, place: int, frees_early: bool | None = None
    ) -> None:
        self.shape, self.train, self.device, self.place = shape, train, device, place
        parallel = train.parallel
        self.element = DTYPES[train.precision].itemsize
        self.shards = parallel.dp_shard * parallel.cp
        layers = layers_of_stages(shape.config.num_layers, parallel.num_stages)
        stages = own_stages(parallel, place)
        self.layers = [layer for stage in stages for layer in layers[stage]]
        self.blocks = [shape.blocks[layer] for layer in self.layers]
        self.kinds = shape.count(self.layers)
        self._kept: dict[tuple[bool, str], float] = {}
        self.chunks = len(stages)
        self.first, self.last = 0 in stages, parallel.num_stages - 1 in stages
        self.mode = train.activation_checkpointing
        self.sequences = train.micro_batch_size
        self.tokens = self.sequences * train.seq_len / parallel.cp
        self.sharded = parallel.is_sharded
        on_gpus = device == "cuda" if frees_early is None else frees_early
        self.frees_early = on_gpus and parallel.pp == 1

    # --- numbers ---

    def held_by(self, block: BlockShape) -> float:
        """Numbers of a block that this process has between steps."""
        if not self.sharded:
            return block.total
        return (block.divided / self.train.parallel.tp + block.whole + block.experts) / self.shards

    def gathered_by(self, block: BlockShape) -> float:
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
        return self.add_up(self.held_by) + ends

    def add_up(self, numbers: Callable[[BlockShape], float], blocks: int = 0) -> float:
        """Add ``numbers`` up over our blocks, or over the last ``blocks`` of them."""
        kinds = self.shape.count(self.layers[-blocks:]) if blocks else self.kinds
        return sum(count * numbers(kind) for kind, count in kinds.items())

    # --- bytes ---

    @functools.cached_property
    def states(self) -> float:
        """Bytes of the optimizer's state and the moving average."""
        train = self.train
        name, each = train.optimizer.name, 0.0
        matrices = self.add_up(
            lambda block: self.held_by(block) * (block.matrices + block.experts) / block.total
        )
        if name in ("adamw", "adam"):
            each = 2 * FP32 * self.held
        elif name == "muon":
            each = FP32 * matrices + 2 * FP32 * (self.held - matrices)
        elif name == "sgd":
            each = FP32 * self.held if train.optimizer.sgd_momentum else 0.0
        if train.optimizer.offload:
            each = 0.0
        return each + (FP32 * self.held if train.ema_decay else 0.0)

    def working(self) -> float:
        """Bytes that the optimizer needs for a moment in a step: Muon's whole matrices, a chunk at a time."""
        if self.train.optimizer.name != "muon" or not self.blocks:
            return 0.0
        largest = max(block.largest_matrix for block in self.kinds)
        chunk = max(largest, min(CHUNK_ELEMENTS, self.add_up(lambda block: block.matrices)))
        # Updates and results; among several, results one behind another too; products of the largest.
        copies = 3 if self.train.parallel.num_processes > 1 else 2
        return FP32 * copies * chunk + 3 * self.element * largest

    @functools.cached_property
    def tables(self) -> float:
        """Bytes of rotary tables and masks."""
        config = self.shape.config
        table = FP32 * config.max_seq_len * config.head_size if config.position == "rope" else 0.0
        train, pairs = self.train, self.train.seq_len**2 / self.train.parallel.cp
        sequences = self.sequences if train.document_mask else 1
        if has_mask(config, train, self.device):
            masked = sequences * pairs
        elif train.document_mask:
            blocks = -(-train.seq_len // BLOCK)
            masked = sequences * INDICES * blocks * (blocks + 1)  # which, and how many
        else:
            masked = 0.0
        return table * self.chunks + masked

    def kept(self, layer: int, mode: str) -> float:
        """Bytes that block ``layer`` keeps of a micro-batch under a mode of activation checkpointing."""
        config = self.shape.config
        kind = config.moe.replaces_mlp(layer), mode
        if kind not in self._kept:
            self._kept[kind] = self.tokens * kept_by_block(config, self.train, layer, mode, self.device)
        return self._kept[kind]

    def in_flight(self) -> float:
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

    @functools.cached_property
    def chunk(self) -> int:
        """Tokens whose logits there are at a time; 0: all."""
        share = -(-self.shape.vocab_size // self.train.parallel.tp)
        wish = self.train.loss_chunk_tokens
        return chunk_size(int(self.tokens), share, wish, torch.device(self.device))

    def logit_bytes(self, each: int) -> float:
        """``each`` bytes for every logit that is there at a time."""
        tokens = self.chunk or self.tokens
        return each * tokens * self.shape.vocab_size / self.train.parallel.tp

    @property
    def head(self) -> float:
        """Numbers of its part of the head, tied or not."""
        return self.shape.vocab_size * self.shape.config.hidden_size / self.train.parallel.tp
