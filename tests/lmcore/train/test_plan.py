"""What a run reads is a function of its settings and the lengths of the documents."""

import numpy as np
import pytest
import torch

from lmcore.config import TrainConfig
from lmcore.data.loader import IGNORE_INDEX, TrainLoader
from lmcore.data.order import Order
from lmcore.data.token_writer import TokenWriter
from lmcore.data.tokens import TokenDataset
from lmcore.errors import ConfigError, DataError
from lmcore.train.plan import plan_samples

EOS = 0
MIXTURE = ({"source": "web", "weight": 0.7}, {"source": "code", "weight": 0.3, "max_epochs": 3})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Documents of three sources in no order; the tokens of each tell its source."""
    rng = np.random.default_rng(0)
    directory = tmp_path_factory.mktemp("tokens")
    sources = rng.choice(["web", "code", "books"], 600, p=[0.6, 0.3, 0.1]).tolist()
    docs = []
    for source in sources:
        tokens = rng.integers(1, 100, rng.integers(1, 90)) + {"web": 0, "code": 100, "books": 200}[source]
        docs.append(np.append(tokens, EOS).astype(np.int32))
    with TokenWriter(directory, eos_id=EOS, vocab_size=300) as writer:
        names = [str(i) for i in range(600)]
        writer.add(names, sources, np.concatenate(docs), np.array([len(doc) for doc in docs]), 1)
    return TokenDataset(directory)


def config_of(**settings):
    values = {"steps": 20, "seq_len": 32, "global_batch_tokens": 256, "micro_batch_size": 1, **settings}
    return TrainConfig(**{"parallel": {"dp_replicate": 1}, **values})


def loader_of(plan, rank=0, world_size=1, micro=1):
    size = {"global_batch_size": 8, "micro_batch_size": micro, "rank": rank, "world_size": world_size}
    return TrainLoader(plan.samples, seed=0, order=plan.order, **size)


def test_without_a_mixture_all_is_as_it_was(dataset):
    plan = plan_samples(dataset, config_of())
    assert plan.order is None
    assert len(plan.samples) == (dataset.num_tokens - 1) // 32
    loader = loader_of(plan)
    assert np.array_equal(loader.samples_of_step(3), Order(len(plan.samples), 0)[24:32])
    batch = plan.samples.batch(np.array([5]))
    assert batch.tokens[0].tolist() == dataset.slice(160, 192).tolist()
    assert plan.values == {"data/epochs": 160 / len(plan.samples), "data/padding": 0.0}


@pytest.mark.parametrize("packing", ["chunk", "best_fit"])
def test_a_source_gives_its_share_and_what_is_not_named_gives_nothing(dataset, packing):
    plan = plan_samples(dataset, config_of(packing=packing, mixture=MIXTURE))
    loader = loader_of(plan)
    counts, targets = np.zeros(3), 0
    for step in range(20):
        for batch in loader.micro_batches(step):
            tokens = batch.targets[(batch.targets != IGNORE_INDEX) & (batch.targets != EOS)].numpy()
            kind = tokens // 100
            assert (kind == kind[0]).all()  # a sequence is of one source
            counts[kind[0]] += int((batch.targets != IGNORE_INDEX).sum())
        targets += loader.num_targets(step)
    assert counts.sum() == targets
    assert counts[2] == 0
    assert abs(counts[0] - 0.7 * targets) < 2 * 32
    values = plan.values
    assert values["data/share/web"] == pytest.approx(0.7, abs=0.01)
    assert values["data/share/books"] == 0
    assert values["data/epochs/code"] < 3
    assert all(values[f"data/padding/{source}"] < 0.03 for source in ("web", "code"))


@pytest.mark.parametrize("packing", ["chunk", "best_fit"])
def test_a_step_of_a_mixture_needs_neither_the_steps_before_nor_the_number_of_processes(dataset, packing):
    config = config_of(packing=packing, mixture=({**MIXTURE[0], "max_epochs": None}, MIXTURE[1]))
    straight = loader_of(plan_samples(dataset, config), micro=8)
    for step in range(50):
        straight.samples_of_step(step)
    for step in (1_000, 0, 49):
        (whole,) = straight.micro_batches(step)
        for world_size in (1, 2, 4):
            parts = [
                batch
                for rank in range(world_size)
                for batch in loader_of(plan_samples(dataset, config), rank, world_size).micro_batches(step)
            ]
            assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
            assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)


def test_a_capped_source_leaves_its_weight_to_the_others(dataset):
    mixture = (
        {"source": "web", "max_epochs": None},
        {"source": "books", "weight": 9.0, "max_epochs": 1.5},
    )
    plan = plan_samples(dataset, config_of(steps=100, mixture=mixture, packing="best_fit"))
    samples = np.concatenate([loader_of(plan).samples_of_step(step) for step in range(100)])
    books = plan.order.shares[1]
    counts = np.bincount(samples[samples >= books.first] - books.first)
    assert counts.sum() == int(1.5 * books.num_sequences)
    assert counts.min() == 1
    assert counts.max() == 2
    assert (samples < books.first).sum() == 800 - counts.sum()


def test_sources_that_are_used_up_too_early_are_told_before_any_work(dataset):
    with pytest.raises(
        DataError, match=r"used up before the end .*expected 16000 sequences.* 3 epochs of code"
    ):
        plan_samples(dataset, config_of(steps=2_000, mixture=MIXTURE))
    with pytest.raises(DataError, match=r"Raise max_epochs, or lower train\.steps to \d+\.") as caught:
        plan_samples(dataset, config_of(steps=2_000, mixture=MIXTURE))
    steps = int(str(caught.value).rpartition(" ")[2].rstrip("."))
    plan_samples(dataset, config_of(steps=steps, mixture=MIXTURE))
    with pytest.raises(DataError):
        plan_samples(dataset, config_of(steps=steps + 1, mixture=MIXTURE))


def test_unknown_sources_are_told_with_those_there_are(dataset):
    with pytest.raises(ConfigError, match="expected one of books, code, web, found wbe"):
        plan_samples(dataset, config_of(mixture=({"source": "wbe"},)))


def test_another_sequence_length_is_another_plan_of_the_same_tokens(dataset):
    for seq_len in (16, 32, 64):
        config = config_of(seq_len=seq_len, packing="best_fit")
        samples = plan_samples(dataset, config).samples
        batch = samples.batch(np.arange(len(samples)))
        found = batch.targets[batch.targets != IGNORE_INDEX].sort().values
        assert torch.equal(found, torch.from_numpy(np.sort(dataset.slice(0, dataset.num_tokens))).long())
