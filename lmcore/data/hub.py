"""The files of a Hugging Face data set: of a local folder that holds one, else of the hub.

What belongs to it is what its card (README.md) says, where that names files; else every file that can be read
but those about the data. Of its splits one is taken, the training split by default.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import yaml
from fsspec.utils import glob_translate

from lmcore.config import SourceConfig
from lmcore.data.patterns import is_left_behind
from lmcore.errors import DataError

CARD = "README.md"
_ABOUT = {"readme", "license", "licence", "notice", "citation", "requirements", "dataset_infos"}
_ABOUT |= {"dataset_info", "dataset_dict", "state"}
_CODE = ".py"  # scripts that load it
_WILD = "*?["
_WILDCARDS = re.compile(r"[*?\[\]]+")
TRAIN, ALL_SPLITS = "train", "all"
_NONE = "no split"
_KEYWORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORDS = re.compile(r"[-._ 0-9]+")
_SHARDED = re.compile(r"(?:^|/)data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")  # any split may be named so
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


def files_of(
    source: SourceConfig, names: Iterable[str], kinds: Mapping[str, str], card: str
) -> tuple[list[str], Counter[str]]:
    """Names of the data files of ``source`` among all ``names`` below its root, sorted.

    Args:
        source: Whose ``subset`` and ``split`` are taken.
        names: Of all files, with ``/``.
        kinds: What each name can be read as, or an empty text.
        card: Content of its card; may be empty.

    Returns:
        The names, and how many files of other splits were passed over, by split.

    Raises:
        DataError: nothing can be read, or it is not clear what should be.
    """
    subsets = _subsets(card)
    globs = _globs(source, subsets)
    split_of = {name: _split_of(name, globs) for name in names}
    found = sorted(name for name, split in split_of.items() if split is not None)
    data = [name for name in found if kinds[name] not in ("", _CODE) and not _is_about(name)]
    if not data:
        raise DataError(
            f"data set {source.name!r} has no file that can be read",
            expected=f"files at {' or '.join(glob for _, glob in globs)}"
            if globs
            else "Parquet, JSON lines or text",
            found=", ".join(found[:5]) or "none",
            remedy="Set its subset to a folder or a glob"
            + (f", or to one of: {', '.join(subsets)}." if subsets else "."),
        )
    data, passed_over = _of_split(source, {name: split_of[name] or "" for name in data})
    several = sorted({kinds[name].split(".")[1] for name in data})
    if len(several) > 1:
        raise DataError(
            f"data set {source.name!r} holds files of several kinds, which may be the same data twice",
            found=", ".join(several),
            remedy=f"Set its subset to a glob of those to be read, such as **/*.{several[0]}.",
        )
    return data, passed_over


def _of_split(source: SourceConfig, splits: Mapping[str, str]) -> tuple[list[str], Counter[str]]:
    """Names of ``splits`` that are of the source's split; and the others, counted by split.

    Files of no split are the training split where no file is named so.
    """
    there = set(splits.values())
    rest = TRAIN if TRAIN not in there else ""
    named = {name: split or rest or _NONE for name, split in splits.items()}
    if source.split == ALL_SPLITS:
        return list(named), Counter()
    taken = [name for name, split in named.items() if split == source.split]
    of_subset = split_in(_WILDCARDS.sub(" ", source.subset))
    if not taken and source.split == TRAIN and set(named.values()) == {of_subset}:
        return list(named), Counter()  # the subset names another split itself
    if not taken:
        raise DataError(
            f"data set {source.name!r} has no split {source.split!r}",
            expected="one of: " + ", ".join(sorted(set(named.values()))),
            found=f"none of the {len(named)} files is of it",
            remedy=f"Set split of this source to one of them, or to {ALL_SPLITS!r}.",
        )
    others = [split for split in named.values() if split != source.split]
    return taken, Counter("of no split" if split == _NONE else f"of split {split}" for split in others)


def _split_of(name: str, globs: Sequence[tuple[str, str]]) -> str | None:
    """The split of a file, by the card or its path; empty: of none; None: no data of the subset."""
    if not globs:
        return split_in(name)
    for split, glob in globs:
        if _matches(name, glob):
            return split or split_in(name)
    return None


def split_in(name: str) -> str:
    """The split that a path names, by the rules of Hugging Face's data sets; empty if it names none."""
    if sharded := _SHARDED.search(name):
        return _KEYWORDS.get(sharded[1].lower(), sharded[1])
    # The file's own name decides, then the nearest folder: test_suite/train.jsonl is of the training split.
    for part in reversed(name.split("/")):
        for word in _WORDS.split(part.lower()):
            if word in _KEYWORDS:
                return _KEYWORDS[word]
    return ""


def _is_about(name: str) -> bool:
    path = PurePosixPath(name)
    odd = any(part.startswith((".", "__")) or is_left_behind(part) for part in path.parts)
    return odd or path.name.split(".")[0].lower() in _ABOUT


def _matches(name: str, pattern: str) -> bool:
    return re.match(glob_translate(pattern), name) is not None


def _globs(source: SourceConfig, subsets: Mapping[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Splits and globs of the files of the subset; none for all files."""
    subset = source.subset.strip("/")
    if subset in subsets:
        return subsets[subset]
    if subset:
        return [("", subset if any(c in subset for c in _WILD) else f"{subset}/**")]
    if len(subsets) > 1 and "default" not in subsets:
        raise DataError(
            f"data set {source.name!r} has several subsets",
            expected="the name of one as subset of the source",
            found="none",
            remedy="Choose one of: " + ", ".join(subsets) + ".",
        )
    return subsets.get("default", next(iter(subsets.values()), []))


def _subsets(card: str) -> dict[str, list[tuple[str, str]]]:
    """Splits and globs of each configuration of a card; the default one as ``default`` too."""
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


def _paths(files: Any, folder: str, split: str = "") -> Iterable[tuple[str, str]]:
    """Pairs of split (empty: not named) and glob that ``data_files`` of a card lists."""
    if isinstance(files, str):
        yield split, f"{folder.strip('/')}/{files}".lstrip("/")
    elif isinstance(files, dict):
        if "path" in files:
            yield from _paths(files["path"], folder, _named(files.get("split", split)))
        else:
            for name, value in files.items():
                yield from _paths(value, folder, _named(name))
    elif isinstance(files, list):
        for value in files:
            yield from _paths(value, folder, split)


def _named(split: Any) -> str:
    return _KEYWORDS.get(str(split).lower(), str(split))
