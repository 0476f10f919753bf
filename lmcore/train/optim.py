"""Which optimizer moves which parameter, and Muon on any layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from lmcore.config import OptimizerConfig, Role
from lmcore.model.linear import by_onednn, multiply
from lmcore.model.transformer import parameter_role
from lmcore.parallel.parts import local, part_of
from lmcore.train import adafactor
from lmcore.train.adafactor import Adafactor
from lmcore.train.offload import HostState

CHUNK_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike.

    Attributes:
        optimizer: Name of the one that moves them.
        role: What they are in the model.
        learning_rate: Its peak.
        weight_decay: Per step, times the learning rate.
        parameters: By name.
    """

    optimizer: str
    role: Role
    learning_rate: float
    weight_decay: float
    parameters: dict[str, torch.nn.Parameter]


def parameter_groups(named: Iterable[tuple[str, torch.nn.Parameter]], config: OptimizerConfig) -> list[Group]:
    """Put every parameter into exactly one group, by its role; those divided otherwise are apart."""
    by_role: dict[tuple[Role, Any], dict[str, torch.nn.Parameter]] = {}
    for name, parameter in named:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        by_role.setdefault((parameter_role(name), mesh), {})[name] = parameter
    ratios = {"embedding": config.embedding_learning_rate_ratio, "head": config.head_learning_rate_ratio}
    groups = []
    for (role, _), parameters in by_role.items():
        name = config.name if config.name != "muon" or role == "matrix" else "adamw"
        rate = config.muon_learning_rate if name == "muon" else config.learning_rate * ratios.get(role, 1.0)
        decay = config.weight_decay if role in config.decayed_roles else 0.0
        groups.append(Group(name, role, rate, decay, parameters))
    return groups


class Optimizers:
    """All optimizers of a run, as one.

    Args:
        named: The parameters, by their names in the model.
        config: Which, and with what rates.
        matrix_dtype: Type of Muon's products.
        num_copies: How many processes hold the same part of a parameter.
        sharing: Processes with the same matrices, which share Muon's work; None: all.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, torch.nn.Parameter]],
        config: OptimizerConfig,
        matrix_dtype: torch.dtype,
        num_copies: Callable[[Tensor], int] = lambda parameter: 1,
        sharing: dist.ProcessGroup | None = None,
    ) -> None:
        groups = parameter_groups(named, config)
        self._num_copies = num_copies
        self._counted: tuple[list[int], Tensor] = [], torch.empty(0)
        self.names = {p: name for group in groups for name, p in group.parameters.items()}
        settings: dict[str, list[dict[str, Any]]] = {}
        for group in groups:
            settings.setdefault(group.optimizer, []).append(
                {
                    "params": list(group.parameters.values()),
                    "lr": group.learning_rate,
                    "peak": group.learning_rate,
                    "role": group.role,
                    "weight_decay": group.weight_decay,
                }
            )
        device = next((local(p).device for p in self.names), torch.device("cpu"))
        self._host = HostState(device, _empty_state) if config.offload else None
        self._all = [_make(name, settings[name], config, matrix_dtype, sharing) for name in sorted(settings)]

    def step(self, factor: float) -> None:
        """Move all parameters, with ``factor`` times their peak learning rates."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            if self._host is None:
                optimizer.step()
            else:
                self._host.step(optimizer)

    def zero_grad(self, *, keep: bool = False) -> None:
        """Forget the gradients; with ``keep`` they are set to zero where they are."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=not keep)

    def sum_of_squares(self, device: torch.device) -> Tensor:
        """Sum of squares of the gradient, fp64 on ``device``: over all processes each number counts once."""
        if not self.names:
            return torch.zeros((), dtype=torch.float64, device=device)
        norms = torch._foreach_norm(self._gradients())  # pyright: ignore[reportPrivateImportUsage]
        having = [p for p in self.names if p.grad is not None]
        which = [id(p) for p in having]
        if which != self._counted[0]:  # told to the device once: each time it would be waited for
            self._counted = which, torch.tensor([self._num_copies(p) for p in having], device=device)
        return (torch.stack(norms).double().square() / self._counted[1]).sum()

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply the gradient by ``factor``, a scalar on its device."""
        gradients = self._gradients()
        if gradients:
            factor = factor.to(gradients[0].dtype)
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]

    def _gradients(self) -> list[Tensor]:
        return [local(parameter.grad) for parameter in self.names if parameter.grad is not None]

    def learning_rates(self) -> dict[str, float]:
        """The current learning rate of each role."""
        return {group["role"]: group["lr"] for optimizer in self._all for group in optimizer.param_groups}

    def state(self) -> dict[str, Tensor]:
        """All state by parameter and name, created where there is none yet; loading into it sets it."""
        state = {}
        create = _empty_state if self._host is None else self._host.create
        if self._host is not None:
            self._host.settle()
        for optimizer in self._all:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    slots = optimizer.state[parameter]
                    if not slots:
                        slots.update(create(optimizer, parameter))
                    state |= {f"{self.names[parameter]}.{slot}": value for slot, value in slots.items()}
        return state


def _make(
    name: str,
    groups: list[dict[str, Any]],
    config: OptimizerConfig,
    matrix_dtype: torch.dtype,
    sharing: dist.ProcessGroup | None,
) -> torch.optim.Optimizer:
    if name == "muon":
        return Muon(groups, config.muon_momentum, matrix_dtype, sharing)
    if name == "sgd":
        momentum = config.sgd_momentum
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, foreach=True)
    if name == "adafactor":
        return Adafactor(groups)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def _empty_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What ``optimizer`` keeps of ``parameter`` before its first step."""
    if isinstance(optimizer, (Muon, torch.optim.SGD)):
        # torch's SGD begins its average with the gradient, which is what it makes of zeros.
        has_average = optimizer.defaults["momentum"] > 0 or isinstance(optimizer, Muon)
        return {"momentum_buffer": torch.zeros_like(parameter)} if has_average else {}
    if isinstance(optimizer, Adafactor):
        return adafactor.empty_state(parameter)
    step = torch.zeros((), dtype=torch.float32, device=local(parameter).device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024).

    The same rule as ``torch.optim.Muon``, but each matrix is orthogonalized whole, in a type we choose, by
    one process for all: so the result does not depend on the layout, and the work is shared. Of stacked
    matrices [E, m, n], such as those of experts, each is one.

    Args:
        groups: With "lr" and "weight_decay".
        momentum: Of the moving average, with Nesterov's look ahead.
        dtype: Type of the matrix products.
        sharing: Processes with the same matrices, which share the work; None: all.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float,
        dtype: torch.dtype,
        sharing: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(groups, {"momentum": momentum})
        self.dtype, self.sharing = dtype, sharing

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            for parameters in _chunks([p for p in group["params"] if p.grad is not None]):
                self._move(parameters, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        whole = [parameter for parameter in parameters if _holds_whole_matrices(parameter)]
        divided = [parameter for parameter in parameters if not _holds_whole_matrices(parameter)]
        updates = [self._update(parameter, group["momentum"]) for parameter in divided]
        updates = orthogonalize(_gather(updates, divided), self.dtype, self.sharing)
        parts = [_own_part(update, parameter) for parameter, update in zip(divided, updates, strict=True)]
        for parameter in whole:
            update = self._update(parameter, group["momentum"])
            parts.append(newton_schulz(update.to(self.dtype)).to(update.dtype))
        for parameter, part in zip(divided + whole, parts, strict=True):
            rows, columns = parameter.shape[-2:]
            # Tall matrices move further, so that each output changes as much.
            rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
            mine = local(parameter)
            if group["weight_decay"]:
                mine.mul_(1 - group["lr"] * group["weight_decay"])
            mine.add_(part, alpha=-rate)

    def _update(self, parameter: Tensor, momentum: float) -> Tensor:
        """Move the average of ``parameter``; return the update of this process's part, with a look ahead."""
        state = self.state[parameter]
        if not state:
            state.update(_empty_state(self, parameter))
        gradient, average = local(cast("Tensor", parameter.grad)), local(state["momentum_buffer"])
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def _chunks(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Cut ``parameters`` into runs of bounded size, which are gathered at a time; a larger one is alone."""
    chunk, size = [], 0
    for parameter in parameters:
        if chunk and size + parameter.numel() > CHUNK_ELEMENTS:
            yield chunk
            chunk, size = [], 0
        chunk.append(parameter)
        size += parameter.numel()
    if chunk:
        yield chunk


def orthogonalize(
    matrices: list[Tensor], dtype: torch.dtype, sharing: dist.ProcessGroup | None = None
) -> list[Tensor]:
    """Replace each matrix by the nearest orthogonal one, roughly; processes share the work.

    Args:
        matrices: Whole, and the same on every process.
        dtype: Type of the products.
        sharing: The processes; None: all.
    """
    if not matrices:
        return []
    size = dist.get_world_size(sharing) if dist.is_initialized() else 1
    rank = dist.get_rank(sharing) if size > 1 else 0
    # Round robin over shapes: neighbours in the list cost about the same.
    by_shape = sorted(range(len(matrices)), key=lambda i: (tuple(matrices[i].shape), i))
    results = [m if size == 1 else torch.zeros_like(m) for m in matrices]
    for i in by_shape[rank::size]:
        results[i] = newton_schulz(matrices[i].to(dtype)).to(matrices[i].dtype)
    if size == 1:
        return results
    flat = torch.cat([result.flatten() for result in results])
    dist.all_reduce(flat, group=sharing)  # each number comes from one process, and zeros: exact
    parts = flat.split([m.numel() for m in matrices])
    return [part.view_as(m) for part, m in zip(parts, matrices, strict=True)]


def _gather(parts: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Return the whole matrices of which each process has the rows that it has of ``parameters``.

    In one collective: one for each matrix costs more than the bytes.
    """
    if not parameters or not isinstance(parameters[0], DTensor):
        return parts
    if not all(_has_rows(parameter) for parameter in parameters):
        return [_whole(part, parameter) for part, parameter in zip(parts, parameters, strict=True)]
    mesh = parameters[0].device_mesh
    group, size = mesh.get_group(mesh.ndim - 1), mesh.size(mesh.ndim - 1)
    rows = [-(-parameter.shape[0] // size) for parameter in parameters]  # of a shard, the last padded
    padded = [
        torch.nn.functional.pad(part, (0, 0, 0, count - part.shape[0]))
        for part, count in zip(parts, rows, strict=True)
    ]
    flat = torch.cat([part.flatten() for part in padded])
    gathered = flat.new_empty(size, flat.numel())
    dist.all_gather(list(gathered.unbind()), flat, group=group)
    columns = gathered.split([part.numel() for part in padded], dim=1)
    return [
        column.reshape(-1, parameter.shape[1])[: parameter.shape[0]]
        for column, parameter in zip(columns, parameters, strict=True)
    ]


def _has_rows(parameter: Tensor) -> bool:
    """Whether FSDP alone divides it: by rows, over the last axis of its mesh; before it come replicas."""
    return (
        isinstance(parameter, DTensor)
        and parameter.placements[-1] == Shard(0)
        and all(placement.is_replicate() for placement in parameter.placements[:-1])
    )


def _holds_whole_matrices(parameter: Tensor) -> bool:
    """Whether stacked matrices are divided between matrices, so that no process needs another's part."""
    divided = parameter.ndim > 2 and isinstance(parameter, DTensor)
    return divided and local(parameter).shape[-2:] == parameter.shape[-2:]


def _whole(part: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return part
    shape, stride = parameter.shape, parameter.stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=shape, stride=stride
    ).full_tensor()


def _own_part(matrix: Tensor, parameter: Tensor) -> Tensor:
    return part_of(parameter, matrix) if isinstance(parameter, DTensor) else matrix


def newton_schulz(matrix: Tensor) -> Tensor:
    """Push the singular values of ``matrix`` [..., m, n] to about 1: five quintic steps (Jordan et al. 2024).

    A step is x <- (a + b x x' + c (x x')^2) x. For a long matrix the polynomials are multiplied first, small
    and square, and x last; the Gram matrix is taken anew after three steps, before its errors grow.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    segments = (3, 2) if x.shape[-1] >= 2 * x.shape[-2] else (1,) * 5
    for steps in segments:
        gram = _times(x, x.mT)
        factor = product = _polynomial(gram)
        for _ in range(steps - 1):
            gram = _times(_times(factor, gram), factor)
            factor = _polynomial(gram)
            product = _times(factor, product)
        x = _times(product, x)
    return x.mT if tall else x


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices by the library that is faster, or stacks of them."""
    return multiply(left, right.mT) if left.ndim == 2 else left @ right


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    if gram.ndim == 2 and by_onednn(gram, gram):  # it cannot add to its product, as the others do
        result = _times(gram, gram).mul_(c).add_(gram, alpha=b)
    else:
        product = torch.addmm if gram.ndim == 2 else torch.baddbmm
        result = product(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result
