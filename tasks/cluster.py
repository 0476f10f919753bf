"""Pieces of work on a Ray cluster, each as a Prefect task run of its own (prefect-ray)."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from lmcore.errors import ConfigError, ServiceError

R = TypeVar("R")

_AHEAD = 2


@dataclass(frozen=True)
class RayWorkers:
    """Workers of a Ray cluster that see the same files as we do.

    Attributes:
        address: Of the cluster, ``host:port`` or ``ray://host:port``; empty: one on this machine for as long
            as it is needed.
        count: Pieces at a time, at least; more where the cluster has more processors.
    """

    address: str
    count: int

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """See ``lmcore.data.pool.Workers``.

        Raises:
            ConfigError: Ray is not installed.
            ServiceError: the cluster cannot be reached.
        """
        ray, runner_class = _libraries()
        runner = runner_class(address=self.address or None, init_kwargs={"log_to_driver": False})
        try:
            runner.__enter__()
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ServiceError(
                f"the Ray cluster at {self.address or 'this machine'} cannot be reached",
                found=str(error).splitlines()[0][:200],
                remedy="Start it (`ray start --head`), or correct data.ray_address.",
            ) from error
        try:
            count = max(self.count, int(ray.cluster_resources().get("CPU", 1)))
            waiting: collections.deque[Any] = collections.deque()
            for arguments in calls:
                waiting.append(runner.submit(_piece, {"function": function, "arguments": arguments}))
                if len(waiting) > count * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            runner.__exit__(None, None, None)


@task(name="piece", cache_policy=NO_CACHE, persist_result=False, log_prints=False)
def _piece(function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    return function(*arguments)


def _libraries() -> tuple[Any, Any]:
    try:
        import ray
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ConfigError(
            "data.executor is ray, which is not installed",
            found=str(error),
            remedy="pip install 'gristmill[ray]' under infra/constraints.txt, or choose another executor.",
        ) from error
    return ray, RayTaskRunner
