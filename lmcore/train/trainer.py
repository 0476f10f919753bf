"""The training run, as a story: prepare, go on from a checkpoint, step, validate, save, finish."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmcore.config import Identity, identify
from lmcore.data.prefetch import Prefetcher, StepData
from lmcore.errors import TrainingDiverged
from lmcore.layout import micro_batch_sizes
from lmcore.model.backends import Task, choose_backend
from lmcore.model.float8 import use_float8
from lmcore.model.hf.files import weights_digest
from lmcore.model.io import FORMAT
from lmcore.model.manifest import unverified
from lmcore.model.transformer import Transformer, first_weight, initial_weight, without_added
from lmcore.parallel.apply import DTYPES
from lmcore.parallel.compile import check_cuda_graphs, choose_compile
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.run_directory import EventLog, read_rows
from lmcore.train.checkpoint import Checkpoints, TrainingState
from lmcore.train.costs import Costs
from lmcore.train.energy import Meters
from lmcore.train.fitting import Trials, find_largest, out_of_memory_explained
from lmcore.train.garbage import collected_every
from lmcore.train.inputs import open_inputs, verify_job
from lmcore.train.job import TrainJob, with_a_micro_batch
from lmcore.train.metrics import ProgressLine, Speed
from lmcore.train.optim import Optimizers
from lmcore.train.outcome import write_model
from lmcore.train.peaks import find_peak
from lmcore.train.precision import LossScale, check_fp8
from lmcore.train.reading import Facts, Reading
from lmcore.train.replicas import Replicas
from lmcore.train.spikes import KIND as LOSS_SPIKE
from lmcore.train.spikes import Spikes, count_spikes, name_samples
from lmcore.train.step import TrainingStep
from lmcore.train.validation import validate

Outcome = Literal["completed", "preempted"]


class Trainer:
    """One training run.

    Args:
        job: What to train, on what.
        run_dir: Its run directory.
        world: This process among its peers.
        stop_requested: Asked after each step; when any process says yes, all save and stop.
        began: By ``time.monotonic``, when this process began to be there for the run, if before now.

    Raises:
        ConfigError: the settings do not fit each other or the processes.
        DataError: the tokens or the tokenizer are missing, damaged or too few.
        CheckpointError: the model to go on from is missing or damaged.
    """

    def __init__(
        self,
        job: TrainJob,
        run_dir: Path,
        world: World,
        stop_requested: Callable[[], bool],
        *,
        began: float | None = None,
    ) -> None:
        began = time.monotonic() if began is None else began
        meters = Meters(world.device) if job.train.costs.every_steps else None
        self.finds_micro_batch = job.train.micro_batch_size == 0
        job = with_a_micro_batch(job)
        self.job, self.config, self.run_dir, self.world = job, job.train, run_dir, world
        self.stop_requested = stop_requested
        self.layout = make_layout(self.config.parallel, world)
        self.notes = world.from_main(lambda: verify_job(job, run_dir)).notes()
        self.inputs = open_inputs(job, self.layout)
        self._build_model()
        replicas = self.config.parallel.dp_replicate
        self.replicas = Replicas(self.layout)
        self.checkpoints = Checkpoints(run_dir, world, self.config.keep_checkpoints, replicas)
        self.events = EventLog(run_dir, enabled=world.is_main)
        self.progress = ProgressLine(self.config.steps, enabled=world.is_main)
        tokens, flops = self.config.global_batch_tokens, self.whole.flops_per_token(self.config.seq_len)
        self.costs = Costs(
            self.config, world, self.model.clock, run_dir, self.events, self.progress.say, began, meters
        )
        self.peak = find_peak(self.config.costs, world.device, self.config.precision)
        self.speed = Speed(tokens, flops, self.peak.flops * world.size if self.peak else None)
        self.spikes = Spikes(self.config.spike_z_score, self.inputs.loader)
        self.step = 0
        self.readings: deque[Reading] = deque()
        # A GPU is told the next step before the last one is read, but where it decides what comes next.
        self.behind = 1 if world.device.type == "cuda" and not self.loss_scale.dynamic else 0
        self.last_values: dict[str, float] = {}
        self.validation: dict[str, float] = {}

    # --- preparation ---

    def _build_model(self) -> None:
        config = self.job.model
        if self.config.precision == "fp8":
            check_fp8(config, self.config.parallel, self.world.device)
        self.compiled, self.compile_reason = choose_compile(config, self.config, self.world.device)
        check_cuda_graphs(config, self.config, self.world.device, self.compiled)
        with torch.device("meta"):  # to ask it for its size
            self.whole = Transformer(config, self.inputs.vocab_size)
        attention = choose_backend(self.config.attention, self._attention_task())
        self.model = DividedModel(
            config,
            self.inputs.vocab_size,
            self.layout,
            self.config.precision,
            self._first_value,
            batch_shape=(self.config.micro_batch_size, self.config.seq_len),
            num_micro_batches=self.config.grad_accum_steps,
            checkpointing=self.config.activation_checkpointing,
            loss_chunk_tokens=self.config.loss_chunk_tokens,
            compiled=self.compiled,
            cuda_graphs=self.config.cuda_graphs,
            attention=attention,
        )
        # Orthogonalizing bears few digits, but not where layouts are to agree to the last ones.
        matrix_dtype = torch.float32 if self.config.precision == "fp32" else torch.bfloat16
        self.optimizers = Optimizers(
            self.model.named_parameters(),
            self.config.optimizer,
            matrix_dtype,
            self.model.num_copies,
            self.layout.stage_group,
        )
        self.batches = Prefetcher(
            self.inputs.loader, self.config.steps, self.config.prefetch_steps, self.world.device
        )
        self.steps = TrainingStep(self.config, self.model, self.optimizers, self.batches, self.stop_requested)
        self.average = self.steps.average

    @property
    def loss_scale(self) -> LossScale:
        """The factor that fp16 needs."""
        return self.steps.loss_scale

    def _attention_task(self) -> Task:
        model, config = self.job.model, self.config
        return Task(
            device=self.world.device,
            dtype=DTYPES[config.precision],
            heads=model.num_heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_size,
            seq_len=config.seq_len,
            documents=config.document_mask,
            in_parts=config.parallel.cp > 1,
            selective=config.activation_checkpointing == "selective",
            compiled=self.compiled,
        )

    def _first_value(self, name: str, shape: torch.Size) -> Tensor:
        """The whole of a parameter or buffer: of the model to go on from, or drawn."""
        weights = self.inputs.weights
        draw = functools.partial(initial_weight, config=self.job.model, seed=self.config.seed)
        given = weights is not None and name in weights
        return first_weight(name, shape, self.inputs.vocab_size, weights if given and weights else draw)

    # --- the run ---

    def run(self) -> dict[str, Any]:
        """Train to the end, or until asked to stop; return the result.

        Raises:
            TrainingDiverged: the loss is not finite.
            CheckpointError: the newest checkpoint is of another run.
            StorageError: the disk has no room for a checkpoint.
        """
        started = time.time()
        self._resume()
        self.progress.say(
            f"{self.model_size:,} parameters, {self.world.size} process(es) on {self.world.device.type}, "
            f"{self.config.steps - self.step} steps of {self.config.global_batch_tokens} tokens"
        )
        if self.world.device.type == "cuda" or self.config.compile == "blocks":
            self.progress.say(f"blocks are {'' if self.compiled else 'not '}compiled: {self.compile_reason}")
            self.progress.say(f"attention: {self.model.attention.name}")
        if self.config.precision == "fp8":
            self.progress.say(str(use_float8(self.whole.blocks)))
        self._report_plan()
        self.checkpoints.require_room(self._tensors())
        every = self.config.collect_garbage_every
        with (
            out_of_memory_explained(lambda: self.config, self.world.device),
            contextlib.closing(self.batches),
            collected_every(every) as collect_garbage,
        ):
            if self.finds_micro_batch:
                self._find_micro_batch()
            outcome = self._train(collect_garbage)
        if outcome == "completed":
            self._validate()
            with self._averaged():
                self._save_model()
        self.costs.finish(self.step)
        self.events.write("end", self.step, status=outcome)
        self.events.close()
        return self._result(outcome, started)

    def _find_micro_batch(self) -> None:
        """Take the largest micro-batch that fits, by trial; nothing that decides the result changes."""
        sizes = micro_batch_sizes(self.config)
        size, trials = find_largest(sizes, Trials(self.world, self._held, self._try_micro_batch))
        self._use_micro_batch(size)
        self.optimizers.zero_grad(keep=self.model.keeps_gradients)
        self.model.forget_counts()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of sizes that are needed no more
            torch.cuda.reset_peak_memory_stats(self.world.device)
        shares = {
            str(tried): trial.peak if math.isfinite(trial.peak) else None for tried, trial in trials.items()
        }
        steps = self.config.grad_accum_steps
        self.events.write("micro_batch", self.step, size=size, grad_accum_steps=steps, memory_shares=shares)
        self.progress.say(
            f"micro-batches of {size} sequences, {steps} a step, take {trials[size].peak:.0%} of the memory"
        )

    def _held(self) -> Iterator[Tensor]:
        yield from self._tensors().values()
        yield from (p.grad for _, p in self.model.named_parameters() if p.grad is not None)

    def _try_micro_batch(self, size: int) -> None:
        self._use_micro_batch(size)
        self.optimizers.zero_grad(keep=self.model.keeps_gradients)
        # Two are as many as any: the second is added to the gradient of the first. A pipeline goes by steps.
        wanted = None if self.config.parallel.pp > 1 else 2
        batches = list(itertools.islice(self.inputs.loader.micro_batches(self.step), wanted))
        num_targets = self.inputs.loader.num_targets(self.step)
        # They need the most memory; compiled, each size would take its time and leave its graphs behind.
        with self.model.uncompiled() if self.compiled else contextlib.nullcontext():
            self.steps.forward_backward(StepData(self.step, num_targets, batches))

    def _use_micro_batch(self, size: int) -> None:
        self.config = self.config.model_copy(update={"micro_batch_size": size})
        self.inputs.loader.micro_batch_size = size
        self.costs.keep_up()
        self.model.use_micro_batches(size, self.config.grad_accum_steps)

    def _train(self, collect_garbage: Callable[[int], None]) -> Outcome:
        while self.step < self.config.steps:
            with self.costs.step(self.step + 1):
                stop = self._train_step()
            collect_garbage(self.step)
            last = self.step == self.config.steps
            validating = not last and _is_due(self.step, self.config.validate_every)
            saving = last or _is_due(self.step, self.config.checkpoint_every)
            if stop or validating or saving:
                # All steps so far: weights that diverged are neither measured nor saved.
                stop = self._report_steps() or stop
            if saving or stop or _is_due(self.step, self.config.check_replicas_every):
                self._check_replicas(everything=saving or stop)
            # Validated before it is saved: a run that is killed between the two does both again.
            if validating and not stop:
                self._validate()
            if saving or stop:
                self._save_checkpoint()
            if stop and not last:
                return "preempted"
        return "completed"

    def _train_step(self) -> bool:
        """Do one optimizer step, or have the device do it; return whether a process was asked to stop.

        What was found out so far is reported, but for the last step on a device that is still at it.
        """
        self.readings.append(self.steps.launch(self.step))
        self.step += 1
        return self._report_steps(behind=self.behind)

    def _report_steps(self, behind: int = 0) -> bool:
        """Report the steps that were done but for the last ``behind``; return whether one is to be the last.

        Raises:
            TrainingDiverged: the loss or the gradient of one of them is not finite.
        """
        stop = False
        while len(self.readings) > behind:
            reading = self.readings.popleft()
            values = reading.values()
            self._check_finite(reading.facts.step, values["loss"], values["grad_norm"])
            self._report(reading.facts, values, reading.seconds)
            stop = stop or values["stops"] > 0
        return stop

    def _check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        if self.loss_scale.dynamic or (math.isfinite(loss) and math.isfinite(grad_norm)):
            return
        raise TrainingDiverged(
            f"training diverged at step {step}",
            expected="a finite loss and gradient",
            found=f"loss {loss}, gradient norm {grad_norm}, from {name_samples(self.inputs.loader, step)}",
            remedy="Lower the learning rate or lengthen the warmup; the last checkpoint is kept.",
        )

    def _check_replicas(self, *, everything: bool) -> None:
        """Compare the weights of the replicas; or all that a checkpoint holds, which is of one of them.

        Raises:
            ReplicasDiffer: they are not the same bits.
        """
        with self.model.clock.part("checkpoint"):
            tensors = self._tensors() if everything else self._weights()
            self.replicas.check(tensors, self.step, self.checkpoints.newest())

    def _report_plan(self) -> None:
        plan = self.inputs.plan
        self.events.write("plan", 0, tokens=0, values=plan.values)
        for text in (*self.notes, *map(str, plan.sources)):
            self.progress.say(text)
        if self.inputs.weights and not self.inputs.weights.verified:
            self.progress.say(f"note: {unverified(self.inputs.weights.directory)}")
        if plan.warning:
            self.progress.say(f"warning: {plan.warning}")

    def _report(self, facts: Facts, found: dict[str, float], seconds: float) -> None:
        tokens = facts.step * self.config.global_batch_tokens
        values = {
            "train/loss": found["loss"],
            "train/grad_norm": found["grad_norm"],
            **facts.learning_rates,
            "train/tokens": tokens,
            **self.speed.values(seconds),
        }
        if self.config.z_loss:
            values["train/z_loss"] = found["z_loss"]
        if facts.has_experts:
            values["train/expert_imbalance"] = found["imbalance"]
        if self.loss_scale.dynamic:
            values["train/loss_scale"] = facts.loss_scale
            values["train/skipped_steps"] = facts.skipped_steps
            # JSON has no infinity; a skipped step says so by its count.
            values = {name: value for name, value in values.items() if math.isfinite(value)}
        self.last_values = values
        self.events.write("step", facts.step, tokens=tokens, values=values)
        self.progress.show(facts.step, values)
        # One process tells of it.
        if self.world.is_main and (spike := self.spikes.look(facts.step, found["loss"])):
            self.events.write(LOSS_SPIKE, facts.step, tokens=tokens, **spike)
            self.progress.say(self.spikes.explain(facts.step, spike))

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Compute with the averaged weights inside, if they are averaged."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def _validate(self) -> None:
        with self.model.clock.part("validation"), self._averaged():
            self.validation = validate(self.model, self.inputs.held_out, self.config)
            self.model.release_weights()
        tokens = self.step * self.config.global_batch_tokens
        self.events.write("validation", self.step, tokens=tokens, values=self.validation)
        self.progress.say(f"validation at step {self.step}: " + _listed(self.validation))

    # --- saving ---

    def _weights(self) -> dict[str, Tensor]:
        weights = {f"model.{name}": parameter.data for name, parameter in self.model.named_parameters()}
        return weights | {f"model.{name}": buffer for name, buffer in self.model.named_buffers()}

    def _tensors(self) -> dict[str, Tensor]:
        weights = self._weights()
        average = self.average.state() if self.average else {}
        weights |= {f"average.{name}": tensor for name, tensor in average.items()}
        return weights | {f"optimizer.{name}": value for name, value in self.optimizers.state().items()}

    @property
    def _settings(self) -> Identity:
        return identify(model=self.job.model, train=self.config)

    def _belongs_to(self) -> dict[str, Any]:
        settings = dict(self._settings.values)
        del settings["train.steps"]  # a run may be made longer
        tokens = self.job.tokens_digest or self.inputs.tokens_digest
        about = {"vocab_size": self.inputs.vocab_size, "weights_format": FORMAT, "tokens": tokens}
        began_with = self.config.initial_weights
        about["initial_weights"] = (
            (self.job.weights_digest or weights_digest(began_with)) if began_with else "none"
        )
        return {**settings, **about}

    def _save_checkpoint(self) -> None:
        state = TrainingState(
            step=self.step,
            loss_scale=asdict(self.loss_scale),
            belongs_to=self._belongs_to(),
        )
        with self.model.clock.part("checkpoint"):
            path = self.checkpoints.save(self._tensors(), state)
        self.events.write("checkpoint", self.step, path=path.name)

    def _resume(self) -> None:
        damaged: list[str] = []
        settings = self._settings
        drawn = set() if self.config.initial_weights else {"initial_weights"}
        state = self.checkpoints.load_newest(
            self._tensors,
            self._belongs_to(),
            lambda name, what: damaged.append(f"{name}: {what}"),
            defaults=settings.values.keys() - settings.chosen.keys() | drawn,
        )
        for text in damaged:
            self.progress.say(f"warning: passed over a damaged checkpoint, {text}")
        if state is None:
            self.events.write("start", 0, passed_over=damaged)
            return
        self.costs.keep_up()
        self.model.weights_changed()
        self.step = state.step
        self.steps.loss_scale = LossScale(**state.loss_scale)
        if self.world.is_main:
            self.spikes.recall(read_rows(self.run_dir), self.step)
        self.events.write("resume", self.step, passed_over=damaged)
        self.progress.say(f"going on from step {self.step}")
        if state.run not in ("", self.checkpoints.run_id()):
            other = f"was written by another run ({state.run}) of the same settings and data"
            self.progress.say(f"warning: the checkpoint of step {self.step} {other}")

    def _save_model(self) -> None:
        entries = self.inputs.vocab_size
        state = {
            name: without_added(name, tensor, entries)
            for name, tensor in self.model.whole_tensors()
            if tensor is not None
        }
        if self.world.is_main:
            write_model(self.run_dir, state, self.job, entries)
        self.world.wait_for_main()

    @property
    def model_size(self) -> int:
        """Parameters of the whole model."""
        return self.whole.num_parameters

    def _result(self, outcome: Outcome, started: float) -> dict[str, Any]:
        # The main process's alone is written; the others need not read the events.
        rows = list(read_rows(self.run_dir)) if self.world.is_main else []
        return {
            "status": outcome,
            "step": self.step,
            "steps": self.config.steps,
            "train_tokens": self.step * self.config.global_batch_tokens,
            "num_parameters": self.model_size,
            "train_loss": self.last_values.get("train/loss"),
            "validation_loss": self.validation.get("train/validation_loss"),
            "validation_bits_per_byte": self.validation.get("train/validation_bits_per_byte"),
            **self.speed.of_run(rows),
            "skipped_steps": self.loss_scale.skipped_steps,
            "loss_spikes": count_spikes(rows),
            "micro_batch_size": self.config.micro_batch_size,
            "world_size": self.world.size,
            "device": self.world.device.type,
            "seconds": time.time() - started,
            "peak_tflops": self.peak.flops / 1e12 if self.peak else None,
            "peak_source": self.peak.source if self.peak else None,
            "costs": self.costs.result(),
        }


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _listed(values: dict[str, float]) -> str:
    return ", ".join(
        f"{name.removeprefix('train/validation_').replace('_', ' ')} {value:.4f}"
        for name, value in values.items()
    )
