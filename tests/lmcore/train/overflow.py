"""Train with gradients that overflow fp16 on the last process alone: ``overflow.py RUN_DIR STEP ...``."""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from lmcore.config import LaunchConfig
from lmcore.parallel.mesh import join_world
from lmcore.run_process import leave
from lmcore.store import sha256_json
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer


def main(run_dir, steps):
    with join_world(LaunchConfig(device="cpu", threads_per_process=1)) as world:
        seen = []  # the weights at the end of each backward pass, when everybody is asked whether to stop

        def look():
            seen.append(digest(trainer.model))
            return False

        trainer = Trainer(TrainJob.read(run_dir), run_dir, world, look)

        def flood(module, inputs, output):
            if world.rank == world.size - 1 and trainer.step in steps and output.requires_grad:
                assert output.dtype == torch.float16
                output.register_hook(lambda gradient: gradient * 2.0**30)  # beyond 65,504: infinite in fp16

        next(trainer.model.stages[0].blocks).mlp.down.register_forward_hook(flood)
        result = trainer.run()
        seen.append(digest(trainer.model))
        about = {"weights": seen, "skipped_steps": result["skipped_steps"], "scale": trainer.loss_scale.scale}
        (run_dir / f"rank-{world.rank}.json").write_text(json.dumps(about))


def digest(model):
    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    whole = {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in weights.items()}
    return sha256_json({name: tensor.flatten().tolist() for name, tensor in whole.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), set(map(int, sys.argv[2:])))
    leave(0)
