"""Where the mill keeps what it makes: one folder, ``GRISTMILL_HOME``."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lmcore.errors import ConfigError, StorageError

VARIABLE = "GRISTMILL_HOME"


@dataclass(frozen=True)
class Home:
    """The folder that holds artifacts, runs, MLflow's and Prefect's databases."""

    root: Path

    @classmethod
    def here(cls) -> Home:
        """``$GRISTMILL_HOME``, or ``.gristmill`` below the current folder.

        Raises:
            ConfigError: it cannot be a folder.
        """
        wanted = os.environ.get(VARIABLE) or ".gristmill"
        with _named(Path(wanted)):
            return cls(Path(wanted).expanduser().resolve())

    def make(self) -> None:
        """Make the folder, and those of Prefect in it, if they are missing.

        Raises:
            ConfigError: something else is in its place.
            StorageError: it cannot be made.
        """
        with _named(self.root):
            self.prefect.mkdir(parents=True, exist_ok=True)

    def require_writable(self) -> None:
        """Make the folder if it is missing, and write to it.

        Raises:
            ConfigError: something else is in its place.
            StorageError: it cannot be written.
        """
        self.make()
        with _named(self.root), tempfile.TemporaryFile(dir=self.root):
            pass
        for folder in (self.prefect, self.runs, self.store):
            if folder.exists():
                with _named(folder), tempfile.TemporaryFile(dir=folder):
                    pass

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


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Turn what the system refuses inside into an error that names the variable and the folder."""
    told = f"{VARIABLE} is {os.environ[VARIABLE]}" if os.environ.get(VARIABLE) else f"{VARIABLE} is not set"
    remedy = f"Set {VARIABLE} to a folder that this user may write to; it is made if it is missing."
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        place = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        raise ConfigError(
            f"the home of gristmill cannot be {folder}",
            expected="a folder, or a path where one can be made",
            found=f"a file at {place} ({told})",
            remedy=remedy,
        ) from None
    except RuntimeError as error:  # a user that is not there, or links in a circle
        raise ConfigError(
            f"the home of gristmill cannot be {folder}", found=f"{error} ({told})", remedy=remedy
        ) from None
    except OSError as error:
        raise StorageError(
            f"the home of gristmill, {folder}, cannot be written",
            expected="a folder that this user may write to",
            found=f"{error.strerror or error} ({told})",
            remedy=remedy,
        ) from None
