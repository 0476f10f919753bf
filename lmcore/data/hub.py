"""The files of a Hugging Face data set: of a local folder that holds one, else of the hub.

What belongs to it is what its card (README.md) says, where that names files; else every file that can be read
but those about the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import yaml
from fsspec.utils import glob_translate

from lmcore.config import SourceConfig
from lmcore.errors import DataError

CARD = "README.md"
_ABOUT = {"readme", "license", "licence", "notice", "citation", "requirements", "dataset_infos"}
_ABOUT |= {"dataset_info", "dataset_dict", "state"}
_CODE = ".py"  # scripts that load it
_WILD = "*?["
_HUBS_OWN = re.compile(r"refs/(?:convert/\w+|pr/\d+)")  # the hub writes these as they are


def root_of(source: SourceConfig) -> str:
    """Where the files of ``source`` are: its folder if there is one, else its address on the hub."""
    folder = Path(source.path).expanduser()
    if folder.is_dir():
        return str(folder)
    revision = source.revision
    if not _HUBS_OWN.fullmatch(revision):
        revision = quote(revision, safe="")
    return f"hf://datasets/{source.path}" + (f"@{revision}" if revision else "")


def files_of(source: SourceConfig, names: Iterable[str], kinds: Mapping[str, str], card: str) -> list[str]:
    """Names of the data files of ``source`` among all ``names`` below its root, sorted.

    Args:
        source: Whose ``subset`` is taken.
        names: Of all files, with ``/``.
        kinds: What each name can be read as, or an empty text.
        card: Content of its card; may be empty.

    Raises:
        DataError: nothing can be read, or it is not clear what should be.
    """
    subsets = _subsets(card)
    patterns = _patterns(source, subsets)
    found = sorted(name for name in names if not patterns or any(_matches(name, p) for p in patterns))
    data = [name for name in found if kinds[name] not in ("", _CODE) and not _is_about(name)]
    if not data:
        raise DataError(
            f"data set {source.name!r} has no file that can be read",
            expected=f"files at {' or '.join(patterns)}" if patterns else "Parquet, JSON lines or text",
            found=", ".join(found[:5]) or "none",
            remedy="Set its subset to a folder or a glob"
            + (f", or to one of: {', '.join(subsets)}." if subsets else "."),
        )
    several = sorted({kinds[name].split(".")[1] for name in data})
    if len(several) > 1:
        raise DataError(
            f"data set {source.name!r} holds files of several kinds, which may be the same data twice",
            found=", ".join(several),
            remedy=f"Set its subset to a glob of those to be read, such as **/*.{several[0]}.",
        )
    return data


def _is_about(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name.split(".")[0].lower() in _ABOUT or any(part.startswith(".") for part in path.parts)


def _matches(name: str, pattern: str) -> bool:
    return re.match(glob_translate(pattern), name) is not None


def _patterns(source: SourceConfig, subsets: Mapping[str, list[str]]) -> list[str]:
    """Globs of the files of the subset; none for all files."""
    subset = source.subset.strip("/")
    if subset in subsets:
        return subsets[subset]
    if subset:
        return [subset if any(c in subset for c in _WILD) else f"{subset}/**"]
    if len(subsets) > 1 and "default" not in subsets:
        raise DataError(
            f"data set {source.name!r} has several subsets",
            expected="the name of one as subset of the source",
            found="none",
            remedy="Choose one of: " + ", ".join(subsets) + ".",
        )
    return subsets.get("default", next(iter(subsets.values()), []))


def _subsets(card: str) -> dict[str, list[str]]:
    """Globs of each configuration of a card, all splits together; the default one as ``default`` too."""
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    try:
        head = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:  # a card is for people; what it cannot say is found by the files
        head = None
    subsets = {}
    for entry in head.get("configs") or [] if isinstance(head, dict) else []:
        if isinstance(entry, dict) and entry.get("data_files"):
            patterns = list(_paths(entry["data_files"], str(entry.get("data_dir", ""))))
            subsets[str(entry.get("config_name", "default"))] = patterns
            if entry.get("default") is True:
                subsets["default"] = patterns
    return subsets


def _paths(files: Any, folder: str) -> Iterable[str]:
    if isinstance(files, str):
        yield f"{folder.strip('/')}/{files}".lstrip("/")
    elif isinstance(files, dict):
        values = [files["path"]] if "path" in files else list(files.values())
        for value in values:
            yield from _paths(value, folder)
    elif isinstance(files, list):
        for value in files:
            yield from _paths(value, folder)
