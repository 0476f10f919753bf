"""What is to be started: the same spec for every launcher."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from lmcore.config import LaunchConfig
from lmcore.errors import LaunchError
from lmcore.launch.attempts import mark

PROCESSES_PER_CORE = 4


def require_cores(num_processes: int) -> None:
    """Check that this machine can run so many processes; one with GPUs has more cores than those.

    Raises:
        LaunchError: it would only be busy with starting them.
    """
    cores = len(os.sched_getaffinity(0))
    if num_processes > PROCESSES_PER_CORE * cores:
        raise LaunchError(
            "train.parallel asks for more processes than this machine can run",
            expected=f"at most {PROCESSES_PER_CORE} for each of its {cores} cores",
            found=f"{num_processes}",
            remedy="Lower the sizes in train.parallel.",
        )


@dataclass(frozen=True)
class Job:
    """Processes that run ``python -m module run_dir``.

    Attributes:
        module: Its ``__main__`` reads the run directory and writes ``result.json`` there.
        run_dir: The run directory.
        num_processes: Processes on each machine.
        grace_seconds: Time to save after a request to stop.
        environment: Variables on top of the launcher's own.
        stall_seconds: What collectives may take.
    """

    module: str
    run_dir: Path
    num_processes: int
    grace_seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    stall_seconds: float = math.inf

    @classmethod
    def local(cls, module: str, run_dir: Path, num_processes: int, launch: LaunchConfig) -> Job:
        """The job on this machine alone: threads shared out, processes joined over loopback.

        Raises:
            LaunchError: there are far more processes than cores.
        """
        require_cores(num_processes)
        threads = launch.threads_per_process or max(1, len(os.sched_getaffinity(0)) // num_processes)
        return cls(
            module,
            run_dir,
            num_processes,
            launch.grace_seconds,
            {
                "OMP_NUM_THREADS": str(threads),
                "GLOO_SOCKET_IFNAME": "lo",
                "PYTHONUNBUFFERED": "1",
                "TORCHELASTIC_ERROR_FILE": str(run_dir / "error.json"),
                **mark(run_dir),
            },
            launch.stall_seconds,
        )

    def command(self) -> list[str]:
        """The torchrun command; ``--standalone`` lets it pick a free port on loopback.

        One process has nobody to meet: it starts without torchrun, which imports torch first.
        """
        if self.num_processes == 1:
            return [sys.executable, "-m", self.module, str(self.run_dir)]
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(self.num_processes)),
            *("--max-restarts", "0"),  # it would also try again what no other try mends
            *("--shutdown-timeout", str(max(1, round(self.grace_seconds)))),
            *("--module", self.module, str(self.run_dir)),
        ]
