"""A model divided over the processes of a layout: its parameters, its steps, its losses."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from lmcore.clock import Clock
from lmcore.config import ModelConfig
from lmcore.data.loader import Batch
from lmcore.layout import sequence_multiple
from lmcore.model.backends import Backend
from lmcore.model.moe import routers, set_auxiliary_scale, update_expert_bias
from lmcore.model.transformer import Transformer, hide_added
from lmcore.parallel.apply import DTYPES, Precision, autocast, reduce_gradients, release_weights, wrap
from lmcore.parallel.checkpointing import Checkpointing
from lmcore.parallel.context import SharedSequence
from lmcore.parallel.gradients import TiedHead, add_up, num_copies, partial_over_tp
from lmcore.parallel.head import chunk_size, each_loss, summed_loss
from lmcore.parallel.materialize import Draw
from lmcore.parallel.mesh import Layout
from lmcore.parallel.pipeline import Pipeline, layers_of_stages, own_stages, stage_owners
from lmcore.parallel.stage import Finish, Stage
from lmcore.parallel.vocabulary import VocabularyPart, VocabularyShard, token_losses
from lmcore.parallel.whole import whole_tensors


class Criterion(Protocol):
    """The losses of a micro-batch, or of a chunk of its tokens."""

    def __call__(self, logits: Tensor, targets: Tensor, shard: VocabularyShard | None, /) -> Tensor:
        """Take note of them, and return what is to go backward."""
        ...


class DividedModel:
    """This process's part of a model.

    Args:
        config: The whole model's shape.
        vocab_size: Entries of its vocabulary.
        layout: Of the processes; all of them make theirs together.
        precision: Type of the computation.
        draw: Makes the whole of a parameter by name.
        batch_shape: Sequences and tokens of a micro-batch, which a pipeline must know.
        num_micro_batches: Of a step of ours; more than one at a time only in a pipeline.
        checkpointing: What blocks compute again in the backward pass.
        loss_chunk_tokens: Most tokens whose logits there are at a time; 0: all; None: by their size.
        compiled: Whether blocks are compiled.
        cuda_graphs: Whether what they compile to is replayed from graphs.
        attention: How it is computed; None: as torch likes.

    Attributes:
        clock: Whose parts forward and backward passes are.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        layout: Layout,
        precision: Precision,
        draw: Draw,
        *,
        batch_shape: tuple[int, int] = (1, 1),
        num_micro_batches: int = 1,
        checkpointing: Checkpointing = "none",
        loss_chunk_tokens: int | None = None,
        compiled: bool = False,
        cuda_graphs: bool = False,
        attention: Backend | None = None,
    ) -> None:
        self.config, self.vocab_size, self.layout = config, vocab_size, layout
        self.precision: Precision = precision
        self.loss_chunk_tokens = loss_chunk_tokens
        self.attention = attention or Backend()
        self.clock = Clock(layout.world.device)
        self._marks_steps = cuda_graphs
        parallel = layout.parallel
        self.shared = None
        if layout.context_group is not None:
            self.shared = SharedSequence(layout.context_group, parallel.cp, layout.cp_rank)
        self._part = VocabularyPart.of(config.vocab_rows(vocab_size), vocab_size, parallel.tp, layout.tp_rank)
        self.vocabulary = None
        if parallel.tp > 1:
            self.vocabulary = VocabularyShard(layout.group("tp"), self._part.first)
        self.places = own_stages(parallel, layout.pp_rank)
        self.stages = self._make_stages()
        self.wrapped = [
            wrap(
                stage,
                layout,
                precision,
                draw,
                checkpointing=checkpointing,
                compiled=compiled,
                cuda_graphs=cuda_graphs,
            )
            for stage in self.stages
        ]
        self.tied_head = self._tie()
        self._partial = [p for stage in self.stages for p in partial_over_tp(stage, layout)]
        if cuda_graphs:
            self._place_gradients()
        self.pipeline = None
        if parallel.pp > 1:
            self.pipeline = Pipeline(
                self.wrapped,
                self.places,
                layout,
                DTYPES[precision],  # FSDP2 computes in it throughout
                (batch_shape[0], batch_shape[1] // parallel.cp),
                num_micro_batches,
            )
            for wrapped in self.wrapped:
                wrapped.register_forward_pre_hook(self._enter_forward, prepend=True)
                wrapped.register_forward_hook(self._leave_forward, always_call=True)

    def _make_stages(self) -> list[Stage]:
        """Ours, on the meta device."""
        config, layout = self.config, self.layout
        layers = layers_of_stages(config.num_layers, layout.parallel.num_stages)
        stream = (layout.parallel.tp, layout.tp_rank) if layout.divides_sequence else (1, 0)
        stages = []
        for place in self.places:
            with torch.device("meta"):
                model = Transformer(config, self.vocab_size)
            entries = self._part.num_entries
            stages.append(Stage(model, layers[place], self.shared, stream, entries, self.attention))
        return stages

    def _tie(self) -> TiedHead | None:
        if not self.config.tie_embeddings or self.layout.parallel.pp == 1:
            return None
        embedding = next((s.model.embedding for s in self.stages if s.is_first), None)
        head = next((s.model.head for s in self.stages if s.is_last), None)
        return TiedHead(embedding, head, self.layout, stage_owners(self.layout.parallel)[-1])

    # --- parameters ---

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those to optimize, by their name in the whole model; each process of the pipeline has others."""
        followers = {id(self.tied_head.head)} if self.tied_head and self.tied_head.head is not None else set()
        for stage in self.stages:
            for name, parameter in stage.model.named_parameters():
                if id(parameter) not in followers:
                    yield name, parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """What belongs to the state besides parameters."""
        for stage in self.stages:
            state = stage.model.state_dict()
            yield from ((name, buffer) for name, buffer in stage.model.named_buffers() if name in state)

    def num_copies(self, parameter: Tensor) -> int:
        """How many processes hold the same part of it."""
        return num_copies(parameter, self.layout)

    def weights_changed(self) -> None:
        """Have what follows other weights follow them; all processes call it after each change."""
        if self.tied_head:
            self.tied_head.follow()

    def set_auxiliary_scale(self, scale: float) -> None:
        """Say what the loss of a token is multiplied with, for the balance of experts."""
        if not self.config.moe.num_experts:
            return
        for stage in self.stages:
            set_auxiliary_scale(stage, scale)

    def balance_experts(self) -> Tensor | None:
        """Move experts' biases after a step; return the worst imbalance of a layer, None without experts.

        In fp64, on the device.
        """
        if not self.config.moe.num_experts:
            return None
        worst = torch.zeros((), dtype=torch.float64, device=self.layout.world.device)
        for stage in self.stages:
            found = update_expert_bias(stage, self._sum_over_stage)
            worst = worst if found is None else torch.maximum(worst, found)
        if self.layout.parallel.pp > 1:
            dist.all_reduce(worst, dist.ReduceOp.MAX, group=self.layout.group("pp"))
        return worst

    def forget_counts(self) -> None:
        """Count visits to experts from zero."""
        for stage in self.stages:
            for router in routers(stage):
                router.counts.zero_()

    def _sum_over_stage(self, counts: Tensor) -> Tensor:
        # Processes of tp that see the same tokens count them alike: the counts keep their shares.
        if self.layout.world.size > 1:
            dist.all_reduce(counts, group=self.layout.stage_group)
        return counts

    def release_weights(self) -> None:
        """Let go of gathered weights."""
        for wrapped in self.wrapped:
            release_weights(wrapped)

    def train(self, mode: bool = True) -> None:
        """Set whether dropout drops."""
        for wrapped in self.wrapped:
            wrapped.train(mode)

    def whole_tensors(self) -> Iterator[tuple[str, Tensor | None]]:
        """Yield parameters and buffers whole, as ``lmcore.parallel.whole`` does."""
        return whole_tensors([*self.named_parameters(), *self.named_buffers()], self.layout)

    # --- computing ---

    def use_micro_batches(self, size: int, count: int) -> None:
        """Have each of the next steps take ``count`` micro-batches of ``size`` sequences."""
        if self.pipeline is not None:
            self.pipeline.use_micro_batches(size, count)

    @contextlib.contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Compute by plain operations inside, for shapes that the compiler is not worth waiting for.

        Attention by blocks is nothing without it: the mask of all pairs takes its place.
        """
        attention = self.attention
        self._attend_by(Backend() if attention.flex else attention)
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self._attend_by(attention)

    def _attend_by(self, attention: Backend) -> None:
        self.attention = attention
        for stage in self.stages:
            stage.attention = attention

    def own_part(self, batch: Batch) -> Batch:
        """The part of ``batch`` that this process has tokens of, on its device; documents stay whole."""
        batch = batch.to(self.layout.world.device)
        if self.shared is None:
            return batch
        places = self.shared.places(batch.tokens.shape[1], batch.tokens.device)
        positions = None if batch.positions is None else batch.positions[:, places]
        return Batch(
            batch.tokens[:, places], batch.targets[:, places], positions, batch.document_ids, batch.sequences
        )

    def forward_backward(self, batches: Sequence[Batch], criterion: Criterion) -> None:
        """Add up the gradients of the micro-batches of a step, and sum them over processes."""
        self._finish_with(functools.partial(self._summed_loss, criterion))
        with self.attention.chosen():
            if self.pipeline is not None:
                joined = _joined([self.own_part(batch) for batch in batches])
                # All that is not forward: backward passes, and waiting for the other stages.
                with self.clock.part("backward"):
                    self.pipeline.step(joined)
            else:
                self._in_turn(batches)
        if self._partial:
            add_up(self._partial, self.layout.group("tp"))
        if self.tied_head:
            self.tied_head.give_gradient()

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients have a place that they are not to lose.

        Views of DDP's buckets: else micro-batches but the last would be added up in tensors of their own, a
        second gradient. And with CUDA graphs (``_place_gradients``).
        """
        return self._marks_steps or isinstance(self.wrapped[0], DistributedDataParallel)

    def _place_gradients(self) -> None:
        """Give gradients memory of their own, to which backward passes add.

        Autograd makes the first gradient that it meets the parameter's own. Where a graph wrote it, it lies
        in the graph's memory, which the next micro-batch writes to.
        """
        for _, parameter in self.named_parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _begin_pass(self) -> None:
        """Have graphs start from their first: what they wrote before may now be overwritten."""
        if self._marks_steps:
            torch.compiler.cudagraph_mark_step_begin()

    @property
    def _saves_memory(self) -> bool:
        """Whether memory is dearer than messages: that of GPUs is."""
        return self.layout.world.device.type == "cuda"

    def _in_turn(self, batches: Sequence[Batch]) -> None:
        (wrapped,) = self.wrapped
        for index, batch in enumerate(batches):
            part = self.own_part(batch)
            self._begin_pass()
            last = index == len(batches) - 1
            with reduce_gradients(wrapped, last=last, save_memory=self._saves_memory):
                with self.clock.part("forward"), autocast(wrapped, self.precision, self.layout.world.device):
                    loss = wrapped(
                        part.tokens, part.positions, part.document_ids, part.sequences, part.targets
                    )
                with self.clock.part("backward"):
                    loss.backward()

    def _enter_forward(self, *_: object) -> None:
        # The schedule calls the stages: only they know when. Without gradients it is validation's.
        if torch.is_grad_enabled():
            self.clock.enter("forward")

    def _leave_forward(self, *_: object) -> None:
        if torch.is_grad_enabled():
            self.clock.leave()

    def _finish_with(self, finish: Finish) -> None:
        for stage in self.stages:
            stage.finish = finish

    def _summed_loss(
        self, criterion: Criterion, head: nn.Linear, hidden: Tensor, targets: Tensor | None
    ) -> Tensor:
        if targets is None:
            raise ValueError("a loss needs targets")
        # Schedules without bubbles go back through the last stage for its input, and again for its weights.
        parallel = self.layout.parallel
        once = parallel.pp == 1 or parallel.pipeline_schedule in ("gpipe", "1f1b", "interleaved_1f1b")
        return summed_loss(
            head,
            hidden,
            targets,
            lambda logits, wanted: criterion(
                hide_added(logits, self._part.num_entries), wanted, self.vocabulary
            ),
            self._chunk_size(targets),
            stream=self._stream,
            once=once,
        )

    def _each_loss(self, head: nn.Linear, hidden: Tensor, targets: Tensor | None) -> Tensor:
        if targets is None:
            raise ValueError("a loss needs targets")
        size = self._chunk_size(targets)
        return each_loss(head, hidden, targets, self._losses, size, stream=self._stream)

    @property
    def _stream(self) -> Placement:
        return Shard(1) if self.layout.divides_sequence else Replicate()

    def _chunk_size(self, targets: Tensor) -> int:
        # By the rows of the fullest process: all sum chunk by chunk, and so need as many chunks.
        rows = self._part.most_rows
        return chunk_size(targets.numel(), rows, self.loss_chunk_tokens, targets.device)

    @torch.no_grad()
    def token_losses(self, batch: Batch) -> Tensor:
        """Return the loss in nats of each target, [B, T] in fp32, on every process that shares ``batch``."""
        part = self.own_part(batch)
        self._begin_pass()
        self._finish_with(self._each_loss)
        losses = self._forward(part, part.targets.shape)
        return losses if self.shared is None else self.shared.gather(losses)

    @torch.no_grad()
    def next_logits(self, tokens: list[int]) -> Tensor:
        """Return the logits [V] of the token after ``tokens``, in fp32 on the CPU, the same on each process.

        Args:
            tokens: At least one.
        """
        device = self.layout.world.device
        row = F.pad(
            torch.tensor([tokens], device=device), (0, -len(tokens) % sequence_multiple(self.layout.parallel))
        )
        part = self.own_part(Batch(row, row))
        places = torch.arange(row.shape[1], device=device)
        if self.shared is not None:
            places = self.shared.places(row.shape[1], device)
        ours = (places == len(tokens) - 1).nonzero()[:, 0]  # one of us has the place
        shape = torch.Size((len(ours), self._part.num_rows))
        self._finish_with(lambda head, hidden, targets: head(hidden)[0, ours].float())
        found = self._forward(part, shape)
        whole = torch.zeros(self.config.vocab_rows(self.vocab_size), device=device)
        if len(ours):
            first = self._part.first
            whole[first : first + self._part.num_rows] = found[0]
        for group in (self.layout.context_group, self.vocabulary.group if self.vocabulary else None):
            if group is not None:
                dist.all_reduce(whole, group=group)
        if self.layout.world.size > 1:
            dist.broadcast(whole, 0)  # replicas may differ in the last bit
        return whole[: self.vocab_size].cpu()

    def _forward(self, part: Batch, shape: torch.Size) -> Tensor:
        """What the last stage makes of ``part``, of ``shape``, computed as a step computes it."""
        with self.attention.chosen():
            if self.pipeline is not None:
                return self.pipeline.forward(part, shape)
            (wrapped,) = self.wrapped
            with autocast(wrapped, self.precision, self.layout.world.device):
                return wrapped(part.tokens, part.positions, part.document_ids, None, part.targets)

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        flat = hide_added(logits, self._part.num_entries).flatten(0, 1)
        index = targets.clamp(min=0).flatten()
        if self.vocabulary is not None:
            return token_losses(flat, index, self.vocabulary)[0].view_as(targets)
        return F.cross_entropy(flat.float(), index, reduction="none").view_as(targets)


def _joined(batches: Sequence[Batch]) -> Batch:
    def join(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there) if there else None

    return Batch(
        torch.cat([batch.tokens for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        join([batch.positions for batch in batches]),
        join([batch.document_ids for batch in batches]),
        join([batch.sequences for batch in batches]),
    )
