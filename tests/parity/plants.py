"""The classic mistakes of parallel training, planted one at a time: the matrix is to find them."""

import os
import signal
import time

from lmcore.data.loader import TrainLoader
from lmcore.parallel import divided, gradients
from lmcore.parallel.context import SharedSequence
from lmcore.parallel.mesh import Layout
from lmcore.train.trainer import Trainer


def mean_of_means():
    """Each process divides by its own number of targets, and the results are averaged."""
    whole = TrainLoader.num_targets

    def mine(self, step):
        share = self.global_batch_size // self.world_size
        samples = self.samples_of_step(step)[self.rank * share : (self.rank + 1) * share]
        return (
            self.windows.num_targets(samples) * self.world_size if self.world_size > 1 else whole(self, step)
        )

    TrainLoader.num_targets = mine


def gradients_not_divided():
    """Each process divides by its own number of targets, and the results are summed."""

    def mine(self, step):
        share = self.global_batch_size // self.world_size
        return self.windows.num_targets(
            self.samples_of_step(step)[self.rank * share : (self.rank + 1) * share]
        )

    TrainLoader.num_targets = mine


def norm_over_one_mesh():
    """The gradient's norm adds up what FSDP divides, and takes what tp divides for copies."""
    divided.num_copies = lambda parameter, layout: layout.stage_size // layout.parallel.dp_shard


def tied_copies_apart():
    """The head of a tied model does not tell the embedding its gradient."""
    gradients.TiedHead.give_gradient = lambda self: None


def wrong_positions():
    """Each part of a sequence counts its positions from 0."""
    import torch  # here: only the process that is planted with it needs to

    places = SharedSequence.places
    SharedSequence.places = lambda self, length, device: torch.arange(
        len(places(self, length, device)), device=device
    )


def norms_seen_in_part():
    """Gradients of norms, of which each process of tp saw a part, are not added up."""
    Layout.divides_sequence = property(lambda self: self.parallel.tp > 1 and self.parallel.sequence_parallel)
    divided.add_up = lambda parameters, group: None


def wrong_draws():
    """Dropout draws by the order of its process, not by the place of a sequence in the run."""
    import dataclasses

    import torch

    own_part = divided.DividedModel.own_part
    divided.DividedModel.own_part = lambda self, batch: dataclasses.replace(
        own_part(self, batch), sequences=torch.arange(len(batch.tokens))
    )


def dies():
    """The process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def kills_its_worker():
    """Nobody is left to say what became of the run."""
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()


def stalls():
    """The process stands still."""
    os.kill(os.getpid(), signal.SIGSTOP)


def stands_still_once():
    """One process comes to the last collectives when the others have given up; the next time it does not."""
    save = Trainer._save_model

    def late(self):
        marker = self.run_dir.with_name("has-stood-still")
        if not self.world.is_main and not marker.exists():
            marker.touch()
            time.sleep(2 * self.world.stall_seconds)
        save(self)

    Trainer._save_model = late


def gradients_given_away():
    """No mistake: shards give gradients away after each micro-batch, as on GPUs."""
    divided.DividedModel._saves_memory = True
