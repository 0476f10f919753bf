"""A home that was moved or copied: its addresses are brought up to date before anything is written.

MLflow keeps the absolute path of every experiment, run and model, and so does each run directory. A copy that
followed them would write into the original. ``home.json`` says where the home lay last; a home of earlier
commits has none, and its runs tell.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lmcore.errors import StorageError
from lmcore.home import Home
from lmcore.store import sha256_json, write_atomically

RECORD = "home.json"
BACKUP = "mlflow.db.before-move"
_RUN_FILES = ("tracking.json", "config.json", "summary.json", "result.json")
_BUSY_SECONDS = 30.0
# Where MLflow keeps addresses, by table.
_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
    "tags": ("value",),
    "experiment_tags": ("value",),
    "logged_model_tags": ("tag_value",),
    "model_version_tags": ("value",),
    "datasets": ("dataset_source",),
    "trace_tags": ("value",),
    "trace_info": ("artifact_location",),
}
# Those of them that are folders of artifacts.
_ARTIFACTS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
    "trace_info": "artifact_location",
}
PROXY = "mlflow-artifacts:/"


def settle(home: Home) -> str:
    """Record where ``home`` lies; if it lay elsewhere, mend its addresses first, and say so in a sentence.

    Raises:
        StorageError: MLflow's database is in use or damaged; nothing was changed.
    """
    root = str(home.root)
    if _recorded(home) == root:
        return ""
    home.root.mkdir(parents=True, exist_ok=True)
    with (home.root / ".home.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = _recorded(home) or _infer(home)
        moved = bool(before) and before != root and not _is_same(before, root)
        told = _mend(home, before) if moved else ""
        if not moved and before and before != root and _recorded(home):
            return ""  # one home by two names, such as a mount: each would rewrite the other's
        write_atomically(home.root / RECORD, json.dumps({"root": root}) + "\n")
    return told


def _recorded(home: Home) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((home.root / RECORD).read_text(encoding="utf-8"))["root"])
    return ""


def _infer(home: Home) -> str:
    """Where a home without a record lay: as its runs say, or its MLflow's experiments."""
    for run_dir in _run_dirs(home):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((run_dir / "tracking.json").read_text(encoding="utf-8"))
            told = Path(record["tags"]["gristmill.run_dir"])
            if told.name == run_dir.name:
                return str(told.parent.parent)
    if not home.mlflow_database.is_file():
        return ""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect(home.mlflow_database)) as database:
        for (address,) in database.execute("select artifact_location from experiments"):
            path = Path(unquote(urlsplit(address).path)) if str(address).startswith("file:") else None
            # Those that gristmill made lie in the home's folder for them.
            if path is not None and path.parent.name == home.mlflow_artifacts.name:
                return str(path.parent.parent)
    return ""


def _is_same(before: str, root: str) -> bool:
    try:
        return os.path.samefile(before, root)  # noqa: PTH121 - of two texts
    except OSError:
        return False


def _mend(home: Home, before: str) -> str:
    # They tell of processes of the original, which this home must neither use nor stop.
    for service in home.services.glob("*.json"):
        service.unlink()
    addresses = _mend_mlflow(home, before)
    changed = sum(_mend_run(run_dir, before, str(home.root)) for run_dir in _run_dirs(home))
    _rename_watermarks(home, before)
    kept = f"; MLflow's database from before is {BACKUP}" if addresses else ""
    return (
        f"this home was at {before} before: {addresses} addresses in MLflow and {changed} files of runs now "
        f"say {home.root}{kept}"
    )


def _run_dirs(home: Home) -> list[Path]:
    return sorted(path for path in home.runs.glob("*") if path.is_dir())


# --- MLflow ----------------------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)


def _mend_mlflow(home: Home, before: str) -> int:
    """Rewrite the addresses in MLflow's database, in one transaction; return how many there were."""
    if not home.mlflow_database.is_file():
        return 0
    try:
        with contextlib.closing(_connect(home.mlflow_database)) as database:
            database.execute("begin immediate")  # a backup alone would wait for ever for one in use
            try:
                with contextlib.closing(sqlite3.connect(home.root / BACKUP)) as backup:
                    database.backup(backup)
                many = sum(
                    _mend_column(database, table, column, before, str(home.root))
                    for table, columns in _COLUMNS.items()
                    for column in columns
                    if column in _columns_of(database, table)
                )
                database.execute("commit")
            except BaseException:
                database.execute("rollback")
                raise
    except sqlite3.Error as error:
        raise StorageError(
            f"{home.root} was at {before} before, and MLflow's database cannot be told so",
            found=str(error),
            remedy="Stop what uses it, then give the same command again; nothing was changed.",
        ) from error
    return many


def use_server(home: Home) -> None:
    """Have MLflow's database give the addresses that its server serves: relative, so any machine can follow.

    To be called before the server starts.
    """
    _change_scheme(home, f"{home.mlflow_artifacts.as_uri()}/", PROXY)


def use_files(home: Home) -> None:
    """Have MLflow's database give the addresses of files: without a server nothing else can be followed."""
    _change_scheme(home, PROXY, f"{home.mlflow_artifacts.as_uri()}/")


def _change_scheme(home: Home, before: str, after: str) -> None:
    if not home.mlflow_database.is_file():
        return
    with contextlib.closing(_connect(home.mlflow_database)) as database:
        for table, column in _ARTIFACTS.items():
            if column in _columns_of(database, table):
                database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"where substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, len(before), before),
                )


def _columns_of(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f"pragma table_info({table})")}


def _mend_column(database: sqlite3.Connection, table: str, column: str, before: str, after: str) -> int:
    # The names come from the table above; instr wants no escaping of the path.
    found = database.execute(
        f"select rowid, {column} from {table} where instr({column}, ?) or instr({column}, ?)",  # noqa: S608
        (before, _quoted(before)),
    ).fetchall()
    mended = [(mend_text(value, before, after), row) for row, value in found]
    changed = [(value, row) for (value, row), (_, old) in zip(mended, found, strict=True) if value != old]
    database.executemany(f"update {table} set {column} = ? where rowid = ?", changed)  # noqa: S608
    return len(changed)


# --- texts -----------------------------------------------------------------------------------------


def mend_text(text: str, before: str, after: str) -> str:
    """Return an address, or JSON that holds some, with ``after`` in place of the folder ``before``."""
    if text[:1] in "{[":
        with contextlib.suppress(ValueError):
            return json.dumps(_mend_json(json.loads(text), before, after))
    for prefix, old, new in (("", before, after), ("file://", _quoted(before), _quoted(after))):
        if text == prefix + old or text.startswith(f"{prefix}{old}/"):
            return prefix + new + text[len(prefix + old) :]
    return text


def _quoted(path: str) -> str:
    return Path(path).as_uri().removeprefix("file://")


def _mend_json(value: Any, before: str, after: str) -> Any:
    if isinstance(value, dict):
        return {name: _mend_json(below, before, after) for name, below in value.items()}
    if isinstance(value, list):
        return [_mend_json(below, before, after) for below in value]
    return mend_text(value, before, after) if isinstance(value, str) else value


def _mend_run(run_dir: Path, before: str, after: str) -> int:
    many = 0
    for path in _existing(run_dir):
        with contextlib.suppress(ValueError):
            old = json.loads(path.read_text(encoding="utf-8"))
            if (new := _mend_json(old, before, after)) != old:
                write_atomically(path, json.dumps(new, indent=1) + "\n")
                many += 1
    return many


def _existing(run_dir: Path) -> Iterator[Path]:
    yield from (run_dir / name for name in _RUN_FILES if (run_dir / name).is_file())


def _rename_watermarks(home: Home, before: str) -> None:
    """What the home's own database was told of is named after its address (``tasks.tracking``)."""
    old, new = (
        f"tracking-{sha256_json(f'sqlite:///{Path(root) / home.mlflow_database.name}')[:8]}.json"
        for root in (before, home.root)
    )
    for run_dir in _run_dirs(home):
        if (run_dir / old).is_file():
            (run_dir / old).rename(run_dir / new)
