"""Where the mill keeps what it makes: one folder, ``GRISTMILL_HOME``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "GRISTMILL_HOME"


@dataclass(frozen=True)
class Home:
    """The folder that holds artifacts, runs, MLflow's and Prefect's databases."""

    root: Path

    @classmethod
    def here(cls) -> Home:
        """``$GRISTMILL_HOME``, or ``.gristmill`` below the current folder."""
        return cls(Path(os.environ.get(VARIABLE) or ".gristmill").expanduser().resolve())

    @property
    def store(self) -> Path:
        """Artifacts, by stage and key."""
        return self.root / "store"

    @property
    def growth(self) -> Path:
        """What came when, of sources that grow."""
        return self.root / "growth"

    @property
    def runs(self) -> Path:
        """One directory a run: what it was asked, did and logged."""
        return self.root / "runs"

    @property
    def prefect(self) -> Path:
        """Prefect's database, settings and results."""
        return self.root / "prefect"

    @property
    def mlflow_database(self) -> Path:
        """MLflow's SQLite file."""
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Files that MLflow runs hold."""
        return self.root / "mlflow"

    @property
    def models(self) -> Path:
        """Registered models that were downloaded because their own files are gone, by digest."""
        return self.root / "models"

    @property
    def services(self) -> Path:
        """What ``gristmill up`` knows of the servers it started, and their logs."""
        return self.root / "services"
