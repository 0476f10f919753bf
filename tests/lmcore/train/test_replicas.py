"""A replica that holds other bits is found and named, before a checkpoint is made of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmcore.train.replicas import ROW_WORDS, checksums

CPU = torch.device("cpu")


def train_corrupted(run, rank, step, what):
    size = run.job.train.parallel.num_processes
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    program = [str(Path(__file__).with_name("corrupted.py")), str(run.directory), str(rank), str(step), what]
    done = subprocess.run(
        [*agent, *program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [path.read_text() for path in sorted(run.directory.glob("error-*.txt"))]


def checkpoints(run):
    return sorted(path.name for path in (run.directory / "checkpoints").glob("step-*"))


def test_a_replica_with_other_weights_is_named_and_not_saved(make_run):
    run = make_run(dp_replicate=2, steps=8, checkpoint_every=2, micro_batch_size=4)
    told = train_corrupted(run, rank=1, step=5, what="weights")
    assert len(told) == 2
    for text in told:
        assert text.startswith("ReplicasDiffer: replicas of the model were no longer equal after step 6")
        assert "ranks 0, 1 differ from one another in model.blocks.0.attention.qkv.weight" in text
        assert "found equal is step-00000004" in text
    assert checkpoints(run)[-1] == "step-00000004"


@pytest.mark.long
def test_a_run_whose_replica_was_corrupted_goes_on_from_the_last_good_checkpoint(make_run):
    run = make_run(dp_replicate=2, steps=8, checkpoint_every=2, micro_batch_size=4)
    train_corrupted(run, rank=1, step=5, what="weights")
    undisturbed = make_run("undisturbed", dp_replicate=2, steps=8, checkpoint_every=2, micro_batch_size=4)
    assert run.finish().weights == undisturbed.finish().weights


@pytest.mark.long
@pytest.mark.parametrize("what", ["a bit", "two that change places", "optimizer"])
def test_the_comparison_sees_a_single_bit_between_checkpoints(make_run, what):
    run = make_run(dp_replicate=2, steps=8, check_replicas_every=1, micro_batch_size=4)
    told = train_corrupted(run, rank=0, step=3, what=what)
    # What the optimizer holds is compared by what it does to the weights in the same step.
    assert all("no longer equal after step 3" in text for text in told)
    assert checkpoints(run) == []


@pytest.mark.long
def test_a_majority_says_which_rank_it_is_and_shards_are_compared_too(make_run):
    run = make_run(
        dp_replicate=3, steps=4, check_replicas_every=2, global_batch_tokens=768, micro_batch_size=8
    )
    assert all("rank 1 differs from the other 2" in text for text in train_corrupted(run, 1, 2, "weights"))
    sharded = make_run("sharded", dp_replicate=2, dp_shard=2, steps=4, check_replicas_every=2)
    told = train_corrupted(sharded, 3, 2, "weights")
    assert len(told) == 4
    assert all("ranks 1, 3 differ" in text for text in told)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("numel", [0, 1, 3, 1024, 2 * ROW_WORDS + 5, 40_001])
def test_checksums_see_every_bit_whatever_the_size(dtype, numel):
    generator = torch.Generator().manual_seed(numel)
    tensor = torch.randint(0, 100, (numel,), generator=generator).to(dtype)
    before = checksums([tensor], CPU)
    assert torch.equal(before, checksums([tensor.clone()], CPU))
    for place in {0, numel // 2, numel - 1} if numel else ():
        other = tensor.clone()
        other.view(torch.uint8)[place * tensor.element_size()] ^= 1
        assert not torch.equal(before, checksums([other], CPU)), place


def test_checksums_of_views_and_of_content_that_moved():
    whole = torch.arange(20_001, dtype=torch.float32)
    assert torch.equal(checksums([whole[1:]], CPU), checksums([whole[1:].clone()], CPU))
    assert torch.equal(
        checksums([whole[:20_000].view(100, 200).T], CPU),
        checksums([whole[:20_000].view(100, 200).T.clone()], CPU),
    )
    moved = whole.clone()
    moved[:2048], moved[8192:10240] = whole[8192:10240], whole[:2048]
    assert not torch.equal(checksums([whole], CPU), checksums([moved], CPU))
