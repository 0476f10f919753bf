"""How fast training is on this machine, each of eight speeds beside a limit or a peer in the same run.

python tests/benchmarks/train.py [--only shakespeare,step,matmul,loader,processes,gpu,startup,guards]
                                 [--quick] [--nanogpt DIR] [--shakespeare FILE] [--layers 3 ...]

1 shakespeare   characters of a text beside nanoGPT's published setting for a CPU   --nanogpt, --shakespeare
2 step          a step of nanoGPT's architecture and shapes beside its own          --nanogpt, --shakespeare
3 matmul        a model's rate beside that of a matrix product                      --layers, --hidden, ...
4 loader        batches from Parquet, beside 100 M tokens/s a core and a step
5 processes     two processes of one thread beside one of two threads
6 gpu           MFU in bf16 and fp8, nanoGPT with compile beside it (gpu.py says more)
7 startup       from the start of a run to its first step (tests/benchmarks/startup.py)
8 guards        replicas compared, losses looked at, heartbeats, beside the steps of two processes

Peers and limits take turns with ours, and medians are compared. The targets are about the time by the clock,
which other work on the machine spoils; processor time stands beside it. Run it from the root of a checkout.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from training import guards, loader, matmul, processes, shakespeare, step
from training.gpu import measure as measure_gpu
from training.measuring import machine, not_measured, say

PARTS = ("shakespeare", "step", "matmul", "loader", "processes", "gpu", "startup", "guards")
# ``gristmill size --parameters 6M`` takes the first number of tokens a step; the second is one for a
# laptop. Muon's work is the same for any: a larger part of a step with few (decision 0018).
STEP_TOKENS = (32_768, 4_096)
SHAPE = {"layers": 3, "hidden": 384, "heads": 3, "vocab": 2_048, "seq-len": 256, "batch": 16}


def main() -> None:
    options = read_options()
    quick = options.quick
    text, nanogpt = options.shakespeare, options.nanogpt
    rounds = options.rounds or (3 if quick else 10)
    parts: dict[str, Callable[[], object]] = {
        "shakespeare": lambda: shakespeare.measure(
            nanogpt, text, threads=options.threads, seeds=options.seeds, quick=quick
        ),
        "step": lambda: step.measure(nanogpt, text, threads=options.threads, rounds=rounds),
        "matmul": lambda: [
            matmul.measure(options, tokens, threads=options.threads, rounds=rounds)
            for tokens in options.step_tokens
        ],
        "loader": lambda: loader.measure(num_tokens=20_000_000 if quick else 100_000_000, rounds=20 * rounds),
        "processes": lambda: processes.measure(rounds=max(1, rounds // 3), steps=10 if quick else 30),
        "gpu": lambda: measure_gpu(nanogpt, small=options.small, quick=quick),
        "startup": lambda: measure_startup(quick=quick),
        "guards": lambda: guards.measure(rounds=10 if quick else 50),
    }
    say(f"torch {torch.__version__}, {options.threads} threads, {machine()}")
    for name in options.only:
        say(f"--- {name}")
        parts[name]()


def measure_startup(*, quick: bool) -> None:
    """Hand over to the script that knows the pipeline, which is no part of lmcore."""
    script = Path(__file__).parent / "startup.py"
    if not script.is_file():
        not_measured(7, "seconds to the first step", f"{script.name} is not there")
        return
    subprocess.run([sys.executable, str(script), *(["--quick"] if quick else [])], check=False)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, default=PARTS, help="parts, separated by commas")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, which is not ours to copy")
    parser.add_argument("--shakespeare", type=Path, default=Path("tinyshakespeare.txt"), help="its text")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; of 1 only the time, no loss")
    parser.add_argument("--small", action="store_true", help="of 6 a tiny model, on the CPU where need be")
    parser.add_argument("--seeds", type=int, default=1, help="of 1: how many runs of ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=0, help="turns, in 2 four times as many; 0: 10, --quick: 3"
    )
    parser.add_argument("--step-tokens", type=int, nargs="+", default=STEP_TOKENS, help="of 3")
    for name, default in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="of 3")
    parser.add_argument("--optimizer", default="muon", help="of 3")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PARTS)}; found {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    main()
