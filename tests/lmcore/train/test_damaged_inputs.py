"""A bit of any file that a training reads is flipped, or the file is cut or gone: refused, never trained on.

A sample of them here; many more in the long runs.
"""

import random
import re
import shutil

import pytest
import torch

from lmcore.config import Identity
from lmcore.errors import GristmillError
from lmcore.parallel.mesh import World
from lmcore.store import Stage, Store
from lmcore.train.job import TrainJob
from lmcore.train.trainer import Trainer
from lmcore.verify import STAMPS

SAMPLES = [3, pytest.param(60, marks=pytest.mark.long)]
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def artifacts(corpus, tmp_path_factory):
    """The corpus as artifacts of a store, which have manifests."""
    store = Store(tmp_path_factory.mktemp("store"))

    def ensure(name):
        def build(out):
            shutil.copytree(corpus / name, out, dirs_exist_ok=True)
            return {}

        return store.ensure(Stage(name, 1, Identity({}, {}), {}, deciding=()), build)

    return ensure("tokens"), ensure("tokenizer")


@pytest.fixture
def run(make_run, artifacts):
    """A run on the artifacts; not begun."""
    tokens, tokenizer = artifacts
    made = make_run(steps=4, checkpoint_every=2)
    job = made.job.model_copy(
        update={"tokens": str(tokens.path), "tokenizer": str(tokenizer.path), "tokens_digest": tokens.digest}
    )
    job.write(made.directory)
    return made


def train(run, *, stop=lambda: False):
    return Trainer(TrainJob.read(run.directory), run.directory, ALONE, stop).run()


def damages(path, draw, count):
    """Damage a file in one way after another; put it back each time."""
    whole = path.read_bytes()
    for _ in range(count):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        yield "flipped"
    for name, content in {"cut": whole[: len(whole) // 2], "empty": b""}.items():
        path.write_bytes(content)
        yield name
    path.unlink()
    yield "deleted"
    path.write_bytes(whole)


@pytest.mark.parametrize("count", SAMPLES)
def test_tokens_and_tokenizer_that_are_damaged_are_not_trained_on(run, artifacts, count):
    draw = random.Random(count)
    for artifact in artifacts:
        for path in [p for p in sorted(artifact.path.rglob("*")) if p.is_file()]:
            for how in damages(path, draw, count):
                (run.directory / STAMPS).unlink(missing_ok=True)
                if (path.name, how) == ("manifest.json", "deleted"):
                    continue
                with pytest.raises(GristmillError, match=re.escape(path.name)):
                    train(run)
                assert run.rows("step") == [], (path, how)
    assert train(run)["status"] == "completed"


@pytest.mark.parametrize("count", SAMPLES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, count):
    train(run)
    expected, draw = run.weights, random.Random(count)
    trainer = Trainer(TrainJob.read(run.directory), run.directory, ALONE, lambda: False)
    newest = max((run.directory / "checkpoints").iterdir())
    for name in sorted(path.name for path in newest.iterdir()):
        for how in damages(newest / name, draw, count):
            passed = []
            state = trainer.checkpoints.load_newest(
                trainer._tensors, trainer._belongs_to(), lambda *what, to=passed: to.append(what)
            )
            assert state.step == 2, (name, how)
            assert passed[0][0] == newest.name, (name, how)
            (aside,) = newest.parent.glob(".damaged-*")
            aside.rename(newest)
    # And with the last one damaged a whole run comes to the same weights.
    next(newest.glob("*.distcp")).write_bytes(b"x")
    (run.directory / "events.jsonl").unlink()
    train(run)
    assert run.rows("resume")[0]["step"] == 2
    assert run.weights == expected


def test_checkpoints_whose_shards_were_exchanged_are_passed_over(run):
    train(run)
    one, other = sorted((run.directory / "checkpoints").iterdir())
    shards = [next(path.glob("*.distcp")) for path in (one, other)]
    contents = [path.read_bytes() for path in shards]
    for path, content in zip(shards, reversed(contents), strict=True):
        path.write_bytes(content)
    (run.directory / "events.jsonl").unlink()
    assert train(run)["status"] == "completed"
    (begun,) = run.rows("start")
    assert len(begun["passed_over"]) == 2
