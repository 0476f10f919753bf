"""The model registry of MLflow: versions that hold their files, and their aliases.

A version is an MLflow model: anything that speaks MLflow loads, serves and downloads it, with no file of this
machine. Its figures are metrics and parameters of the logged model behind it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lmcore.errors import DataError
from tasks.runs import RunRecord
from tasks.tracking import Tracker, service_errors
from tasks.tracking_files import FILES, write_mlflow_model

DIGEST, PATH = "gristmill.model_digest", "gristmill.model_path"
# What a version of earlier commits has as tags, and one of today as parameters of its logged model.
_FACTS = (
    "bits_per_byte",
    "data_digest",
    "protocol",
    "seq_len",
    "document_mask",
    "split_seed",
    "validation_fraction",
)


class ModelVersion(BaseModel):
    """A registered version: where its files are, and how it was measured (``protocol``; earlier: unknown)."""

    name: str
    version: str
    aliases: list[str]
    model_path: str
    model_digest: str
    bits_per_byte: float
    data_digest: str
    protocol: dict[str, str | int] = {}
    seq_len: int
    document_mask: bool
    split_seed: int
    validation_fraction: float


class Candidate(BaseModel):
    """A model that was evaluated and can be registered."""

    name: str
    model_path: str
    model_digest: str
    bits_per_byte: float
    data_digest: str
    protocol: dict[str, str | int] = {}
    seq_len: int
    document_mask: bool
    split_seed: int
    validation_fraction: float
    metrics: dict[str, float]
    tags: dict[str, str]
    prompt: str = "The "
    description: str = ""


class Registry:
    """Registered models on the MLflow of ``tracker``."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def register(self, candidate: Candidate, evaluation_run: Path) -> ModelVersion:
        """Return the version of this very model, registered now unless it was before.

        ``evaluation_run`` is the run directory that the version is linked to.

        Raises:
            ServiceError: MLflow cannot be reached.
        """
        with service_errors(self._tracker.uri):
            for found in self._tracker.client.search_model_versions(
                f"name = '{candidate.name}'", order_by=["version_number DESC"]
            ):
                if found.tags.get(DIGEST) == candidate.model_digest:
                    return self._again(found, candidate)
            return self._create(candidate, evaluation_run)

    def champion(self, name: str) -> ModelVersion | None:
        """The version with the alias ``champion``, if there is one.

        Raises:
            DataError: it was not registered by gristmill, so there is no figure to compare with.
            ServiceError: MLflow cannot be reached.
        """
        client = self._tracker.client
        with service_errors(self._tracker.uri):
            registered = client.search_registered_models(f"name = '{name}'", max_results=1)
            number = registered[0].aliases.get("champion") if registered else None
            if number is None:
                return None
            version = client.get_model_version(name, number)
        if DIGEST not in version.tags:
            raise DataError(
                f"the champion, version {number} of {name}, cannot be compared with",
                expected="a version that gristmill registered, with its figures as tags",
                found="none of these tags",
                remedy="Move the alias `champion` to one that it registered, or remove it, in MLflow.",
            )
        return self._model_version(version, list(version.aliases))

    def all_versions(self, name: str) -> list[ModelVersion]:
        """As ``versions``.

        Raises:
            ServiceError: MLflow cannot be reached.
        """
        with service_errors(self._tracker.uri):
            return self.versions(name)

    def mark(self, version: ModelVersion, key: str, value: str) -> None:
        """Set a tag of the logged model behind ``version``: the registry's page shows the version's own."""
        client = self._tracker.client
        with service_errors(self._tracker.uri):
            model_id = _model_id(client.get_model_version(version.name, version.version))
            client.set_logged_model_tags(model_id, {key: value})

    def marked(self, version: ModelVersion, key: str) -> str | None:
        """A tag of the logged model behind ``version``; None: it has none."""
        client = self._tracker.client
        with service_errors(self._tracker.uri):
            model_id = _model_id(client.get_model_version(version.name, version.version))
            return client.get_logged_model(model_id).tags.get(key) if model_id else None

    def remove(self, version: ModelVersion) -> None:
        """Delete ``version``, which another of the same model makes needless."""
        with service_errors(self._tracker.uri):
            self._tracker.client.delete_model_version(version.name, version.version)

    def challenge(self, version: ModelVersion) -> None:
        """Give ``version`` the alias ``challenger``."""
        with service_errors(self._tracker.uri):
            self._tracker.client.set_registered_model_alias(version.name, "challenger", version.version)

    def crown(self, version: ModelVersion) -> None:
        """Move the alias ``champion`` to ``version``, which is no longer a challenger."""
        client = self._tracker.client
        with service_errors(self._tracker.uri):
            client.set_registered_model_alias(version.name, "champion", version.version)
            if "challenger" in self.aliases(version):
                client.delete_registered_model_alias(version.name, "challenger")

    def note(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with service_errors(self._tracker.uri):
            for key, value in tags.items():
                self._tracker.client.set_model_version_tag(version.name, version.version, key, value)

    def aliases(self, version: ModelVersion) -> list[str]:
        """Aliases that ``version`` has now."""
        with service_errors(self._tracker.uri):
            return list(self._tracker.client.get_model_version(version.name, version.version).aliases)

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of ``name`` that this project registered, newest first."""
        client = self._tracker.client
        found = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
        aliases = dict(client.get_registered_model(name).aliases) if found else {}
        return [
            self._model_version(
                v, sorted(a for a, number in aliases.items() if str(number) == str(v.version))
            )
            for v in found
            if DIGEST in v.tags
        ]

    def describe(self, version: ModelVersion, text: str) -> None:
        """Add a paragraph of Markdown to the description of a version, unless it is there."""
        with service_errors(self._tracker.uri):
            told = self._tracker.client.get_model_version(version.name, version.version).description or ""
            if text not in told:
                whole = f"{told}\n\n{text}".strip()
                self._tracker.client.update_model_version(version.name, version.version, whole)

    def at_hand(self, version: ModelVersion) -> ModelVersion:
        """Return ``version`` with its files on this machine, downloaded from MLflow where they are gone."""
        import mlflow

        if (Path(version.model_path) / "config.json").is_file():
            return version
        target = self._tracker.home.models / version.model_digest
        if not (target / "config.json").is_file():
            mlflow.set_tracking_uri(self._tracker.uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            with service_errors(self._tracker.uri), tempfile.TemporaryDirectory(dir=target.parent) as work:
                uri = f"models:/{version.name}/{version.version}"
                found = mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/{FILES}", dst_path=work)
                shutil.move(found, target)
        return version.model_copy(update={"model_path": str(target)})

    def _again(self, found: Any, candidate: Candidate) -> ModelVersion:
        """The version of these very files, which may have moved or been made again elsewhere."""
        version = self._model_version(found, list(found.aliases))
        if model_id := _model_id(found):
            self._upload(self._tracker.client.get_logged_model(model_id), candidate)
        if candidate.model_path != version.model_path:
            self.note(version, {PATH: candidate.model_path})
        return version.model_copy(
            update={"model_path": candidate.model_path, "aliases": self.aliases(version)}
        )

    def _create(self, candidate: Candidate, evaluation_run: Path) -> ModelVersion:
        import mlflow
        from mlflow.exceptions import MlflowException

        client = self._tracker.client
        mlflow.set_tracking_uri(self._tracker.uri)  # "models:/" addresses are looked up there
        run_id = self._tracker.sync(evaluation_run, sure=True)
        experiment = self._tracker.experiment_id(RunRecord.read(evaluation_run).experiment)
        model_id = self._logged_model(experiment, run_id, candidate)
        with contextlib.suppress(MlflowException):  # it exists; anything else shows in the next call
            client.create_registered_model(candidate.name, description=_about(candidate.name))
        created = client.create_model_version(
            candidate.name,
            f"models:/{model_id}",
            run_id,
            tags={DIGEST: candidate.model_digest, PATH: candidate.model_path},
            description=candidate.description,
            model_id=model_id,
        )
        return self._model_version(client.get_model_version(candidate.name, created.version), [])

    def _logged_model(self, experiment: str, run_id: str, candidate: Candidate) -> str:
        """Id of MLflow's logged model of these very files: an earlier try may have left one."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

        client = self._tracker.client
        same = f"name = '{candidate.name}' AND tags.`{DIGEST}` = '{candidate.model_digest}'"
        found = client.search_logged_models([experiment], filter_string=same, max_results=1)
        model = (
            found[0]
            if found
            else client.create_logged_model(
                experiment,
                name=candidate.name,
                source_run_id=run_id,
                tags={DIGEST: candidate.model_digest, **candidate.tags},
                params={name: _plain(getattr(candidate, name)) for name in _FACTS},
                model_type="causal-lm",
            )
        )
        self._upload(model, candidate)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        outputs = client.get_run(run_id).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else ())]:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        metrics = []
        for key, value in candidate.metrics.items():
            # What the run has is the same row again at the same time, and not a second one.
            had = [
                m.timestamp for m in client.get_metric_history(run_id, key) if (m.step, m.value) == (0, value)
            ]
            at = had[0] if had else int(time.time() * 1000)
            metrics.append(Metric(key, value, at, 0, model_id=model.model_id))
        client.log_batch(run_id, metrics=metrics)
        return str(model.model_id)

    def _upload(self, model: Any, candidate: Candidate) -> None:
        """Give a logged model its files; ``MLmodel`` comes last, so one that is there is whole."""
        import mlflow

        client, source = self._tracker.client, Path(candidate.model_path)
        mlflow.set_tracking_uri(self._tracker.uri)
        there = mlflow.artifacts.list_artifacts(artifact_uri=model.artifact_location)
        if any(one.path.rpartition("/")[2] == "MLmodel" for one in there or ()):
            return
        self._tracker.home.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._tracker.home.root, prefix=".mlflow-model-") as work:
            written = Path(work) / "written"
            write_mlflow_model(written, source, model.model_id, model.source_run_id, candidate.prompt)
            last = Path(work) / "MLmodel"
            (written / "MLmodel").rename(last)
            client.log_model_artifacts(model.model_id, str(written))
            # Straight from where they are: weights may be large.
            for weights in sorted(source.glob("*.safetensors*")):
                client.log_model_artifact(model.model_id, str(weights), FILES)
            client.log_model_artifact(model.model_id, str(last))

    def _model_version(self, version: Any, aliases: list[str]) -> ModelVersion:
        facts = {name: version.tags.get(f"gristmill.{name}") for name in _FACTS}
        if facts["bits_per_byte"] is None:
            facts = dict(self._tracker.client.get_logged_model(_model_id(version)).params)
        return ModelVersion(
            name=version.name,
            version=str(version.version),
            aliases=aliases,
            model_path=version.tags[PATH],
            model_digest=version.tags[DIGEST],
            bits_per_byte=float(facts["bits_per_byte"]),
            data_digest=facts["data_digest"],
            protocol=json.loads(facts.get("protocol") or "{}"),
            seq_len=int(facts["seq_len"]),
            document_mask=facts["document_mask"] == "true",
            split_seed=int(facts["split_seed"]),
            validation_fraction=float(facts["validation_fraction"]),
        )


def _model_id(version: Any) -> str:
    """Id of the logged model behind a version: MLflow's own table keeps its address alone."""
    source = str(version.source)
    return version.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _about(name: str) -> str:
    return (
        "Language models trained, measured and registered by gristmill.\n\n"
        "`champion` is the best version so far, `challenger` the newest that was not promoted.\n\n"
        f'```python\nimport mlflow\nmodel = mlflow.pyfunc.load_model("models:/{name}@champion")\n'
        'model.predict(["The "], params={"max_new_tokens": 40})\n```\n'
    )
