"""Train with a process whose memory fails: ``corrupted.py RUN_DIR RANK STEP WHAT``."""

import sys
from pathlib import Path

import torch

from lmcore.config import LaunchConfig
from lmcore.errors import GristmillError
from lmcore.parallel.mesh import join_world
from lmcore.parallel.parts import local
from lmcore.run_process import leave
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer


def spoil(trainer, what):
    tensors = {name: local(tensor) for name, tensor in trainer._tensors().items()}
    if what == "weights":
        tensors["model.blocks.0.attention.qkv.weight"].view(-1)[:32] += 0.5
    elif what == "a bit":
        tensors["model.blocks.1.attention.qkv.weight"].view(torch.int32)[-1, -1] ^= 1
    elif what == "two that change places":
        flat = tensors["model.embedding.weight"].view(-1)
        flat[[0, -1]] = flat[[-1, 0]]
    else:  # a tensor of the optimizer: nothing shows before the next step
        next(t for name, t in tensors.items() if name.startswith("optimizer") and t.numel() > 1).view(-1)[
            0
        ] += 1


def main(run_dir, rank, step, what):
    with join_world(LaunchConfig(device="cpu", threads_per_process=1)) as world:

        def stop():
            # Asked in every step: before the optimizer, which hides nothing of what is spoilt here.
            if world.rank == int(rank) and trainer.step + 1 == int(step):
                with torch.no_grad():
                    spoil(trainer, what)
            return False

        trainer = Trainer(TrainJob.read(Path(run_dir)), Path(run_dir), world, stop)
        try:
            trainer.run()
        except GristmillError as error:
            Path(run_dir, f"error-{world.rank}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
