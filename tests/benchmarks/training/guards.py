"""Target 8: what the guards of a training cost, as a share of a step of the quickstart on two processes.

The comparison of replicas every 100 steps, the look at each loss for a spike, and the thread that says once
a second that a rank lives; beside them, not a share of steps, the comparison before a checkpoint and the
hashing of inputs at the start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lmcore.config import LaunchConfig, Recipe
from lmcore.heartbeat import BEAT_SECONDS, heartbeat
from lmcore.parallel.mesh import World, join_world
from lmcore.train.spikes import Spikes
from lmcore.train.trainer import Trainer
from lmcore.verify import STAMPS, verify_inputs
from training.measuring import Times, say, verdict
from training.trainers import make_trainer, write_noise

TARGET = "seconds of the guards over those of the steps that they guard"
LIMIT = 0.01
_ROOT = Path(__file__).parents[3]


def measure(*, rounds: int) -> None:
    """Start two processes of one thread each, which measure in turns; the first one prints."""
    paths = os.pathsep.join([str(_ROOT), str(Path(__file__).parents[1])])
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder), 2_048)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", __spec__.name]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        subprocess.run([sys.executable, *launcher, folder, str(rounds)], env=environment, check=True)


def _measure_here(folder: Path, rounds: int, world: World) -> None:
    recipe = Recipe()
    settings = recipe.train.model_dump() | {"parallel": {"dp_replicate": 2}, "micro_batch_size": 16}
    trainer = make_trainer(folder, recipe.model, type(recipe.train).model_validate(settings), world)
    steps, comparing, everything, looking = Times(), Times(), Times(), Times()
    spikes = Spikes(recipe.train.spike_z_score, trainer.inputs.loader)
    for number in range(5):  # warm up
        trainer._train_step()
        spikes.look(number, 5.0)
    for round_ in range(rounds):
        for _ in range(4):
            steps.add(trainer._train_step)
        comparing.add(lambda: trainer._check_replicas(everything=False))
        everything.add(lambda: trainer._check_replicas(everything=True))
        looking.add(lambda at=round_: [spikes.look(at, 5.0 - at % 7 / 100) for _ in range(100)])
    if world.is_main:
        _say(trainer, recipe.train.check_replicas_every, steps, comparing, everything, looking)


def _say(
    trainer: Trainer, every: int, steps: Times, comparing: Times, everything: Times, looking: Times
) -> None:
    step = steps.seconds
    shares = {
        f"replicas compared, each {every} steps": comparing.seconds / every / step,
        "losses looked at for a spike": looking.seconds / 100 / step,
        "heartbeat, its thread": _beat_seconds(trainer.run_dir) / BEAT_SECONDS,
    }
    say(f"  step {step * 1e3:.1f} ms ({trainer.model_size:,} parameters), medians by the clock")
    for name, share in shares.items():
        say(f"  {name}: {share:.4%} of a step")
    say(f"  all that a checkpoint holds compared before it is saved: {everything.seconds * 1e3:.2f} ms")
    verdict(8, TARGET, sum(shares.values()), LIMIT)


def _beat_seconds(run_dir: Path) -> float:
    """Processor seconds of one beat."""
    with heartbeat(run_dir):
        path = next(run_dir.glob(".ranks/*.json"))
        began = time.process_time()
        for _ in range(2_000):
            os.utime(path)
        return (time.process_time() - began) / 2_000


def measure_hashing(folder: Path, num_bytes: int = 200_000_000) -> None:
    """Print how fast inputs are compared at the start, beside reading them alone, and by their stamps."""
    from lmcore.config import Identity
    from lmcore.store import Stage, Store

    def build(out: Path) -> dict[str, int]:
        for number in range(4):
            (out / f"{number}.bin").write_bytes(os.urandom(num_bytes // 4))
        return {}

    artifact = Store(folder).ensure(Stage("tokens", 1, Identity({}, {}), {}, deciding=()), build)
    used, reading, hashing, stamped = [(artifact.path, ())], Times(), Times(), Times()
    for _ in range(3):
        reading.add(lambda: [path.read_bytes() for path in artifact.path.glob("*.bin")])
        (folder / STAMPS).unlink(missing_ok=True)
        hashing.add(lambda: verify_inputs(used, folder, 60.0))
        stamped.add(lambda: verify_inputs(used, folder, 60.0))
    rates = [num_bytes / times.seconds / 1e9 for times in (hashing, reading)]
    say(f"  inputs hashed at the start: {rates[0]:.2f} GB/s, read alone {rates[1]:.2f} GB/s")
    say(f"  inputs known by their stamps: {stamped.seconds * 1e3:.1f} ms")


if __name__ == "__main__":
    with join_world(LaunchConfig(device="cpu", threads_per_process=1)) as world:
        _measure_here(Path(sys.argv[1]), int(sys.argv[2]), world)
        if world.is_main:
            measure_hashing(Path(sys.argv[1]) / "store")
