"""A model is measured alike on any layout: bits per byte, evaluation sets, samples."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmcore.config import EvaluationConfig, LaunchConfig, ParallelConfig
from lmcore.eval.job import EvaluationJob
from lmcore.eval.sets import find_sets
from lmcore.model.io import save_model

pytestmark = pytest.mark.long
LAYOUTS = {  # of four processes, and windows at a time
    "replicas": ({"dp_replicate": 4}, 3),
    "fsdp": ({"dp_shard": 4}, 5),
    "hsdp": ({"dp_replicate": 2, "dp_shard": 2}, 1),
    "fsdp x tp": ({"dp_shard": 2, "tp": 2}, 3),
    "tp x cp": ({"tp": 2, "cp": 2}, 2),
    "fsdp x pp": ({"dp_shard": 2, "pp": 2}, 4),
    "tp x pp zbv": ({"tp": 2, "pp": 2, "pipeline_schedule": "zbv"}, 3),
    "cp x ep": ({"cp": 2, "dp_shard": 2, "ep": 2}, 64),
}
SEQ_LEN = 36  # divided by tp x cp, which needs multiples of 4
DENSE = {"num_layers": 4, "num_heads": 4, "tie_embeddings": True, "max_seq_len": SEQ_LEN}
MIXED = {**DENSE, "moe": {"num_experts": 4, "num_experts_per_token": 2, "intermediate_size": 32}}
PAIRS = [
    ("def self", "self def"),
    ("return x = 日本", "日本 return x if ="),
    ("if", "else if else naïve 🙂 " * 9),
]


@pytest.fixture
def make_job(corpus, tmp_path):
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    (tmp_path / "texts.txt").write_text("def naïve return self\n" * 30)
    evaluation = {
        "stride_tokens": 9,
        "prompts": ("def", "日本 "),
        "sampling": {"max_new_tokens": 6, "temperature": 0},
        "sets": (
            {"name": "pairs", "kind": "minimal_pairs", "path": str(tmp_path / "pairs.jsonl")},
            {"name": "texts", "kind": "text", "path": str(tmp_path / "texts.txt")},
        ),
    }
    for name, shape in (("dense", DENSE), ("mixed", MIXED)):
        model = corpus.make_model(**shape)
        save_model(tmp_path / name, model, model.config, corpus.vocab_size, corpus.tokenizer)

    def make(name, model, batch_size, parallel=None):
        config = EvaluationConfig(**evaluation, micro_batch_size=batch_size)
        EvaluationJob(
            evaluation=config,
            launch=LaunchConfig(device="cpu", threads_per_process=1),
            parallel=parallel,
            model=str(tmp_path / model),
            tokens=str(corpus.tokens),
            tokenizer=str(corpus.tokenizer),
            document_mask=name != "fsdp",
            seq_len=SEQ_LEN,
            set_files=find_sets(config),
        ).write(tmp_path / name)
        return tmp_path / name

    return make


def evaluate(run_dirs, size):
    script = [str(Path(__file__).with_name("run_jobs.py")), *map(str, run_dirs)]
    agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run(
        [sys.executable, *(agent if size > 1 else []), *script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_a_model_is_measured_alike_on_any_layout(make_job):
    wholes, divided = {}, {}
    for name, (parallel, batch_size) in LAYOUTS.items():
        model = "mixed" if "ep" in name or "hsdp" in name else "dense"
        wholes[name] = make_job(f"whole-{name}" if name != "fsdp" else "fsdp", model, 64)
        if name == "fsdp":  # without a document mask
            wholes[name] = wholes[name].rename(wholes[name].with_name("whole-fsdp"))
        divided[name] = make_job(name, model, batch_size, ParallelConfig(**{"dp_replicate": 1, **parallel}))
    evaluate(wholes.values(), 1)
    evaluate(divided.values(), 4)
    for name in LAYOUTS:
        found, expected = (json.loads((d / "result.json").read_text()) for d in (divided[name], wholes[name]))
        for figure in ("bits_per_byte", "loss"):
            assert found[figure] == pytest.approx(expected[figure], rel=1e-6), name
            assert found["sets"]["texts"][figure] == pytest.approx(
                expected["sets"]["texts"][figure], rel=1e-6
            )
        assert found["sets"]["pairs"]["accuracy"] == expected["sets"]["pairs"]["accuracy"]
        samples = [(d / "samples.json").read_text() for d in (divided[name], wholes[name])]
        assert samples[0] == samples[1], name
