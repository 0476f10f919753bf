"""Whole evaluations, in processes of their own."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch

from lmcore.config import EvaluationConfig, EvaluationSetConfig, LaunchConfig
from lmcore.data.tokens import TokenDataset
from lmcore.eval.evaluation import Evaluation
from lmcore.eval.generate import Generator
from lmcore.eval.job import EvaluationJob
from lmcore.eval.perplexity import SlidingWindows, score_text
from lmcore.eval.scorer import WholeScorer
from lmcore.eval.sets import find_sets
from lmcore.parallel.mesh import World

PROMPTS = ("def ", "", "日本")


def evaluate(corpus, run_dir, *, world_size=1, program=("-m", "lmcore.eval"), **settings):
    """Run an evaluation and return the finished process."""
    job = EvaluationJob(
        evaluation=EvaluationConfig(stride_tokens=8, micro_batch_size=4, prompts=PROMPTS),
        launch=LaunchConfig(device="cpu", threads_per_process=1),
        model=str(corpus.model),
        tokens=str(corpus.tokens),
        tokenizer=str(corpus.tokenizer),
        seq_len=32,
    )
    job.model_copy(update=settings).write(run_dir)
    agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    return subprocess.run(
        [sys.executable, *(agent if world_size > 1 else []), *program, str(run_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def read(run_dir, name):
    return json.loads((run_dir / name).read_text())


SLOW = """
import sys, time
from pathlib import Path
from lmcore.eval.evaluation import Evaluation
from lmcore.eval.job import EvaluationJob
from lmcore.parallel.mesh import join_world
from lmcore.run_directory import write_result
from lmcore.run_process import leave

class Slow(Evaluation):
    def _baselines(self):
        time.sleep(7)
        return super()._baselines()

    def _samples(self):
        time.sleep(7)
        super()._samples()

run_dir = Path(sys.argv[1])
job = EvaluationJob.read(run_dir)
with join_world(job.launch) as world:
    result = Slow(job, run_dir, world, lambda: False).run()
    if world.is_main:
        write_result(run_dir, result)
leave(0)
"""


@pytest.mark.long
def test_what_the_main_process_does_alone_is_no_stall(corpus, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    launch = LaunchConfig(device="cpu", threads_per_process=1, stall_seconds=4)
    done = evaluate(corpus, tmp_path, world_size=2, program=[str(tmp_path / "slow.py")], launch=launch)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path, "result.json")["status"] == "completed"


@pytest.fixture(scope="module")
def with_sets(corpus, tmp_path_factory):
    """Settings of an evaluation on a text, which is that of the validation split, and on pairs."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [json.dumps({"text": text}) for text in corpus.texts["validation"]]
    (folder / "texts.jsonl").write_text("\n".join(rows))
    words = [text.split() for text in corpus.texts["train"]]
    pairs = [
        {"of": len(w) % 2, "sentence_good": " ".join(w), "sentence_bad": " ".join(w[::-1])} for w in words
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    sets = (
        EvaluationSetConfig(name="texts", path=f"{folder}/texts.jsonl"),
        EvaluationSetConfig(
            name="pairs", kind="minimal_pairs", path=f"{folder}/pairs.jsonl", group_field="of"
        ),
    )
    settings = EvaluationConfig(stride_tokens=8, micro_batch_size=4, prompts=PROMPTS, sets=sets)
    return {"evaluation": settings, "set_files": find_sets(settings)}


@pytest.fixture(scope="module")
def alone(corpus, with_sets, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("alone")
    done = evaluate(corpus, run_dir, **with_sets)
    assert done.returncode == 0, done.stderr
    return run_dir, done.stdout


def test_the_result_is_that_of_the_text(corpus, alone):
    run_dir, _ = alone
    result = read(run_dir, "result.json")
    num_bytes = sum(len(text.encode()) for text in corpus.texts["validation"])
    stream = TokenDataset(corpus.tokens / "validation")
    generator = Generator.load(corpus.model)
    windows = SlidingWindows(stream.num_tokens, 32, 8)
    loss_sum = score_text(WholeScorer(generator.model), stream, windows, batch_size=1)
    assert result["status"] == "completed"
    assert result["bits_per_byte"] == pytest.approx(loss_sum / math.log(2) / num_bytes, rel=1e-6)
    assert result["loss"] == pytest.approx(loss_sum / stream.num_tokens, rel=1e-6)
    counts = (result["num_bytes"], result["num_tokens"], result["num_documents"])
    assert counts == (num_bytes, stream.num_tokens, len(corpus.texts["validation"]))
    assert 0 < result["zstd_bits_per_byte"] <= result["zstd_per_document_bits_per_byte"]
    assert 0 < result["bigram_bits_per_byte"] < 8
    assert result["tokens_per_second"] > 0


def test_samples_and_progress_are_left_and_printed(corpus, alone):
    run_dir, printed = alone
    samples = read(run_dir, "samples.json")
    assert [sample["prompt"] for sample in samples] == list(PROMPTS)
    generator = Generator.load(corpus.model)
    assert [s["text"] for s in samples] == [generator.text(p, EvaluationConfig().sampling) for p in PROMPTS]
    for sample in samples:  # the pipe was read as lines, and an untrained model writes line ends of all kinds
        assert "\n".join((sample["prompt"] + sample["text"]).replace("\r\n", "\r").split("\r")) in printed
    assert "bits per byte" in printed
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"progress"}
    for label in ("compress for comparison", "score text", "score pairs", "draw samples"):
        done = [row["done"] for row in rows if row["label"] == label]
        assert done == sorted(done)
        assert done[-1] == next(row["total"] for row in rows if row["label"] == label)


def test_sets_are_in_the_result_and_pairs_in_the_samples(corpus, alone):
    run_dir, printed = alone
    result = read(run_dir, "result.json")
    texts, pairs = result["sets"]["texts"], result["sets"]["pairs"]
    assert texts["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-9)
    assert 0 < pairs["accuracy"] < 1
    assert pairs["num_pairs"] == len(corpus.texts["train"])
    counts = {name: group["num_pairs"] for name, group in pairs["groups"].items()}
    assert counts.keys() == {"0", "1"}
    rights = sum(group["accuracy"] * group["num_pairs"] for group in pairs["groups"].values())
    assert rights == pytest.approx(pairs["accuracy"] * pairs["num_pairs"])
    samples = read(run_dir, "set-samples.json")
    assert samples["texts"] == []
    assert samples["pairs"][0]["good_loss"] > samples["pairs"][0]["bad_loss"]
    assert f"texts: bits per byte {texts['bits_per_byte']:.4f}" in printed
    assert f"pairs: {pairs['accuracy']:.4f} of 60 pairs right" in printed


def test_a_set_that_changed_since_it_was_found_is_an_error(corpus, with_sets, tmp_path):
    files = tuple(dataclasses.replace(file, sha256="0" * 64) for file in with_sets["set_files"])
    done = evaluate(corpus, tmp_path / "run", **with_sets | {"set_files": files})
    assert done.returncode == 1
    assert "texts.jsonl of source 'texts' changed" in read(tmp_path / "run", "result.json")["error"]


def test_two_processes_find_what_one_finds(corpus, with_sets, alone, tmp_path):
    done = evaluate(corpus, tmp_path / "run", world_size=2, **with_sets)
    assert done.returncode == 0, done.stderr
    one, two = read(alone[0], "result.json"), read(tmp_path / "run", "result.json")
    for name in ("bits_per_byte", "loss", "zstd_bits_per_byte", "bigram_bits_per_byte"):
        assert two[name] == pytest.approx(one[name], abs=1e-6)
    assert two["sets"]["texts"] == pytest.approx(one["sets"]["texts"], abs=1e-6)
    assert two["sets"]["pairs"] == one["sets"]["pairs"]
    assert read(alone[0], "samples.json") == read(tmp_path / "run", "samples.json")


def test_what_does_not_fit_fails_with_a_result_and_one_line(corpus, tmp_path):
    done = evaluate(corpus, tmp_path / "run", seq_len=64)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    result = read(tmp_path / "run", "result.json")
    assert (result["status"], result["kind"]) == ("failed", "ConfigError")
    assert "longer than the model" in result["error"]


def test_an_evaluation_that_is_asked_to_stop_says_so(corpus, tmp_path):
    settings = EvaluationConfig(stride_tokens=8, micro_batch_size=1)
    paths = {"model": str(corpus.model), "tokens": str(corpus.tokens), "tokenizer": str(corpus.tokenizer)}
    job = EvaluationJob(evaluation=settings, launch=LaunchConfig(), seq_len=32, **paths)
    result = Evaluation(job, tmp_path, World(0, 1, torch.device("cpu")), lambda: True).run()
    assert result["status"] == "preempted"
    assert not (tmp_path / "samples.json").exists()
