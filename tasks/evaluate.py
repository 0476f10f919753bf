"""Evaluation: one stage, in processes of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from lmcore.config import DataConfig, EvaluationConfig, Identity, Json, ParallelConfig, Recipe, identify
from lmcore.data import prepare
from lmcore.data.documents import libraries_of
from lmcore.data.sources import SourceFile, digest_of
from lmcore.errors import StorageError
from lmcore.eval.gate import Measured
from lmcore.eval.job import EvaluationJob
from lmcore.eval.sets import check_sets, files_of, find_sets
from lmcore.home import Home
from lmcore.progress import Progress
from lmcore.store import Artifact, Stage, hash_files, sha256_json
from tasks import runs
from tasks.prepare import Prepared, tokens_stage
from tasks.progress import note
from tasks.stages import STAGE_OPTIONS, ensure
from tasks.tracked import FlowRun
from tasks.tracking_registry import ModelVersion
from tasks.train import HEADLINE, run_job

EVALUATE_VERSION = 1
HELD_OUT = "validation_digest"  # of the protocol: which documents
MEASURES = {"text": "bits_per_byte", "minimal_pairs": "accuracy"}


@dataclass(frozen=True)
class Subject:
    """A model to be measured, and how it reads: each model as it was trained, whoever it is compared with."""

    name: str
    path: Path
    digest: str
    seq_len: int
    document_mask: bool
    parallel: ParallelConfig | None = None  # as it was trained; others may not fit the layout


def trained_subject(recipe: Recipe, trained: Artifact) -> Subject:
    """The model that ``recipe`` trained."""
    train = recipe.train
    digest = model_digest(trained)
    return Subject(
        recipe.name, trained.path / "model", digest, train.seq_len, train.document_mask, train.parallel
    )


def take_sets(config: EvaluationConfig) -> tuple[SourceFile, ...]:
    """The files of the evaluation sets, found and read once before anything else is done."""
    return find_evaluation_sets(config) if config.sets else ()


@task(name="find evaluation sets", task_run_name="find evaluation sets", **STAGE_OPTIONS)
def find_evaluation_sets(config: EvaluationConfig) -> tuple[SourceFile, ...]:
    """List and hash the files of the evaluation sets, and see that they can be scored.

    Raises:
        DataError: a set matches nothing, holds nothing to score, or a record cannot be read.
    """
    files = find_sets(config)
    check_sets(config, files)
    return files


def evaluate_stage(
    recipe: Recipe, subject: Subject, tokens: Artifact, sets: tuple[SourceFile, ...] = ()
) -> Stage:
    """The stage that measures a model on the validation split and on the sets of these files."""
    settings = identify(evaluation=recipe.evaluation)
    reading: dict[str, Json] = {
        "train.seq_len": subject.seq_len,
        "train.document_mask": subject.document_mask,
    }
    inputs = {"model": subject.digest, "tokens": tokens.digest}
    deciding: tuple[str, ...] = ("torch",)
    if sets:
        inputs["evaluation sets"] = digest_of(sets)
        deciding = ("torch", "tokenizers", *libraries_of(DataConfig(), sets))
    return Stage(
        "evaluate",
        EVALUATE_VERSION,
        Identity(settings.values | reading, settings.chosen | reading),
        inputs,
        deciding,
    )


def evaluation_run_directory(key: str) -> Path:
    """Where the evaluation of this key runs."""
    return Home.here().runs / f"evaluate-{key[:16]}"


@task(name="evaluate", task_run_name="evaluate the model", **STAGE_OPTIONS)
def evaluate_model(
    recipe: Recipe,
    prepared: Prepared,
    trained: Artifact,
    run: FlowRun,
    sets: tuple[SourceFile, ...] = (),
) -> Artifact:
    """Measure bits per byte beside the baselines, score the sets of these files, and draw samples."""
    evaluated = _evaluate(recipe, trained_subject(recipe, trained), prepared.tokens, run, sets)
    run.refer_to(evaluated, evaluation_run_directory(evaluated.key))
    return evaluated


@task(name="evaluate champion", task_run_name="evaluate the champion on the same data", **STAGE_OPTIONS)
def evaluate_champion(recipe: Recipe, prepared: Prepared, champion: ModelVersion, run: FlowRun) -> Measured:
    """Measure the champion on the documents that the challenger was measured on, with its own tokenizer.

    Raises:
        StorageError: its files are not on this machine.
    """
    model = Path(champion.model_path)
    missing = [name for name in ("model.safetensors", "tokenizer.json") if not (model / name).is_file()]
    if missing:
        raise StorageError(
            f"the champion, version {champion.version} of {champion.name}, cannot be evaluated",
            expected=f"its files at {model}",
            found=f"no {' and no '.join(missing)}",
            remedy="Bring them back, or remove the alias `champion` in MLflow.",
        )
    if champion.model_digest and sha256_json(hash_files(model)) != champion.model_digest:
        raise StorageError(
            f"the champion, version {champion.version} of {champion.name}, is not what was registered",
            expected=f"files of digest {champion.model_digest[:12]} at {model}",
            found="others",
            remedy="Bring them back, or remove the alias `champion` in MLflow.",
        )
    # The gate asks nothing of the sets.
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"sets": ()})})
    changed = changes_of_protocol(champion.protocol, protocol(recipe, prepared))
    who, was = f"the champion, version {champion.version}", f"{champion.bits_per_byte:.4f} bits per byte"
    say = partial(note, get_run_logger())
    say(f"{who}, is to be measured as the challenger was: {changed}; it needed {was} before")
    tokens = _encode_for(
        recipe.data, model, prepared.documents, prepared.splits, why=f"for {who}: by its own tokenizer"
    )
    name = f"{champion.name} version {champion.version}, the champion"
    subject = Subject(name, model, champion.model_digest, champion.seq_len, champion.document_mask)
    measured = _evaluate(recipe, subject, tokens, run, why=f"of {who}: {changed}")
    score = measured.summary["bits_per_byte"]
    so_before = ", as was found when it was measured so before" * (measured.status == "reused")
    say(f"{who}: {was} before, {score:.4f} now{so_before}")
    return Measured(
        bits_per_byte=score,
        data_digest=protocol_digest(recipe, prepared),
        remark=f"the champion was measured again, since {changed}: {was} before",
    )


def model_digest(trained: Artifact) -> str:
    """Digest of a trained model's files, independent of how the run that made it was logged."""
    return sha256_json(hash_files(trained.path / "model"))


def protocol_digest(recipe: Recipe, prepared: Prepared) -> str:
    """Digest of the held-out documents and of how they are scored: equal ones can be compared."""
    return sha256_json(list(protocol(recipe, prepared).values()))


def protocol(recipe: Recipe, prepared: Prepared) -> dict[str, str | int]:
    """What decides whether two scores can be compared, by name."""
    evaluation = recipe.evaluation
    return {
        HELD_OUT: prepared.splits.summary["validation_digest"],
        "evaluation.stride_tokens": evaluation.stride_tokens,
        "evaluation.max_bytes": evaluation.max_bytes,
    }


def changes_of_protocol(then: Mapping[str, str | int], now: Mapping[str, str | int]) -> str:
    """What differs between how a model was measured and how one is now, in words."""
    if not then:
        return "how it was measured was not kept in full"
    words = []
    for name, value in now.items():
        if name not in then:
            words.append(f"{name} was not kept")
        elif then[name] != value:
            went = f"{name} went from {then[name]} to {value}"
            words.append("the held-out documents are others" if name == HELD_OUT else went)
    return ", ".join(words)


def _encode_for(
    config: DataConfig, model: Path, documents: Artifact, splits: Artifact, *, why: str
) -> Artifact:
    digest = sha256_json(hash_files(model)["tokenizer.json"])
    tokenizer = Artifact("tokenizer", digest, model, "reused", "", 0.0, {}, digest)
    return ensure(
        tokens_stage(config, documents, splits, tokenizer),
        lambda out, progress: prepare.build_tokens(config, documents.path, splits.path, model, out, progress),
        why=why,
    )


def _evaluate(
    recipe: Recipe,
    subject: Subject,
    tokens: Artifact,
    run: FlowRun,
    sets: tuple[SourceFile, ...] = (),
    *,
    why: str = "",
) -> Artifact:
    stage = evaluate_stage(recipe, subject, tokens, sets)

    def build(out: Path, progress: Progress) -> Mapping[str, Any]:
        run_dir = evaluation_run_directory(stage.key)
        EvaluationJob(
            evaluation=recipe.evaluation.model_copy(
                update={"stride_tokens": min(recipe.evaluation.stride_tokens, subject.seq_len)}
            ),
            launch=recipe.train.launch,
            parallel=subject.parallel,
            model=str(subject.path),
            tokens=str(tokens.path),
            tokenizer=str(subject.path),
            document_mask=subject.document_mask,
            seq_len=subject.seq_len,
            set_files=sets,
        ).write(run_dir)
        _record_run(run_dir, recipe, subject, stage, _datasets(recipe, tokens, sets), run)
        result = run_job("lmcore.eval", run_dir, recipe, run, progress, metrics_of=_metrics_of)
        for name in _sample_files(recipe):
            shutil.copy2(run_dir / name, out / name)
        return {**result, "samples": json.loads((out / "samples.json").read_text(encoding="utf-8"))}

    return ensure(stage, build, why=why)


def _datasets(recipe: Recipe, tokens: Artifact, sets: tuple[SourceFile, ...]) -> list[runs.Dataset]:
    """What the model is measured on."""
    validation = runs.datasets_of(recipe.name, tokens, {"validation": "evaluation"})
    of_sets = []
    for one in recipe.evaluation.sets:
        files = files_of(one, sets)
        of_sets.append(
            runs.Dataset(
                name=one.name,
                digest=digest_of(files)[:32],
                source=one.path,
                context="evaluation",
                profile={"num_bytes": sum(file.num_bytes for file in files)},
            )
        )
    return [*validation, *of_sets]


def _record_run(
    run_dir: Path,
    recipe: Recipe,
    subject: Subject,
    stage: Stage,
    datasets: list[runs.Dataset],
    run: FlowRun,
) -> None:
    evaluation = recipe.evaluation
    runs.open_run(
        run_dir,
        name=f"evaluate {subject.name if subject.name != recipe.name else run.name}",
        kind="evaluate",
        experiment=recipe.tracking.experiment,
        place=run.tracker.place,
        parent=str(run.directory),
        tags={
            **runs.standard_tags(),
            "gristmill.stage.evaluate": stage.key,
            "gristmill.model_path": str(subject.path),
            "gristmill.run_dir": str(run_dir),
            "mlflow.note.content": f"Evaluation of {subject.name} on held-out text, window by window of "
            f"{subject.seq_len:,} tokens.",
        },
        params={
            "stride_tokens": str(evaluation.stride_tokens),
            "max_bytes": str(evaluation.max_bytes),
            "temperature": str(evaluation.sampling.temperature),
            "top_k": str(evaluation.sampling.top_k),
            "top_p": str(evaluation.sampling.top_p),
        },
        datasets=datasets,
        files={
            name: str(run_dir / name)
            for name in ("config.json", "log.txt", "result.json", *_sample_files(recipe))
        },
    )


def _sample_files(recipe: Recipe) -> tuple[str, ...]:
    """What people look at beside the figures."""
    return ("samples.json", *(["set-samples.json"] if recipe.evaluation.sets else []))


def _metrics_of(summary: Mapping[str, Any]) -> dict[str, float]:
    return evaluation_metrics(summary) | {HEADLINE: float(summary["bits_per_byte"])}


def evaluation_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation under MLflow's group ``eval/``."""
    names = (
        "bits_per_byte",
        "zstd_bits_per_byte",
        "zstd_per_document_bits_per_byte",
        "bigram_bits_per_byte",
        "loss",
    )
    found = {f"eval/{name}": float(summary[name]) for name in names if summary.get(name) is not None}
    for name, figures in summary.get("sets", {}).items():
        measure = MEASURES[figures["kind"]]
        found[f"eval/{name}/{measure}"] = float(figures[measure])
    return found
