"""One small corpus, one recipe and one home for the tests that turn the whole mill."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WORDS = (
    "mill stone grain flour water wheel sack miller river bread oven field wind sail gear shaft hopper sieve "
    "the a of and that turns grinds pours carries under over with from into slowly again before after"
)


def write_corpus(folder: Path, num_documents: int = 240, seed: int = 7) -> Path:
    """Write documents that a tiny model can learn something from, some of them twice."""
    draw, words = random.Random(seed), WORDS.split()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_documents):
            sentences = [" ".join(draw.choices(words, k=draw.randint(6, 12))) + "." for _ in range(20)]
            row = json.dumps({"id": f"d{number}", "text": "\n".join(sentences)}) + "\n"
            file.write(row)
            if number % 40 == 0:
                file.write(row)
    return path


def tiny_recipe(corpus: Path, **changes) -> dict:
    """A recipe that a run takes seconds for."""
    recipe = {
        "name": "tiny",
        "data": {
            "sources": [{"name": "demo", "kind": "files", "path": str(corpus), "id_field": "id"}],
            "quality": {"profile": "prose", "min_words": 20},
            "validation_fraction": 0.1,
            "tokenizer": {"vocab_size": 300},
            "workers": 1,
        },
        "model": {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "max_seq_len": 64},
        "train": {
            "steps": 12,
            "seq_len": 32,
            "global_batch_tokens": 512,
            "micro_batch_size": 4,
            "schedule": {"warmup_steps": 2},
            "validate_every": 6,
            "checkpoint_every": 4,
            "launch": {"device": "cpu"},
        },
        "evaluation": {"stride_tokens": 16, "prompts": ["the mill "], "sampling": {"max_new_tokens": 8}},
    }
    return recipe | changes


class Mill:
    """Runs the command line on a home and a recipe file of its own."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.recipe = root / "tiny.yaml"
        self.corpus = write_corpus(root / "data")
        self.recipe.write_text(yaml.safe_dump(tiny_recipe(self.corpus)))
        self._root = root

    def environment(self, **extra: str) -> dict[str, str]:
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))
        }
        return own | {"GRISTMILL_HOME": str(self.home), "OMP_NUM_THREADS": "1"} | extra

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.Popen(
            command,
            env=self.environment(**extra),
            cwd=self._root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **extra)
        out, err = process.communicate(timeout=280)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *arguments: str, name: str = "run", **extra: str) -> dict:
        summary = self._root / f"{name}.json"
        done = self.call("run", str(self.recipe), "--json", str(summary), *arguments, **extra)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(summary.read_text())


@pytest.fixture(scope="session")
def make_mill(tmp_path_factory):
    return lambda name: Mill(tmp_path_factory.mktemp(name))
