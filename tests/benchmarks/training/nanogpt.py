"""nanoGPT beside us: its own script on its own data, in a process that stands still while we work."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

# What its README publishes for a CPU; it ends there at a validation loss of 1.886 or so.
CPU_SETTING = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
PUBLISHED_LOSS = 1.886
_SOURCES = ("train.py", "model.py", "configurator.py", "config")
_ITERATION = re.compile(r"^iter (\d+): loss ([\d.naif]+), time ([\d.]+)ms", re.M)
_VALIDATION = re.compile(r"^step (\d+): train loss [\d.naif]+, val loss ([\d.naif]+)", re.M)


def read_characters(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the sorted characters of a text, and its first nine tenths and its last as their numbers."""
    text = path.read_text(encoding="utf-8")
    characters = sorted(set(text))
    number = {character: index for index, character in enumerate(characters)}
    ids = np.array([number[character] for character in text], np.int64)
    cut = int(len(ids) * 0.9)
    return characters, ids[:cut], ids[cut:]


class NanoGPT:
    """nanoGPT's ``train.py`` in a process of its own; it starts at once and stands still until ``go``.

    Args:
        sources: A checkout of it.
        folder: To work in.
        threads: Of its process.
        train, validation: Ids to learn from and to estimate its loss on.
        vocab_size: They are below it.
        settings: Its command line.
    """

    def __init__(
        self,
        sources: Path,
        folder: Path,
        threads: int,
        train: np.ndarray,
        validation: np.ndarray,
        vocab_size: int,
        settings: str = CPU_SETTING,
    ) -> None:
        self.folder = folder
        self._looks: list[tuple[int, float]] = []  # iterations, and seconds of its threads
        folder.mkdir(parents=True)
        for name in _SOURCES:
            (folder / name).symlink_to((sources / name).resolve())
        data = folder / "data" / "tokens"
        data.mkdir(parents=True)
        train.astype(np.uint16).tofile(data / "train.bin")
        validation.astype(np.uint16).tofile(data / "val.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "train.py", *settings.split(), "--dataset=tokens"],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
        self._signal(signal.SIGSTOP)

    def go(self, seconds: float) -> None:
        """Let it work for ``seconds``, or to its end."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self._signal(signal.SIGSTOP)
        self._look()

    def reach(self, iteration: int) -> None:
        """Let it work until it has done ``iteration`` iterations."""
        self._signal(signal.SIGCONT)
        while self.running and self.num_iterations <= iteration:
            time.sleep(0.05)  # it says what it did in a file
        self._signal(signal.SIGSTOP)
        self._look()
        self._check()

    def finish(self) -> None:
        """Let it work to its end."""
        while self.running:
            self.go(5.0)
        self._check()

    def stop(self) -> None:
        """End it."""
        if self.running:
            self.process.kill()
            self.process.wait()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def num_iterations(self) -> int:
        """Iterations that it has printed."""
        return len(_ITERATION.findall(self._read()))

    def iteration_seconds(self, first: int = 5) -> float:
        """Median of what it prints from iteration ``first`` on: those during which it stood still are few."""
        return statistics.median(float(ms) for _, _, ms in _ITERATION.findall(self._read())[first:]) / 1e3

    def validations(self) -> list[tuple[int, float]]:
        """Iterations and losses of its own estimates: some windows drawn by lot."""
        return [(int(step), float(loss)) for step, loss in _VALIDATION.findall(self._read())]

    def cpu_seconds_per_iteration(self) -> float:
        """Median, over its turns, of its threads' time for an iteration: few turns hold an estimate."""
        pairs = itertools.pairwise(self._looks)
        return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if b[0] > a[0])

    def _look(self) -> None:
        """Take note of its iterations and of the seconds of its threads so far, where ``/proc`` tells."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        self._looks.append((self.num_iterations, seconds))

    def _read(self) -> str:
        return self._log.read_text(errors="replace")

    def _signal(self, number: int) -> None:
        if self.running:
            self.process.send_signal(number)

    def _check(self) -> None:
        if self.process.poll():
            raise RuntimeError(f"nanoGPT failed:\n{self._read()[-2000:]}")


def whole_loss(folder: Path, validation: np.ndarray, block: int, threads: int) -> float:
    """Loss of its checkpoint over all of ``validation``, windows of ``block`` that do not overlap.

    In a process of its own, because its module is called ``model``.
    """
    np.save(folder / "validation.npy", validation)
    found = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(block)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(found.stdout.split()[-1])


_MEASURE = """
import sys, numpy, torch
from model import GPT, GPTConfig
saved = torch.load("out-shakespeare-char/ckpt.pt", map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])).eval()
model.load_state_dict(saved["model"])
ids, block, total = torch.from_numpy(numpy.load("validation.npy")), int(sys.argv[1]), 0.0
with torch.no_grad():
    for start in range(0, len(ids) - 1, block):
        stop = min(start + block, len(ids) - 1)
        x, y = ids[None, start:stop], ids[None, start + 1 : stop + 1]
        total += model(x, y)[1].item() * (stop - start)
print(total / (len(ids) - 1))
"""


def is_there(sources: Path | None) -> bool:
    """Whether ``sources`` holds nanoGPT."""
    return sources is not None and all((sources / name).exists() for name in _SOURCES)


def remove(folder: Path) -> None:
    """Take away what it left."""
    shutil.rmtree(folder, ignore_errors=True)
