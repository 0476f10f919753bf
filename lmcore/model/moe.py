"""A mixture of experts: each token visits a few of many MLPs (Shazeer et al. 2017).

No token is dropped, and every sum has a fixed order. What other processes must have a hand in is left to
what ``lmcore.parallel`` may replace: ``MoE.sum_counts``, ``Experts.forward``, and the sum that
``update_expert_bias`` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.config import Activation, ModelConfig, swiglu_block
from lmcore.model.grouped import grouped_linear, spread
from lmcore.model.mlp import MLP, activate


@dataclass(frozen=True)
class Choice:
    """Where the tokens of a batch go.

    Attributes:
        experts: [B, T, K].
        weights: Of each visit, [B, T, K] in fp32.
        probabilities: Of all experts, [B, T, E] in fp32; they sum to 1.
        counts: Visits to each expert by each sequence, [B, E].
    """

    experts: Tensor
    weights: Tensor
    probabilities: Tensor
    counts: Tensor


class Router(nn.Module):
    """Scores every expert for every token, and chooses the K highest.

    Attributes:
        expert_bias: [E] in fp32, added to the scores for the choice alone; None without ``balance: bias``.
            Part of the state.
        counts: [E], visits counted while training since it was last zeroed. Only what they are relative to
            each other means something: blocks that are computed again in the backward pass count twice.
    """

    expert_bias: Tensor | None
    counts: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.moe = config.moe
        self.weight = nn.Parameter(torch.zeros(config.moe.num_experts, config.hidden_size))
        biased = config.moe.balance == "bias"
        self.register_buffer("expert_bias", torch.zeros(config.moe.num_experts) if biased else None)
        self.restart_counts()

    def restart_counts(self, device: torch.device | str | None = None) -> None:
        """Count from zero: they are no part of the state."""
        zeros = torch.zeros(self.moe.num_experts, dtype=torch.int64, device=device)
        self.register_buffer("counts", zeros, persistent=False)

    def forward(self, x: Tensor) -> Choice:
        """Choose for the tokens ``x`` [B, T, D]."""
        with torch.autocast(x.device.type, enabled=False):  # a choice turns on small differences
            logits = F.linear(x.float(), self.weight.float())
        if self.moe.score == "softmax":
            scores = probabilities = logits.softmax(-1)
        else:
            scores = logits.sigmoid()
            probabilities = scores / scores.sum(-1, keepdim=True)
        ranked = scores if self.expert_bias is None else scores.detach() + self.expert_bias
        experts = ranked.topk(self.moe.num_experts_per_token, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.moe.normalize_top_k:
            weights = weights / weights.sum(-1, keepdim=True)
        counts = self._count(experts)
        return Choice(experts, weights, probabilities, counts)

    def _count(self, experts: Tensor) -> Tensor:
        visits = experts.flatten(1)
        counts = visits.new_zeros(visits.shape[0], self.moe.num_experts)
        counts.scatter_add_(1, visits, torch.ones_like(visits))  # whole numbers: any order adds up the same
        if self.training:
            self.counts += counts.sum(0)
        return counts


class Experts(nn.Module):
    """MLPs of one shape, their matrices stacked: ``up`` [E, M or 2M, D] and ``down`` [E, D, M]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.block = swiglu_block(config.expert_size)
        num, size = config.moe.num_experts, config.expert_size
        rows = size * (2 if config.activation == "swiglu" else 1)
        self.up = nn.Parameter(torch.zeros(num, rows, config.hidden_size))
        self.down = nn.Parameter(torch.zeros(num, config.hidden_size, size))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Map the rows ``x`` [N, D], which lie in the order of their experts, to [N, D].

        Args:
            x: First the rows of expert 0, then those of expert 1, and so on.
            counts: Rows of each expert, [E].
        """
        return self.compute(x, counts, self.up, self.down)

    def compute(self, x: Tensor, counts: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """Do what ``forward`` does, with the matrices of these experts."""
        h = activate(grouped_linear(x, up, counts), self.activation, self.block)
        return grouped_linear(h, down, counts)


class MoE(nn.Module):
    """A router, its experts, and perhaps an MLP that every token passes: as one MLP.

    Attributes:
        sum_counts: Adds visits [B, E] up over the processes that hold parts of the same sequences.
        auxiliary_scale: What the loss of a token is multiplied with here; 0: no auxiliary loss.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.moe = config.moe
        self.router = Router(config)
        self.experts = Experts(config)
        shared = config.moe.num_shared_experts
        self.shared = MLP(config, shared * config.expert_size) if shared else None
        self.sum_counts: Callable[[Tensor], Tensor] = lambda counts: counts
        self.auxiliary_scale = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, T, D] to [B, T, D]."""
        choice = self.router(x)
        rows, copies = x.flatten(0, 1), self.moe.num_experts_per_token
        order = choice.experts.flatten().argsort(stable=True)  # visits, by expert and then by token
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        visits = self.experts(spread(rows, order, place, copies), choice.counts.sum(0))
        visits = spread(visits, place, order, 1).unflatten(0, (-1, copies))  # [B T, K, D]
        weights = choice.weights.flatten(0, 1).to(visits.dtype)
        y = (visits * weights[..., None]).sum(1).view(x.shape)
        if self.shared is not None:
            y = y + self.shared(x)
        if self.training and self.auxiliary_scale:
            y = _AddLoss.apply(y, self.auxiliary_scale * self._uneven_load(choice))
        return y

    def _uneven_load(self, choice: Choice) -> Tensor:
        """The auxiliary loss of each sequence (DeepSeek-AI 2024, equations 17 to 20), summed over tokens.

        Of a sequence of T tokens: the sum over experts of (visits x E / (K T)) x (mean probability), which is
        1 where the load is even. All places of a row count, those that pad it too: the model does not know
        which are targets. Visits have no gradient, so it is linear in the probabilities: parts of a sequence,
        micro-batches and processes add up exactly, once visits are those of whole sequences.
        """
        counts = self.sum_counts(choice.counts)
        load = counts / counts.float().mean(-1, keepdim=True)  # [B, E]; K T / E visits on average
        return (choice.probabilities.sum(1) * load).sum()


class _AddLoss(torch.autograd.Function):
    """Let ``x`` pass, and add ``loss`` to whatever is being minimised.

    So a block needs no second output, which neither checkpoints nor the stages of a pipeline could carry to
    the place where the loss is: where the gradient of ``x`` comes by, that of ``loss`` is 1.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return gradients[0], torch.ones_like(loss)


def routers(model: nn.Module) -> Iterator[Router]:
    """The routers of ``model``, first block first."""
    return (module for module in model.modules() if isinstance(module, Router))


def set_auxiliary_scale(model: nn.Module, scale: float) -> None:
    """Have the next forward passes add the auxiliary loss, where the settings have one.

    Args:
        model: Wrapped or not.
        scale: What the loss of a token is multiplied with: (loss scale) / (targets of the global batch).
    """
    for module in model.modules():
        if isinstance(module, MoE) and module.moe.balance == "auxiliary":
            module.auxiliary_scale = scale * module.moe.auxiliary_loss_weight


@torch.no_grad()
def update_expert_bias(model: nn.Module, sum_over: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Move each expert's bias towards an even load (Wang et al. 2024), once a step; count from zero again.

    Args:
        model: Wrapped or not; counts are kept whatever the balance.
        sum_over: Adds a tensor of whole numbers up over the processes that hold parts of the batch.

    Returns:
        Visits to the busiest expert over the mean, of the worst layer, fp64; None: there are no experts.
    """
    found = list(routers(model))
    if not found:
        return None
    counts = sum_over(torch.stack([router.counts for router in found])).double()  # [layers, E]
    mean = counts.mean(-1, keepdim=True)
    for router, direction in zip(found, (mean - counts).sign(), strict=True):
        if router.expert_bias is not None:
            router.expert_bias.add_(direction, alpha=router.moe.bias_update_rate)
        router.counts.zero_()
    return (counts / mean).nan_to_num().max()
