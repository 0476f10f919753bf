"""Target 1: characters of Shakespeare, our recipe beside nanoGPT's published setting for a CPU.

Both see the first nine tenths of the text, as many tokens of it (2,000 x 768) and as many parameters. Both
losses are means over all characters of the last tenth but its first, in windows that do not overlap, of the
length that was trained with. Ours is that of the averaged weights, which are what a run validates and keeps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lmcore.config import Recipe, load_recipe
from lmcore.data.loader import Batch
from lmcore.parallel.mesh import keep_freed_memory
from lmcore.train.trainer import Trainer
from training.measuring import Times, not_measured, say, verdict
from training.nanogpt import PUBLISHED_LOSS, NanoGPT, is_there, read_characters, whole_loss
from training.trainers import make_trainer, write_tokens

LOSS = "validation loss of our recipe on characters of Shakespeare, nats a character"
TIME = f"our time to a validation loss of {PUBLISHED_LOSS} over nanoGPT's for its 2,000 iterations"
TOKENS = 2_000 * 768
RECIPE = Path(__file__).parents[3] / "flows" / "recipes" / "shakespeare-char.yaml"
_TURN_STEPS = 10
_BLOCK = 64  # of nanoGPT's setting


@dataclass
class Passing:
    """Where our run passed the published loss: its step, or 0 for not yet."""

    step: int = 0
    loss: float = float("nan")


def measure(nanogpt: Path | None, text: Path, *, threads: int, seeds: int, quick: bool) -> None:
    """Train ours and nanoGPT's in turn; with ``quick`` only until ours has passed the published loss."""
    if not text.is_file():
        not_measured(1, LOSS, "its text is not there: --shakespeare")
        return
    torch.set_num_threads(threads)
    keep_freed_memory()
    recipe = load_recipe(RECIPE, [f"data.sources.0.path={text}"])
    assert recipe.train.steps * recipe.train.global_batch_tokens == TOKENS, "the recipe sees other tokens"
    with tempfile.TemporaryDirectory() as folder:
        characters, train, validation = read_characters(text)
        write_tokens(
            Path(folder), {"train": train + 1, "validation": validation + 1}, vocab_size=len(characters) + 1
        )
        held_out = torch.from_numpy(validation + 1)
        trainer = _trainer(Path(folder), recipe, recipe.train.seed)
        say(f"  ours: {trainer.model_size:,} parameters, {trainer.config.steps} steps of {_shape(trainer)}")
        peer = None
        if is_there(nanogpt):
            peer = NanoGPT(nanogpt, Path(folder) / "nanogpt", threads, train, validation, len(characters))
            peer.reach(10)
        else:
            not_measured(1, TIME, "nanoGPT is not there: --nanogpt")
        try:
            times, passing = _in_turn(trainer, held_out, peer, quick=quick)
            if peer is not None:
                _compare(peer, times, passing, None if quick else validation, threads)
        finally:
            if peer is not None:
                peer.stop()
        if quick:
            not_measured(1, LOSS, "--quick")
            return
        others = range(recipe.train.seed + 1, recipe.train.seed + seeds)
        losses = [mean_loss(trainer, held_out)]
        losses += [_loss_of_seed(Path(folder), recipe, seed, held_out) for seed in others]
    listed = ", ".join(f"{loss:.4f}" for loss in losses)
    say(f"  ours ends at {listed} (by seed) in windows of {trainer.config.seq_len}")
    verdict(1, LOSS, max(losses), 1.62)


def _in_turn(
    trainer: Trainer, held_out: torch.Tensor, peer: NanoGPT | None, *, quick: bool
) -> tuple[Times, Passing]:
    """Train ours, and the peer as long after every few steps; return our steps' times and where it passed."""
    times, passing = Times(), Passing()
    for _ in _turns(trainer):
        before = sum(times.wall)
        for _ in range(min(_TURN_STEPS, trainer.config.steps - trainer.step)):
            times.add(trainer._train_step)
        if peer is not None and peer.running:
            peer.go(sum(times.wall) - before)
        if not passing.step and trainer.step >= 0.08 * trainer.config.steps:
            loss = mean_loss(trainer, held_out)
            if loss <= PUBLISHED_LOSS:
                passing = Passing(trainer.step, loss)
                if quick:
                    break
    return times, passing


def _turns(trainer: Trainer) -> Iterator[None]:
    while trainer.step < trainer.config.steps:
        yield


def _compare(
    peer: NanoGPT, times: Times, passing: Passing, validation: np.ndarray | None, threads: int
) -> None:
    if validation is not None:
        peer.finish()
        theirs = whole_loss(peer.folder, validation, _BLOCK, threads)
        say(f"  nanoGPT ends at {theirs:.4f} in windows of {_BLOCK}; its own estimates: {peer.validations()}")
    whole = 2_000 * peer.iteration_seconds()
    cpu = 2_000 * peer.cpu_seconds_per_iteration()
    mine, my_cpu = passing.step * times.seconds, passing.step * times.cpu_seconds
    say(
        f"  ours passes at step {passing.step} ({passing.loss:.4f}) after {mine:.1f} s, nanoGPT takes "
        f"{whole:.1f} s; processor time {my_cpu:.1f} and {cpu:.1f} s, {my_cpu / cpu:.3f}; medians of a step "
        f"{times.seconds * 1e3:.1f} and {whole / 2:.1f} ms"
    )
    verdict(1, TIME, mine / whole if passing.step else float("inf"), 0.25)


def _trainer(folder: Path, recipe: Recipe, seed: int) -> Trainer:
    train = recipe.train.model_copy(update={"seed": seed})
    return make_trainer(folder, recipe.model, train)


def _loss_of_seed(folder: Path, recipe: Recipe, seed: int, held_out: torch.Tensor) -> float:
    trainer = _trainer(folder, recipe, seed)
    while trainer.step < trainer.config.steps:
        trainer._train_step()
    return mean_loss(trainer, held_out)


def _shape(trainer: Trainer) -> str:
    return f"{trainer.config.global_batch_size} x {trainer.config.seq_len} characters"


def mean_loss(trainer: Trainer, ids: torch.Tensor, rows: int = 32) -> float:
    """Loss in nats of all ``ids`` but the first, in windows of the training's length that do not overlap."""
    length, last = trainer.config.seq_len, len(ids) - 1
    whole = last // length * length
    inputs, targets = (ids[start : start + whole].view(-1, length).split(rows) for start in (0, 1))
    pairs = list(zip(inputs, targets, strict=True))
    if whole < last:
        pairs.append((ids[None, whole:last], ids[None, whole + 1 :]))
    trainer.model.train(False)
    with trainer._averaged():
        total = sum(trainer.model.token_losses(Batch(x, y)).double().sum().item() for x, y in pairs)
        trainer.model.release_weights()
    trainer.model.train()
    return total / last
