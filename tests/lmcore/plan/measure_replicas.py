"""Memory of one of two replicas that really add up their gradients (DDP): JSON on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lmcore.config import ModelConfig
from lmcore.parallel.mesh import World

sys.path.insert(0, str(Path(__file__).parent))
from measure import peak_of
from pair import run_pair
from test_memory import REPLICAS, train_config


def _measure(world: World) -> dict[str, int]:
    found = {}
    for name, (model, vocab_size, micro_batch_size, values) in REPLICAS.items():
        train = train_config(micro_batch_size, **values)
        found[name] = peak_of(ModelConfig(**model), vocab_size, train, world)
    return found


if __name__ == "__main__":
    json.dump(run_pair(_measure), sys.stdout)
