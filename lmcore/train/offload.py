"""Optimizer state in the host's memory: it visits the device a run of parameters at a time.

The update is computed where the weights are, by the same kernels as without, so its numbers are the same
bits; a host that computed it would be slow at Muon's products. While one run is updated, the next one's state
may be on its way, and the last one's on its way back (Rajbhandari et al. 2021 stream in the same manner). No
more than these three are on the device: the host waits before it sends for another.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lmcore.parallel.parts import local

RUN_ELEMENTS = 1 << 26  # parameters whose state is on the device at a time, at most three times
Slots = dict[str, Tensor]


class HostState:
    """Steps optimizers whose state is on the host.

    Args:
        device: Where the weights are.
        empty: Makes the state of a parameter before its first step.
    """

    def __init__(self, device: torch.device, empty: Callable[[torch.optim.Optimizer, Tensor], Slots]) -> None:
        self.device, self._empty = device, empty
        cuda = device.type == "cuda"
        self._inbound = torch.cuda.Stream(device) if cuda else None
        self._outbound = torch.cuda.Stream(device) if cuda else None
        self._leaving: deque[torch.cuda.Event] = deque()  # of runs that were given back, in order
        self._returned: dict[torch.optim.Optimizer, torch.cuda.Event] = {}  # the last of them of each

    def create(self, optimizer: torch.optim.Optimizer, parameter: Tensor) -> Slots:
        """The state of ``parameter`` before its first step, on the host; scalars stay where they are."""
        slots = self._empty(optimizer, parameter)
        return {name: self._copy(slot, torch.device("cpu")) for name, slot in slots.items()}

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do what ``optimizer.step`` does, run by run."""
        groups, runs = optimizer.param_groups, list(_runs(optimizer))
        if self._inbound is not None and optimizer in self._returned:
            self._inbound.wait_event(self._returned[optimizer])  # what its last step gave back
        try:
            ahead = self._bring(optimizer, runs[0][1]) if runs else {}
            for place, (group, parameters) in enumerate(runs):
                here, ahead = ahead, {}
                if self._inbound is not None:
                    torch.cuda.current_stream(self.device).wait_stream(self._inbound)
                if place + 1 < len(runs):
                    ahead = self._bring(optimizer, runs[place + 1][1])
                hosts = {parameter: optimizer.state[parameter] for parameter in parameters}
                for parameter in parameters:
                    optimizer.state[parameter] = here[parameter]
                optimizer.param_groups = [{**group, "params": parameters}]
                optimizer.step()
                for parameter, host in hosts.items():
                    self._give_back(host, optimizer.state[parameter])
                    optimizer.state[parameter] = host
                if self._outbound is not None:
                    left = torch.cuda.Event()
                    left.record(self._outbound)
                    self._leaving.append(left)
            if self._leaving:
                self._returned[optimizer] = self._leaving[-1]
        finally:
            optimizer.param_groups = groups

    def settle(self) -> None:
        """Wait until the host has all: before it reads or writes the state."""
        if self._outbound is not None:
            self._outbound.synchronize()

    def _bring(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> dict[Tensor, Slots]:
        """Start the copies of the state of ``parameters`` to the device, once there is room.

        The host could send for all runs at once, and torch would keep the memory of each until it has left.
        """
        while len(self._leaving) > 1:
            self._leaving.popleft().synchronize()
        for parameter in parameters:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = self.create(optimizer, parameter)
        with _on(self._inbound):
            found = {
                parameter: {
                    name: self._copy(slot, self.device) for name, slot in optimizer.state[parameter].items()
                }
                for parameter in parameters
            }
        if self._inbound is not None:
            for slots in found.values():
                for slot in slots.values():
                    local(slot).record_stream(torch.cuda.current_stream(self.device))
        return found

    def _give_back(self, host: Slots, slots: Slots) -> None:
        if self._outbound is not None:
            self._outbound.wait_stream(torch.cuda.current_stream(self.device))
        with _on(self._outbound):
            for name, slot in slots.items():
                if host[name] is not slot:
                    local(host[name]).copy_(local(slot), non_blocking=True)
                if self._outbound is not None:
                    local(slot).record_stream(self._outbound)

    def _copy(self, slot: Tensor, device: torch.device) -> Tensor:
        if slot.ndim == 0:  # torch's fused kernels count steps where the weights are
            return slot
        mine = local(slot)
        pinned = device.type == "cpu" and self.device.type == "cuda"
        copy = torch.empty_like(mine, device=device, pin_memory=pinned)
        copy.copy_(mine, non_blocking=device.type == "cuda")
        if not isinstance(slot, DTensor):
            return copy
        # ``from_local`` would move it to where the mesh is.
        return DTensor(copy, slot._spec, requires_grad=False)


@contextlib.contextmanager
def _on(stream: Any) -> Iterator[None]:
    with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
        yield


def _runs(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """Cut the parameters of each group into runs of bounded size, the same on all who share a parameter."""
    for group in optimizer.param_groups:
        run, size = [], 0
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            part = parameter.numel()
            if isinstance(parameter, DTensor):
                part = -(-part // parameter.device_mesh.size())
            if run and size + part > RUN_ELEMENTS:
                yield group, run
                run, size = [], 0
            run.append(parameter)
            size += part
        if run:
            yield group, run
