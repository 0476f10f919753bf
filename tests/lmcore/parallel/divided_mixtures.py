"""Run by torchrun: compare a mixture whose experts are divided with one that is whole, case by case."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lmcore.config import ModelConfig, OptimizerConfig
from lmcore.errors import ConfigError
from lmcore.model.attention import Context
from lmcore.model.moe import set_auxiliary_scale
from lmcore.model.transformer import Transformer
from lmcore.parallel.experts import divide_experts, sum_counts_over
from lmcore.run_process import leave
from lmcore.train.optim import Optimizers

EXPERTS, VOCAB = 8, 50
LENGTHS = (7, 1, 12, 4)  # of the tokens of each process
CASES = {  # what is added to the scores: it decides who gets any tokens
    "as it comes": [0.0] * EXPERTS,
    "experts without tokens": [0.0, -9.0, 0.0, -9.0, -9.0, 0.0, 0.0, 0.0],
    "all to the first two": [9.0, 9.0] + [0.0] * 6,
    "all to the last two": [0.0] * 6 + [9.0, 9.0],
}


def make(bias=None, **changes):
    moe = {"num_experts": EXPERTS, "intermediate_size": 24, "num_shared_experts": 1, **changes}
    config = ModelConfig(
        num_layers=1,
        hidden_size=16,
        num_heads=2,
        max_seq_len=32,
        activation="swiglu",
        zero_init_projections=False,
        init_std=0.2,
        moe=moe,
    )
    model = Transformer(config, VOCAB)
    model.init_weights(0)
    if bias is not None:
        model.blocks[0].mlp.router.expert_bias.copy_(torch.tensor(bias))
    return model


def inputs_of(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(2, LENGTHS[rank], 16, generator=generator), torch.randn(16, generator=generator)


def compute(mlp, rank):
    x, direction = inputs_of(rank)
    x.requires_grad_()
    y = mlp(x)
    (y.sin() * direction).sum().backward()
    return y.detach(), x.grad


def whole_gradient(parameter, group):
    """Of all processes' losses: experts' is already, the others' are added up as FSDP would."""
    if isinstance(parameter, DTensor):
        return parameter.grad.full_tensor()
    gradient = parameter.grad.clone()
    dist.all_reduce(gradient, group=group)
    return gradient


def check_layer(mesh):
    rank, size = mesh.get_local_rank(), mesh.size()
    for name, bias in CASES.items():
        whole, divided = make(bias), make(bias)
        divide_experts(divided, mesh)
        expected = [compute(whole.blocks[0].mlp, r) for r in range(size)]
        for mine, theirs in zip(compute(divided.blocks[0].mlp, rank), expected[rank], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5, msg=name)
        named = dict(divided.blocks[0].mlp.named_parameters())
        for key, parameter in whole.blocks[0].mlp.named_parameters():
            found = whole_gradient(named[key], mesh.get_group())
            torch.testing.assert_close(found, parameter.grad, atol=1e-5, rtol=1e-5, msg=f"{name} {key}")
        assert named["experts.up"].to_local().shape[0] == EXPERTS // size
        assert divided.state_dict().keys() == whole.state_dict().keys()


def check_meta(mesh):
    with torch.device("meta"):
        model = make()
    divide_experts(model, mesh)
    up = model.blocks[0].mlp.experts.up
    assert up.is_meta
    assert up.shape[0] == EXPERTS
    assert up.to_local().shape[0] == EXPERTS // mesh.size()
    with pytest.raises(ConfigError, match="num_experts 9"):
        divide_experts(make(num_experts=9), mesh)


def check_parts_of_sequences(rank, size):
    """The auxiliary loss of whole sequences, of which each process holds a part."""
    x = torch.randn(3, 4 * size, 16, generator=torch.Generator().manual_seed(5))
    gradients = []
    for divided in (False, True):
        model = make(balance="auxiliary", auxiliary_loss_weight=1.0)
        set_auxiliary_scale(model, 1 / x.shape[1])
        if divided:
            sum_counts_over(model, [dist.group.WORLD])
        mlp = model.blocks[0].mlp
        (mlp(x.chunk(size, 1)[rank] if divided else x).sum() * 0).backward()
        if divided:
            dist.all_reduce(mlp.router.weight.grad)
        gradients.append(mlp.router.weight.grad)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


def check_with_fsdp(mesh, rank, size):
    """Experts divided over ep and sharded over the rest, all else sharded over both: a step of Muon."""
    models, context = (make(), make()), Context(rotary=None, mask=None, causal=True)
    optimizers = []
    for model, divided in zip(models, (False, True), strict=True):
        block = model.blocks[0]
        if divided:
            divide_experts(model, mesh["ep"])
            fully_shard(block.mlp.experts, mesh=mesh["rest"])
            fully_shard(block, mesh=mesh["rest", "ep"]._flatten("all"))
        for module in block.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        optimizers.append(
            Optimizers(model.named_parameters(), OptimizerConfig(weight_decay=0.1), torch.float32)
        )
        for r in [rank] if divided else range(size):
            block(inputs_of(r)[0], context).square().sum().backward()
    whole, named = models[0].blocks[0], dict(models[1].blocks[0].named_parameters())
    for key, parameter in whole.named_parameters():
        found = named[key].grad.full_tensor()
        torch.testing.assert_close(found, parameter.grad, atol=1e-4, rtol=1e-4, msg=key)
    for each in optimizers:
        each.step(1.0)
    for key, parameter in whole.named_parameters():
        found = named[key].full_tensor()
        torch.testing.assert_close(found, parameter, atol=2e-4, rtol=1e-4, msg=key)


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rest", "ep"))
    four = mesh["rest", "ep"]._flatten("four")
    for part in (mesh["ep"], four):
        check_layer(part)
        check_meta(part)
    check_parts_of_sequences(rank, size)
    check_with_fsdp(mesh, rank, size)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    leave(0)
