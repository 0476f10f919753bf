"""The same shards on a real Ray cluster of two nodes: the same bytes come out."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from tests.conftest import write_corpus

ray_cluster = pytest.importorskip("ray.cluster_utils", reason="make ray installs it")


@pytest.fixture(scope="module")
def cluster():
    made = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def prepare(folder, name, recipe, *arguments):
    home = folder / name
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    command = [sys.executable, "-m", "flows.cli", "prepare", str(recipe), *arguments]
    done = subprocess.run(
        command,
        env=own | {"GRISTMILL_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifests = [json.loads(path.read_text()) for path in sorted(home.glob("store/*/*/manifest.json"))]
    return sorted((m["stage"], m["key"], m["digest"]) for m in manifests)


def test_two_nodes_make_the_same_artifacts_as_this_machine(cluster, tmp_path):
    corpus = write_corpus(tmp_path / "raw")
    (tmp_path / "corpus").mkdir()
    for number, line in enumerate(corpus.read_text().splitlines()):
        (tmp_path / "corpus" / f"{number:03d}.txt").write_text(json.loads(line)["text"])
    recipe = tmp_path / "recipe.yaml"
    data = {
        "sources": [{"name": "corpus", "kind": "files", "path": f"{tmp_path}/corpus/*.txt"}],
        "near_dedup": {"enabled": True},
        "tokenizer": {"vocab_size": 400},
        "shard_bytes": 20_000,
    }
    recipe.write_text(yaml.safe_dump({"name": "spread", "data": data}))
    alone = prepare(tmp_path, "alone", recipe, "--set", "data.workers=1")
    assert sum(stage == "documents-shard" for stage, _, _ in alone) > 2
    settings = ("--set", "data.executor=ray", "--set", f"data.ray_address={cluster.address}")
    assert prepare(tmp_path, "spread", recipe, *settings) == alone
