"""What a training run reads: the size of the vocabulary, the batches, the held-out tokens, first weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lmcore.data.loader import TrainLoader
from lmcore.data.tokens import TokenDataset
from lmcore.errors import ConfigError, DataError
from lmcore.layout import find_misfit, find_vocabulary_misfit
from lmcore.model.hf.tokenizer import check_tokenizer
from lmcore.model.hf.weights import HFWeights
from lmcore.parallel.mesh import Layout
from lmcore.store import sha256_json
from lmcore.train.job import TrainJob
from lmcore.train.plan import Plan, plan_samples
from lmcore.verify import Verified, verify_inputs


@dataclass(frozen=True)
class Inputs:
    """The opened inputs of a run.

    Attributes:
        vocab_size: Entries of the vocabulary: of the tokenizer, or rows of the model to go on from.
        plan: Which sequences the run reads.
        loader: Batches of each step, for this process.
        held_out: The validation split.
        tokens_digest: SHA-256 of what both splits hold.
        weights: Those to go on from; None: they are drawn.
    """

    vocab_size: int
    plan: Plan
    loader: TrainLoader
    held_out: TokenDataset
    tokens_digest: str
    weights: HFWeights | None


def open_inputs(job: TrainJob, layout: Layout) -> Inputs:
    """Open the tokens and check that they fit the tokenizer, the model and the batch; first weights too.

    Raises:
        CheckpointError: the model to go on from is missing or damaged.
        ConfigError: sequences are longer than the model is made for, the layout does not fit it, the mixture
            cannot be had, or settings or tokenizer are not those of the model to go on from.
        DataError: the tokens or the tokenizer are missing, damaged or too few.
    """
    _check_lengths(job)
    vocab_size = read_vocab_size(Path(job.tokenizer))
    train, held_out = (TokenDataset(Path(job.tokens) / split) for split in ("train", "validation"))
    for dataset in (train, held_out):
        if dataset.vocab_size > vocab_size:
            raise DataError(
                "the tokens were not made by this tokenizer",
                expected=f"ids below {vocab_size}",
                found=f"a vocabulary of {dataset.vocab_size}",
                remedy="Tokenize again.",
            )
    plan = plan_samples(train, job.train, vocab_size)
    loader = TrainLoader(
        plan.samples,
        global_batch_size=job.train.global_batch_size,
        micro_batch_size=job.train.micro_batch_size,
        seed=job.train.seed,
        order=plan.order,
        rank=layout.dp_rank,
        world_size=layout.parallel.dp,
    )
    weights = HFWeights(job.train.initial_weights, job.model) if job.train.initial_weights else None
    if weights:
        check_tokenizer(weights.directory, weights.vocab_size, Path(job.tokenizer))
    rows = weights.vocab_size if weights else vocab_size
    if misfit := find_vocabulary_misfit(job.model.vocab_rows(rows), job.train.parallel.tp):
        raise ConfigError("the layout does not fit the vocabulary", found=misfit)
    return Inputs(rows, plan, loader, held_out, sha256_json([train.digest, held_out.digest]), weights)


def verify_job(job: TrainJob, run_dir: Path) -> Verified:
    """Compare the files that the job reads with what their stages wrote; one process does it for all.

    Raises:
        DataError: one is damaged, or is of another artifact than the job was made for.
    """
    used = [(Path(job.tokens), ("train", "validation")), (Path(job.tokenizer), ())]
    return verify_inputs(used, run_dir, job.train.launch.verify_seconds, job.tokens_digest)


def read_vocab_size(tokenizer: Path) -> int:
    """Return the number of entries of the tokenizer in a directory, special ones included.

    Raises:
        DataError: there is no ``tokenizer.json`` that can be read.
    """
    try:
        description = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
        added = {entry["id"] for entry in description.get("added_tokens", [])}
        return max(added | set(description["model"]["vocab"].values())) + 1
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the tokenizer at {tokenizer} cannot be read",
            expected="a tokenizer.json of the tokenizers library",
            found=" ".join(str(error).split())[:200],
            remedy="Run `gristmill prepare`.",
        ) from None


def _check_lengths(job: TrainJob) -> None:
    if job.train.seq_len > job.model.max_seq_len:
        raise ConfigError(
            "train.seq_len is longer than the model is made for",
            expected=f"at most {job.model.max_seq_len} tokens (model.max_seq_len)",
            found=f"{job.train.seq_len}",
            remedy="Shorten one or lengthen the other.",
        )
    if misfit := find_misfit(job.model, job.train):
        raise ConfigError("the layout does not fit the model and the batch", found=misfit)
