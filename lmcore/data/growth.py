"""A corpus that grows: what came with which run.

With ``data.incremental`` the files of each run that were not there before form a generation, put behind those
that were. Documents of earlier generations win over later ones that are like them, the tokenizer is that of
the first, and the shards of earlier generations stay as they are. A file that changed or went is taken out of
its generation; what it holds now counts as new.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from lmcore.config import DataConfig
from lmcore.data.sources import Inventory, SourceFile
from lmcore.errors import StorageError
from lmcore.home import Home
from lmcore.store import sha256_json, write_atomically

_Key = tuple[str, str, int, str]


def journal_of(config: DataConfig) -> Path:
    """The file that remembers the generations of these sources."""
    named = [[source.name, source.kind, source.path] for source in config.sources]
    return Home.here().growth / f"{sha256_json(named)[:16]}.json"


def in_generations(inventory: Inventory, journal: Path) -> Inventory:
    """Put the files that ``journal`` does not know behind those that it does, each run's together.

    Raises:
        StorageError: the journal cannot be read.
    """
    known = _read(journal)
    left = {_key(file): file for file in inventory.files}
    generations = [[left.pop(key) for key in keys if key in left] for keys in known]
    generations = [files for files in [*generations, list(left.values())] if files]
    starts, count = [], 0
    for files in generations[:-1]:
        count += len(files)
        starts.append(count)
    ordered = tuple(file for files in generations for file in files)
    return replace(inventory, files=ordered, earlier=tuple(starts))


def remember(inventory: Inventory, journal: Path) -> None:
    """Keep the generations of ``inventory``, so that the next run sees what is new."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    known = [[list(_key(file)) for file in files] for files in inventory.generations]
    write_atomically(journal, json.dumps(known))


def _key(file: SourceFile) -> _Key:
    return (file.source, file.name, file.start, file.sha256)


def _read(journal: Path) -> list[list[_Key]]:
    try:
        known = json.loads(journal.read_text(encoding="utf-8"))
        return [[(source, name, start, sha) for source, name, start, sha in keys] for keys in known]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"the record of what came when, {journal}, cannot be read",
            found=str(error),
            remedy="Remove it: all files then count as there from the start, and later shards are made anew.",
        ) from error
