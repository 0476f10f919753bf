"""Files that a pattern matches: on this machine, on any fsspec file system, inside archives.

The rules are those of shells, Python's glob and Hugging Face's data sets: a wildcard matches no hidden name
and enters no hidden folder; links are followed. Files that systems, editors and other programs leave behind
are passed over too. A path that exists as it is written is that file, brackets or not.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

_WILD = re.compile(r"[*?\[]")
# Left by macOS, Windows, Jupyter, Python, Hadoop, Spark, Delta, and by editors and downloads that broke off.
_LEFT_BEHIND = re.compile(
    r"__MACOSX|__pycache__|Thumbs\.db|desktop\.ini|lost\+found|\$RECYCLE\.BIN|System Volume Information"
    r"|_SUCCESS|_temporary|_started_.*|_committed_.*|_spark_metadata|_delta_log|_metadata|_common_metadata"
    r"|~\$.*|.*~|#.*#|.*\.(?:sw[nop]|part|partial|filepart|crdownload|opdownload|download|aria2|!qB|incomplete)"
    r"|.*\.(?:tmp|temp|lock|bak|orig)|ehthumbs\.db|@eaDir",
    re.IGNORECASE,
)
_CACHES = ("simplecache", "filecache", "blockcache", "cached")


class Found(NamedTuple):
    """One file.

    Attributes:
        name: Its path below the root of the pattern, with ``/``.
        url: Where fsspec opens it.
        num_bytes: Its size, as stored.
    """

    name: str
    url: str
    num_bytes: int


class Matched(NamedTuple):
    """What a pattern matches.

    Attributes:
        files: In no order.
        passed_over: How many names were passed over, by reason.
        root: The folder that was looked in, with its file system, for an error.
    """

    files: list[Found]
    passed_over: Counter[str]
    root: str


class UnreadableError(Exception):
    """A pattern matches what is no file; the message names it."""


def is_left_behind(name: str) -> bool:
    """Whether a program left a file or folder of this name behind, which is no data."""
    return _LEFT_BEHIND.fullmatch(name) is not None


def is_local(path: str) -> bool:
    """Whether ``path`` is a plain path of this machine, not an address."""
    return "://" not in path and not _is_chain(path)


def match(path: str) -> Matched:
    """Files that ``path`` names or matches.

    Args:
        path: A path or address, with wildcards or without; several joined by ``::`` as fsspec has them.

    Raises:
        UnreadableError: it matches a broken link, or what is no file.
        Exception: whatever the file system raises.
    """
    if is_local(path):
        absolute = os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - links in it stay
        return _match_local(absolute)
    before, own, behind = _split_chain(path)
    archives = "::".join(behind)
    if before or behind:
        if _WILD.search(archives):
            return _match_archives(before, own, archives)
        return _match_remote("::".join((*before, own, *behind)), before, own, behind)
    filesystem, pattern = fsspec.url_to_fs(path)
    if isinstance(filesystem, LocalFileSystem):
        return _match_local(pattern)
    return _match_remote(path, (), own, ())


# --- this machine ----------------------------------------------------------------------------------


class _Part(NamedTuple):
    text: str
    is_wild: bool


def _match_local(pattern: str) -> Matched:
    parts = _parts(pattern, os.path.lexists)
    root, wild = _split(parts)
    passed: dict[str, str] = {}
    found: dict[str, str] = {}
    odd: list[str] = []
    entered = {(os.path.realpath(root or "/"), len(wild))}
    for path in sorted(set(_walk(root or "/", wild, entered, passed))):
        file = Path(path)
        if file.is_symlink() and not file.exists():
            raise UnreadableError(f"a link to what is not there, {path} -> {file.readlink()}")
        if file.is_dir():
            continue
        if not file.is_file():
            odd.append(path)
        elif found.setdefault(os.path.realpath(path), path) != path:
            passed[path] = "links to files that are read already"
    if odd:
        raise UnreadableError(f"{len(odd)} others, first {odd[0]}")
    files = [
        Found(_below(root, path), f"file://{path}", Path(path).stat().st_size) for path in found.values()
    ]
    return Matched(files, Counter(passed.values()), root)


def _parts(pattern: str, exists: Callable[[str], bool]) -> list[_Part]:
    """The parts of a path. One with wildcards that exists as it is written is taken as written."""
    parts: list[_Part] = []
    for text in pattern.split("/"):
        before = [part.text for part in parts]
        is_wild = _WILD.search(text) is not None
        if is_wild and not any(part.is_wild for part in parts):
            is_wild = not exists("/".join([*before, text]))
        parts.append(_Part(text, is_wild))
    return parts


def _split(parts: list[_Part]) -> tuple[str, list[_Part]]:
    """The folders before the first part with wildcards, and the parts from there on."""
    place = next((i for i, part in enumerate(parts) if part.is_wild), len(parts) - 1)
    return "/".join(part.text for part in parts[:place]), parts[place:]


def _below(root: str, path: str) -> str:
    return path[len(root) :].lstrip("/")


def _walk(
    folder: str, parts: Sequence[_Part], entered: set[tuple[str, int]], passed: dict[str, str]
) -> Iterator[str]:
    """Paths below ``folder`` that ``parts`` match; links to folders are followed, each folder once.

    Names that are passed over go to ``passed`` with the reason.
    """
    part, rest = parts[0], parts[1:]
    if not part.is_wild:
        path = f"{folder.rstrip('/')}/{part.text}" if part.text else folder
        if rest and Path(path).is_dir():
            yield from _walk(path, rest, entered, passed)
        elif not rest and part.text and os.path.lexists(path):
            yield path
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    everywhere = part.text == "**"
    if everywhere and rest:
        yield from _walk(folder, rest, entered, passed)
    for entry in entries:
        if not _is_taken(entry, part.text, passed, is_last=not rest and not everywhere):
            continue
        if everywhere and entry.is_dir():
            # Folders that link to each other have more paths than anybody could walk.
            folder_and_parts = (os.path.realpath(entry.path), len(parts))
            if folder_and_parts not in entered:
                entered.add(folder_and_parts)
                yield from _walk(entry.path, parts, entered, passed)
        elif not rest:
            yield entry.path
        elif not everywhere and entry.is_dir():
            yield from _walk(entry.path, rest, entered, passed)


def _is_taken(entry: os.DirEntry[str], pattern: str, passed: dict[str, str], *, is_last: bool) -> bool:
    """Whether one part of a pattern matches the name of a file or folder."""
    name = entry.name
    if pattern != "**" and not fnmatch.fnmatchcase(name, pattern):
        return False
    if name.startswith(".") and not pattern.startswith("."):
        passed[entry.path] = "hidden"
        return False
    if is_left_behind(name):
        passed[entry.path] = "left by other programs"
        return False
    if not is_last and entry.is_symlink() and not Path(entry.path).exists():
        passed[entry.path] = "links to what is not there"  # it may have been a folder
    return True


# --- other file systems ----------------------------------------------------------------------------


def _is_chain(path: str) -> bool:
    """Whether ``::`` in ``path`` joins addresses, and is not a part of a file's name."""
    first, joined, _ = path.partition("::")
    return bool(joined) and ("://" in first or first in fsspec.available_protocols())


def _split_chain(path: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """A chained address as the caches before the part that is matched, that part, and what it lies in."""
    links = path.split("::")
    place = next((i for i, link in enumerate(links) if link not in _CACHES), len(links) - 1)
    return tuple(links[:place]), links[place], tuple(links[place + 1 :])


def _match_remote(path: str, before: Sequence[str], own: str, behind: Sequence[str]) -> Matched:
    filesystem, pattern = fsspec.url_to_fs(path)
    parts = _parts(pattern, filesystem.exists)
    root, wild = _split(parts)
    passed_over: Counter[str] = Counter()
    if any(part.is_wild for part in wild):
        # A bracket in a folder's own name is written so that it stands for itself.
        plain = re.sub(r"\[", "[[]", root)
        entries = filesystem.glob("/".join([plain, *(part.text for part in wild)]), detail=True)
    else:
        entries = {pattern: filesystem.info(pattern)} if filesystem.exists(pattern) else {}
    files = []
    for found, entry in cast("dict[str, dict[str, Any]]", entries).items():
        if entry["type"] == "directory" or not _is_visible(_below(root, found), wild, passed_over):
            continue
        if entry["type"] != "file" or entry.get("size") is None:
            raise UnreadableError(f"what has no size, first {found}")
        url = "::".join((*before, _address(own, found, filesystem), *behind))
        files.append(Found(_below(root, found), url, int(entry["size"])))
    if files and (before or behind):
        _check_address(files[0].url, filesystem)
    return Matched(files, passed_over, root)


def _is_visible(name: str, wild: Sequence[_Part], passed_over: Counter[str]) -> bool:
    """Whether no part of a name that a wildcard matched is hidden or left behind."""
    texts = [part.text for part in wild if part.is_wild]
    dotted = [text for text in texts if text.startswith(".")]
    for part in name.split("/") if texts else ():
        if part.startswith(".") and not any(fnmatch.fnmatchcase(part, text) for text in dotted):
            passed_over["hidden"] += 1
            return False
        if is_left_behind(part):
            passed_over["left by other programs"] += 1
            return False
    return True


def _address(own: str, found: str, filesystem: Any) -> str:
    """The address of a path that a file system gave, in the form of the pattern ``own``."""
    if "://" in found:
        return found
    if "://" not in own:
        return found
    protocol = own.partition("://")[0]
    if protocol in _protocols(filesystem):
        return cast("str", filesystem.unstrip_protocol(found))
    return f"{protocol}://{found}"


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _check_address(url: str, filesystem: Any) -> None:
    """Check that a file is found again under its own address."""
    again, path = fsspec.url_to_fs(url)
    if not again.isfile(path):
        raise UnreadableError(f"an address that does not lead back to its file: {url}")


def _match_archives(before: Sequence[str], own: str, archives: str) -> Matched:
    """Files inside each of several archives; their names begin with the archive's."""
    outer = match(archives)
    files: list[Found] = []
    passed_over = Counter(outer.passed_over)
    for archive in sorted(outer.files):
        address = archive.url.removeprefix("file://") if is_local(archives) else archive.url
        inner = match("::".join((*before, own, address)))
        files += [found._replace(name=f"{archive.name}/{found.name}") for found in inner.files]
        passed_over += inner.passed_over
    return Matched(files, passed_over, outer.root)
