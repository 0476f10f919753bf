"""The memory of a process: what stays, and the worst moment of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmcore.config import TrainConfig
from lmcore.plan.activations import FP32, widths_of
from lmcore.plan.process import Process
from lmcore.plan.shape import Shape


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


def memory_of(
    shape: Shape, train: TrainConfig, device: str = "cuda", *, frees_early: bool | None = None
) -> Memory:
    """The largest memory of any process of a layout, without what the allocator and CUDA keep for themselves.

    Args:
        shape: Of the model.
        train: Layout, batch, precision and optimizer.
        device: "cuda" or "cpu", whose operations keep different things.
        frees_early: Whether blocks are let go of between their passes, and gradients given away after each
            micro-batch; None: as ``lmcore.parallel`` does it on that device.
    """
    last = train.parallel.pp - 1
    # The first has most micro-batches at once, the last the logits; the second may have more blocks.
    places = sorted({0, min(1, last), last})
    return max(
        (
            moment
            for place in places
            for moment in _Step(Process(shape, train, device, place, frees_early)).moments()
        ),
        key=lambda moment: moment.total,
    )


class _Step:
    """The moments of a process's step that may be its worst."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.shape, self.train = process.shape, process.train

    def moments(self) -> Iterator[Memory]:
        """The moments that may be the worst, from the last micro-batch's loss to the optimizer's step."""
        gradients, weights = _Gradients(self.process), _Weights(self.process)
        activations = [self.process.kept(layer, self.process.mode) for layer in self.process.layers]
        flying = sum(activations) * self.process.in_flight()
        stream = self.process.tokens * widths_of(self.shape.config, self.train).whole
        if self.process.last:
            # The last norm's input and result, for the head.
            flying += 2 * stream
            for moment, logits, beside in self._losses():
                yield self._at(moment, gradients.before, weights.at_loss + beside, flying, logits)
        # The head's gradient is there before those of blocks.
        head = gradients.of_head if self.process.last else 0.0
        for done, layer in self._telling():
            again = self.process.kept(layer, "none") - activations[-1 - done]
            left = flying - sum(activations[len(activations) - done :])
            passing = self._passing(layer)
            yield self._at(
                f"backward of block {layer}",
                gradients.after(done),
                weights.going_back(done) + head,
                left + again + passing,
                0.0,
            )
        yield self._at("last reduction", gradients.after(len(self.process.layers)), weights.last, 0.0, 0.0)
        yield self._at("optimizer step", gradients.all, 0.0, self.process.working(), 0.0)

    def _losses(self) -> Iterator[tuple[str, float, float]]:
        """Moments of the loss: bytes of logits, and of the head's gradient where that is found at once.

        Logits, the same in fp32, and their probabilities; going back the gradients of both instead, of which
        the second is cast at once where the loss is of a part of the vocabulary.
        """
        process, element = self.process, self.process.element
        divided, narrow = self.train.parallel.tp > 1, element < FP32
        forward = 2 * FP32 + (element if narrow else 0)
        backward = 2 * FP32 + (element if divided else FP32)
        if not process.chunk:
            yield "loss", process.logit_bytes(forward), 0.0
            yield "loss going back", process.logit_bytes(backward), 0.0
            return
        hidden = process.tokens * widths_of(self.shape.config, self.train).whole
        weight = FP32 * process.head + (0 if process.sharded or not narrow else element * process.head)
        yield "loss, a chunk", process.logit_bytes(backward + element), hidden + weight

    def _telling(self) -> list[tuple[int, int]]:
        """How many blocks went back, and the next one: at both ends, between which like blocks are even."""
        backward = list(enumerate(reversed(self.process.layers)))
        return backward if len(self.process.kinds) > 1 else backward[:2] + backward[2:][-2:]

    def _passing(self, layer: int) -> float:
        """Gradients on their way through an MLP, beyond the tensors that they let go of."""
        config = self.shape.config
        w = widths_of(config, self.train)
        width = w.mlp
        if config.moe.replaces_mlp(layer):
            width = w.element * config.expert_size * config.moe.num_experts_per_token
        if config.activation == "swiglu":
            # As one operation, in fp32 on a CPU, it lets what the last matrix read go when all is done.
            plain = self.process.device == "cpu" and w.element == FP32
            width *= 3 if plain and self.train.activation_checkpointing == "none" else 2
        return self.process.tokens * (w.stream + width)

    def _at(
        self, moment: str, gradients: float, gathered: float, activations: float, logits: float
    ) -> Memory:
        return Memory(
            float(FP32 * self.process.held),
            float(gradients),
            float(self.process.states),
            float(gathered),
            float(activations),
            float(logits),
            float(self.process.tables),
            moment,
        )


class _Gradients:
    """Bytes of fp32 gradients as a step goes on."""

    def __init__(self, process: Process) -> None:
        self.process = process
        train = process.train
        self.accumulates = train.grad_accum_steps > 1
        self.all = FP32 * process.held
        # DDP's are views of what it sends, and never forgotten.
        self.stay = not process.sharded and train.parallel.num_processes > 1
        # In a pipeline, and on CPUs, gradients are shared out with the last micro-batch only.
        self.unshared = 0.0
        if process.sharded and self.accumulates and not process.frees_early:
            self.unshared = FP32 * (process.add_up(process.gathered_by) + process.ends)

    @property
    def before(self) -> float:
        """Before the last micro-batch goes back."""
        if not self.accumulates and not self.stay:
            return 0.0
        return self.unshared or self.all

    def after(self, num_blocks: int) -> float:
        """After ``num_blocks`` blocks of the last micro-batch went back."""
        process = self.process
        done = list(reversed(process.blocks))[:num_blocks]
        mine = FP32 * sum(map(process.held_by, done))
        if self.unshared:
            return self.unshared + mine - FP32 * sum(map(process.gathered_by, done))
        return self.all if self.accumulates or self.stay else mine

    @property
    def of_head(self) -> float:
        """Of the head, until it is added to the others."""
        process = self.process
        if process.sharded:
            return process.element * process.head
        return 0.0 if self.accumulates or self.stay else FP32 * process.head


class _Weights:
    """Bytes of weights and gradients in the type of computing, beside the parts in fp32."""

    def __init__(self, process: Process) -> None:
        self.process = process
        by_kind = {kind: process.gathered_by(kind) for kind in process.kinds}
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
