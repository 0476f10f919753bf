"""The layout to take: the fastest that fits, and why the others lose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lmcore.config import ModelConfig, TrainConfig, parse
from lmcore.errors import ConfigError
from lmcore.layout import micro_batch_sizes
from lmcore.plan.estimate import Estimate, Rates, estimate
from lmcore.plan.hardware import Cluster
from lmcore.plan.layouts import layouts_of, modes
from lmcore.plan.memory import memory_of
from lmcore.plan.reasons import ALIKE, TELLS, why_slower, why_taken, why_too_large
from lmcore.plan.shape import Shape
from lmcore.plan.time import Efficiency, step_time
from lmcore.units import BYTES, told

SHOWN = 8  # layouts that a plan names
TOO_LARGE = 2  # of them, such as would be faster and do not fit
SLOW = 1.5  # times the best, beyond which no layout is worth naming
MOST_GPUS = 1 << 17


@dataclass(frozen=True)
class Choice:
    """A layout of a plan.

    Attributes:
        estimate: What it needs.
        fits: Whether that is there.
        why: Why it is taken, or is not.
    """

    estimate: Estimate
    fits: bool
    why: str


@dataclass(frozen=True)
class Plan:
    """The layouts worth naming, the one to take first.

    Attributes:
        choices: It, then the best of each other kind.
        num_layouts: How many divide the model and the batch.
    """

    choices: tuple[Choice, ...]
    num_layouts: int


@dataclass(frozen=True)
class Wanted:
    """What is to be planned.

    Attributes:
        shape: Of the model.
        train: The settings; their layout is one among others.
        cluster: Where.
        rates: Prices.
        headroom: Share of a GPU's memory that is left to CUDA, NCCL and gaps.
        efficiency: Constants of the time.
    """

    shape: Shape
    train: TrainConfig
    cluster: Cluster
    rates: Rates = field(default_factory=Rates)
    headroom: float = 0.1
    efficiency: Efficiency = field(default_factory=Efficiency)

    @property
    def room(self) -> float:
        """Bytes of a GPU that a process may have."""
        return self.cluster.memory * (1 - self.headroom)

    @property
    def model(self) -> ModelConfig:
        """Its settings."""
        return self.shape.config


def make_plan(wanted: Wanted) -> Plan:
    """Find the fastest layout that fits, and what speaks against the others.

    Raises:
        ConfigError: no layout divides the model and the batch over so many GPUs, or none fits, or attention
            is asked for that is no GPU's.
    """
    cluster = wanted.cluster
    if wanted.train.attention == "products":
        raise ConfigError(
            "train.attention products is for CPUs",
            expected="what GPUs have, for a plan of them",
            found="products",
            remedy="Set train.attention=auto.",
        )
    layouts = list(layouts_of(wanted.model, wanted.train, cluster.num_gpus, cluster.gpus_per_node))
    if not layouts:
        raise _indivisible(wanted)
    timed = sorted(
        (_seconds(wanted, train), _complexity(train), index) for index, train in enumerate(layouts)
    )
    best, others, large = _pick(wanted, [(seconds, layouts[index]) for seconds, _, index in timed])
    if best is None:
        raise _too_large(wanted, layouts)
    taken = _estimate(wanted, best)
    _check(taken.train)
    found = [_estimate(wanted, train) for train in others]
    choices = [Choice(taken, True, why_taken(taken, found, len(layouts)))]
    choices += [Choice(one, True, why_slower(taken, one)) for one in found]
    for one in (_estimate(wanted, train) for train in large):
        gain = 1 - one.time.total / taken.time.total
        if gain > ALIKE:
            choices.append(Choice(one, False, f"{gain:.1%} faster, but {why_too_large(one, wanted.room)}"))
    own = _own(wanted)
    if own.parallel.num_processes == cluster.num_gpus and not any(
        _same(own, c.estimate.train) for c in choices
    ):
        mine = _estimate(wanted, own)
        fits = mine.memory.total <= wanted.room
        why = why_slower(taken, mine) if fits else why_too_large(mine, wanted.room)
        choices.append(Choice(mine, fits, f"the recipe's own: {why}"))
    return Plan(tuple(choices), len(layouts))


def _pick(
    wanted: Wanted, fastest_first: list[tuple[float, TrainConfig]]
) -> tuple[TrainConfig | None, list[TrainConfig], list[TrainConfig]]:
    """The layout to take, the best of each other kind that fits, and faster ones that do not."""
    best: TrainConfig | None = None
    kinds: dict[tuple[int, ...], TrainConfig] = {}
    large: dict[tuple[int, ...], TrainConfig] = {}
    limit = 0.0
    for seconds, train in fastest_first:
        kind = _kind(train)
        if best is not None and seconds > limit * SLOW:
            break
        if kind in kinds and (
            seconds > limit or (best is not None and _complexity(train) >= _complexity(best))
        ):
            continue
        if memory_of(wanted.shape, train).total > wanted.room:
            if best is None and len(large) < TOO_LARGE:
                large.setdefault(kind, train)
            continue
        if best is None:
            best, limit = train, seconds * (1 + TELLS)
        elif seconds <= limit and _complexity(train) < _complexity(best):
            best = train
        kinds.setdefault(kind, train)
        if len(kinds) > SHOWN - len(large):
            break
    others = [train for kind, train in kinds.items() if best is None or kind != _kind(best)]
    return best, others[: SHOWN - 1 - len(large)], list(large.values())


def _kind(train: TrainConfig) -> tuple[int, ...]:
    parallel = train.parallel
    cut = parallel.tp, parallel.pp, parallel.cp, parallel.ep
    return *cut, int(parallel.dp_replicate > 1 and set(cut) == {1})


def _complexity(train: TrainConfig) -> tuple[int, int, int]:
    """How much there is to a layout: axes, how far matrices and stages are cut, what is computed again."""
    parallel = train.parallel
    axes = sum(
        size > 1 for size in (parallel.tp, parallel.pp, parallel.cp, parallel.ep, parallel.dp_replicate)
    )
    cuts = parallel.tp * parallel.pp * parallel.cp * parallel.num_stages
    return axes, cuts, modes().index(train.activation_checkpointing)


def _seconds(wanted: Wanted, train: TrainConfig) -> float:
    return step_time(wanted.shape, train, wanted.cluster, efficiency=wanted.efficiency).total


def _estimate(wanted: Wanted, train: TrainConfig) -> Estimate:
    return estimate(wanted.shape, train, wanted.cluster, wanted.rates, efficiency=wanted.efficiency)


def _own(wanted: Wanted) -> TrainConfig:
    """The recipe's own layout; a micro-batch that is to be found is the largest that fits, as it will be."""
    train = wanted.train
    if train.micro_batch_size:
        return train
    sizes = [train.model_copy(update={"micro_batch_size": size}) for size in micro_batch_sizes(train)]
    fitting = [one for one in sizes if memory_of(wanted.shape, one).total <= wanted.room]
    smallest = sizes[0] if sizes else train.model_copy(update={"micro_batch_size": 1})
    return fitting[-1] if fitting else smallest


def _same(a: TrainConfig, b: TrainConfig) -> bool:
    return (a.parallel, a.micro_batch_size, a.activation_checkpointing) == (
        b.parallel,
        b.micro_batch_size,
        b.activation_checkpointing,
    )


def _check(train: TrainConfig) -> None:
    """The layout to take is one that a recipe may have: its settings are validated as a whole."""
    parse(TrainConfig, train.model_dump(), where="the layout that was found")


# --- refusals --------------------------------------------------------------------------------------


def _indivisible(wanted: Wanted) -> ConfigError:
    cluster, train = wanted.cluster, wanted.train
    near = sorted(_dividing(wanted), key=lambda count: abs(count - cluster.num_gpus))[:2]
    return ConfigError(
        f"no layout divides this model and batch over {cluster.num_gpus} GPUs",
        expected=f"a number that {train.global_batch_size} sequences (global_batch_tokens / seq_len), the "
        f"heads, {wanted.model.num_layers} layers and the length share out among them",
        found=f"{cluster.num_gpus}",
        remedy=f"Use --gpus {' or '.join(map(str, sorted(near)))}." if near else "Change the batch.",
    )


def _dividing(wanted: Wanted) -> Iterator[int]:
    """Numbers of GPUs near the one asked for that some layout has."""
    asked = wanted.cluster.num_gpus
    for count in range(asked, 0, -1):
        if _some(wanted, count):
            yield count
            break
    for count in range(asked + 1, 2 * asked + 1):
        if _some(wanted, count):
            yield count
            break


def _some(wanted: Wanted, count: int) -> bool:
    return next(layouts_of(wanted.model, wanted.train, count, wanted.cluster.gpus_per_node), None) is not None


def _too_large(wanted: Wanted, layouts: list[TrainConfig]) -> ConfigError:
    frugal = [train for train in layouts if _is_frugal(train)] or layouts
    least = min(frugal, key=lambda train: memory_of(wanted.shape, train).total)
    memory = memory_of(wanted.shape, least)
    enough = _smallest(wanted)
    remedy = f"Use --gpus {enough} or more" if enough else "No number of such GPUs would do with this batch"
    return ConfigError(
        f"nothing fits on {wanted.cluster.num_gpus} GPUs of {told(wanted.cluster.memory, BYTES, 2)}",
        expected=f"{told(memory.total, BYTES)} for the most frugal layout ({_named(least)})",
        found=f"{told(wanted.room, BYTES)}, {told(memory.total - wanted.room, BYTES)} too few",
        remedy=f"{remedy}, or GPUs of {told(memory.total / (1 - wanted.headroom), BYTES, 2)}.",
    )


def _is_frugal(train: TrainConfig) -> bool:
    return train.micro_batch_size == 1 and train.activation_checkpointing == modes()[-1]


def _named(train: TrainConfig) -> str:
    parallel = train.parallel
    axes = ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep")
    return (
        " x ".join(f"{axis} {getattr(parallel, axis)}" for axis in axes if getattr(parallel, axis) > 1)
        or "one"
    )


def _smallest(wanted: Wanted) -> int:
    """The smallest number of GPUs, of whole nodes beyond one, that would do; 0: none."""
    each = wanted.cluster.gpus_per_node
    count = wanted.cluster.num_gpus + 1
    while count <= MOST_GPUS:
        if any(
            memory_of(wanted.shape, train).total <= wanted.room
            for train in layouts_of(wanted.model, wanted.train, count, each)
            if _is_frugal(train)
        ):
            return count
        count = count + 1 if count < each else (count // each + max(1, count // each // 8)) * each
    return 0
