"""What is let through divides wholly; what is refused says which setting, and how it would do."""

import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.distributed import pipelining
from torch.distributed.pipelining import schedules

from lmcore.config import ModelConfig, ParallelConfig, Recipe, TrainConfig, load_recipe, parse
from lmcore.errors import ConfigError
from lmcore.layout import find_misfit, find_vocabulary_misfit, sequence_multiple
from lmcore.parallel.mesh import World, make_layout
from lmcore.parallel.pipeline import _SCHEDULES, layers_of_stages, own_stages, stage_owners

SIZES = st.integers(1, 6)
SETTING = {
    "tp": "train.parallel.tp",
    "cp": "train.parallel.cp",
    "pp": "train.parallel.pp",
    "ep": "train.parallel.ep",
    "micro_batch_size": "train.micro_batch_size",
    "global_batch_tokens": "train.global_batch_tokens",
}


@st.composite
def settings_of_a_run(draw):
    """Plain settings of a model and a training, each valid by itself."""
    kv_heads, groups = draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.integers(1, 2))
    experts = draw(st.sampled_from([0, 0, 4, 6]))
    model = {
        "num_layers": draw(st.integers(1, 9)),
        "hidden_size": 8 * kv_heads * groups,
        "num_heads": kv_heads * groups,
        "num_kv_heads": kv_heads,
        "intermediate_size": draw(st.sampled_from([1, 33, 64, 96, 256, 384])),
        "activation": "swiglu" if experts else draw(st.sampled_from(["swiglu", "gelu"])),
        "moe": {"num_experts": experts, "num_experts_per_token": 2},
    }
    parallel = {name: draw(SIZES) for name in ("tp", "pp", "cp", "ep", "dp_shard", "dp_replicate")}
    for name in ("tp", "pp", "cp", "ep"):  # a single one wrong is more telling than all
        if draw(st.booleans()):
            parallel[name] = 1
    parallel |= {
        "sequence_parallel": draw(st.booleans()),
        "pipeline_schedule": draw(st.sampled_from(sorted(_SCHEDULES))),
        "stages_per_process": draw(st.sampled_from([0, 0, 1, 2, 3])),
    }
    seq_len, size, pieces = draw(st.integers(2, 48)), draw(st.integers(1, 3)), draw(st.integers(1, 12))
    dp = parallel["dp_shard"] * parallel["dp_replicate"]
    train = {
        "seq_len": seq_len,
        "global_batch_tokens": seq_len * size * pieces * dp,
        "micro_batch_size": size,
        "parallel": parallel,
    }
    return {"model": model, "train": train}


def misfit(values):
    return find_misfit(ModelConfig(**values["model"]), TrainConfig(**values["train"]))


def changed(values, name, number):
    section, *path = SETTING[name].split(".")
    train = {**values["train"], "parallel": dict(values["train"]["parallel"])}
    (train if len(path) == 1 else train["parallel"])[path[-1]] = number
    return {**values, section: train}


@pytest.mark.parametrize(("cp", "tp", "multiple"), [(1, 1, 1), (1, 3, 3), (2, 1, 4), (2, 2, 4), (2, 3, 12)])
def test_the_least_sequence_that_a_layout_divides(cp, tp, multiple):
    assert sequence_multiple(ParallelConfig(cp=cp, tp=tp)) == multiple


@given(values=settings_of_a_run())
@settings(max_examples=400)
def test_what_is_let_through_divides_wholly(values):
    assume(not misfit(values))
    model, train = ModelConfig(**values["model"]), TrainConfig(**values["train"])
    parallel = train.parallel
    tp = parallel.tp
    assert model.kv_heads % tp == model.num_heads % tp == 0
    if not all(model.moe.replaces_mlp(layer) for layer in range(model.num_layers)):
        assert model.mlp_size % (tp * model.mlp_block) == 0
    assert parallel.cp == 1 or train.seq_len % (2 * parallel.cp) == 0
    assert not parallel.sequence_parallel or train.seq_len % (parallel.cp * tp) == 0
    # Or an evaluation would pad what is as long as the model is made for.
    assert train.seq_len % sequence_multiple(parallel) == 0
    layers = layers_of_stages(model.num_layers, parallel.num_stages)
    assert [layer for stage in layers for layer in stage] == list(range(model.num_layers))
    assert all(layers)
    assert max(map(len, layers)) - min(map(len, layers)) <= 1
    assert sorted(p for rank in range(parallel.pp) for p in own_stages(parallel, rank)) == list(
        range(parallel.num_stages)
    )
    if parallel.ep > 1:
        assert model.moe.num_experts % parallel.ep == parallel.dp_shard * parallel.cp % parallel.ep == 0
    if parallel.pp > 1:
        check_schedule(parallel, train.grad_accum_steps)


def check_schedule(parallel, num_micro_batches):
    """Torch makes the order of passes, and it comes to its end with every micro-batch in every stage."""
    owners = stage_owners(parallel)
    stages = [
        SimpleNamespace(
            num_stages=parallel.num_stages,
            group_size=parallel.pp,
            group_rank=0,
            submod=nn.Identity(),
            stage_index=place,
            is_first=place == 0,
            is_last=place == parallel.num_stages - 1,
        )
        for place in own_stages(parallel, 0)
    ]
    one = parallel.pipeline_schedule in ("1f1b", "gpipe")
    made = getattr(pipelining, _SCHEDULES[parallel.pipeline_schedule])(
        stages[0] if one else stages, num_micro_batches
    )
    if one:
        assert len(stages) == 1  # torch has no order to look at
        return
    assert [made.stage_index_to_group_rank[place] for place in range(parallel.num_stages)] == owners
    memory = (schedules.UNSHARD, schedules.RESHARD, schedules.REDUCE_GRAD)
    order = {
        rank: [action for action in actions if action.computation_type not in memory]
        for rank, actions in made.pipeline_order_with_comms.items()
    }
    schedules._simulate_comms_compute(order, owners.__getitem__, parallel.num_stages)
    forward = [
        a.stage_index for actions in order.values() for a in actions if a.computation_type == schedules.F
    ]
    assert [forward.count(place) for place in range(parallel.num_stages)] == [num_micro_batches] * len(owners)


@given(values=settings_of_a_run())
@settings(max_examples=400)
def test_what_is_refused_names_the_setting_and_what_is_offered_helps(values):
    found = misfit(values)
    assume(found)
    assert re.match(r"train\.parallel\.(tp|cp|pp|ep) |train\.parallel\.pipeline_schedule ", found), found
    complaint = re.sub(r"\d+", "", found)
    offers = re.search(
        r"use (?:at most )?(micro_batch_size |global_batch_tokens |stages_per_process |tp |cp |ep |pp )?"
        r"(\d+)(?: or (\d+))?",
        found,
    )
    assert offers, found
    named, *numbers = offers.groups()
    name = named.strip() if named else found.split()[0].rpartition(".")[2]
    SETTING.setdefault("stages_per_process", "train.parallel.stages_per_process")
    for number in filter(None, numbers):
        better = changed(values, name, int(number))
        try:
            # Another complaint may come to light; this one is gone.
            assert re.sub(r"\d+", "", misfit(better)) != complaint, f"{found}: {number}"
        except ValidationError as error:
            pytest.fail(f"{found}: {number} is not even valid: {error}")


@given(vocab_size=st.integers(1, 400), tp=st.integers(1, 70))
def test_each_process_has_some_of_the_vocabulary_or_is_refused(vocab_size, tp):
    share = -(-vocab_size // tp)
    last = vocab_size - share * (tp - 1)
    found = find_vocabulary_misfit(vocab_size, tp)
    assert bool(found) == (last < 1)
    if found:
        most = int(found.rpartition(" ")[2])
        assert 1 <= most < tp
        assert not find_vocabulary_misfit(vocab_size, most)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.parallel.tp": 3}, "train.parallel.tp 3"),
        ({"train.parallel.pp": 64}, "train.parallel.pp 64"),
        ({"train.parallel.cp": 7}, "train.parallel.cp 7"),
        ({"train.parallel.ep": 2, "train.parallel.dp_shard": 2}, "model.moe.num_experts is 0"),
        ({"train.parallel.pp": 2, "train.micro_batch_size": 16}, "use micro_batch_size 8"),
    ],
)
def test_a_recipe_that_cannot_be_divided_is_refused_when_it_is_read(tmp_path, changes, said):
    recipe = {
        "model": {"num_layers": 4, "num_heads": 4, "hidden_size": 64},
        "train": {
            "seq_len": 32,
            "global_batch_tokens": 512,
            "micro_batch_size": 1,
            "parallel": {"dp_replicate": 1},
        },
        "data": {"sources": [{"name": "s", "kind": "files", "path": "*.txt"}]},
    }
    parse(Recipe, recipe, where="recipe")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_recipe(path, [f"{name}={value}" for name, value in changes.items()])


def test_a_single_process_is_no_pipeline_whatever_its_schedule():
    for schedule in _SCHEDULES:
        parallel = ParallelConfig(dp_replicate=1, pipeline_schedule=schedule, stages_per_process=3)
        assert parallel.num_stages == 1
        assert own_stages(parallel, 0) == [0]


@pytest.mark.parametrize("axis", ["tp", "pp", "cp", "dp_shard"])
def test_processes_that_are_missing_or_too_many_are_named(axis):
    parallel = ParallelConfig(dp_replicate=1, **{axis: 4})
    for size in (1, 3, 8):
        with pytest.raises(ConfigError, match=rf"expected 4 \(.*{axis} 4.*found {size}.*Start 4 processes"):
            make_layout(parallel, World(0, size, torch.device("cpu")))
