"""What an evaluating process is told: the ``config.json`` of its run directory."""

from __future__ import annotations

from lmcore.config import EvaluationConfig, LaunchConfig, ParallelConfig, setting
from lmcore.data.sources import SourceFile
from lmcore.run_directory import RunJob


class EvaluationJob(RunJob):
    """One evaluation: the settings, and where its inputs are."""

    evaluation: EvaluationConfig = setting(..., "How the model is measured")
    launch: LaunchConfig = setting(..., "How its processes are started and stopped")
    parallel: ParallelConfig | None = setting(
        None, "How the model is divided over them; none: each holds all of it and scores a share of the text"
    )
    model: str = setting(..., "Model directory")
    tokens: str = setting(..., "Directory of the tokens artifact")
    tokenizer: str = setting(..., "Directory of the tokenizer that made the tokens")
    document_mask: bool = setting(False, "Attention sees only its own document, as in training")
    seq_len: int = setting(..., "Tokens of a window, context included", unit="tokens", ge=1)
    set_files: tuple[SourceFile, ...] = setting((), "Files of the evaluation sets")
