"""Find the raw files and digest them, before any work.

The inventory's digest is over what the files hold and what they are called below their root, so moving a
corpus to another folder or machine makes nothing new. A large file of plain lines is cut into parts, at line
ends, each with a digest of its own: lines that are appended to it leave the parts before them as they were.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import itertools
import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import fsspec
import numpy as np

from lmcore.config import DataConfig, SourceConfig
from lmcore.data import archives, hub, patterns
from lmcore.data.charsets import HEAD_BYTES, may_be_cut
from lmcore.data.patterns import Found
from lmcore.data.row_groups import GroupsPart, part_digest, parts_of
from lmcore.data.streams import lone_returns
from lmcore.errors import DataError
from lmcore.store import sha256_json

T = TypeVar("T")
PAGE_SUFFIXES = (".html", ".htm")
WHOLE_FILE_SUFFIXES = (".txt", ".py", *PAGE_SUFFIXES)  # one record each
ARCHIVE_SUFFIXES = tuple(
    f".{kind}{packed}"
    for kind, packings in (
        ("warc", ("", ".gz", ".zst")),
        ("warc.wet", ("", ".gz", ".zst")),
        ("wet", ("", ".gz", ".zst")),
        ("arc", ("", ".gz")),
    )
    for packed in packings
)
LINES_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("jsonl", "json") for packed in ("", ".gz", ".zst"))
SUFFIXES = (*WHOLE_FILE_SUFFIXES, *ARCHIVE_SUFFIXES, *LINES_SUFFIXES, ".parquet")
_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__"}
_READ_BYTES = 1 << 20
_LINE_BYTES, _LINE_END = 1 << 16, 10
# Text compresses to about a fifth of its size.
_EXPANSION = {".gz": 4, ".zst": 5, ".parquet": 3}
PART_BYTES = 8 << 20
_CUT_AT_LINES = (".jsonl", ".json")


class Listing(NamedTuple):
    """Files of a source, in no order, and how many were passed over, by reason."""

    files: list[Found]
    passed_over: Counter[str]


@dataclass(frozen=True)
class SourceFile:
    """One raw file, or a part of a large one.

    Attributes:
        source: Name of its source.
        url: Where to open it, for fsspec.
        name: Its path below the root of the source, with ``/``.
        num_bytes: Size as stored, of the part.
        sha256: Of these bytes (and of the footer, of a part of a Parquet file), in hexadecimal.
        start: Where the part starts in the file, in bytes.
        first_record: Records of the file before it.
    """

    source: str
    url: str
    name: str
    num_bytes: int
    sha256: str
    start: int = 0
    first_record: int = 0

    @property
    def suffix(self) -> str:
        """One of ``SUFFIXES``."""
        return suffix_of(self.name)

    @property
    def text_bytes(self) -> int:
        """About how much text it holds, in bytes."""
        compressed = next((end for end in _EXPANSION if self.name.lower().endswith(end)), "")
        return self.num_bytes * _EXPANSION.get(compressed, 1)

    def open(self) -> BinaryIO:
        """Open for reading bytes, at the start of the part."""
        if self.url.startswith(("/", "file://")):  # a tenth of fsspec's time
            file: BinaryIO = Path(self.url.removeprefix("file://")).open("rb")  # noqa: SIM115
        elif archives.is_member(self.url):
            return archives.open_member(self.url)
        else:
            filesystem, path = fsspec.url_to_fs(self.url)
            file = cast("BinaryIO", filesystem.open(path, "rb"))
            with contextlib.suppress(AttributeError):  # a file system is closed when nothing holds it
                cast("Any", file).filesystem = filesystem
        if self.start:
            file.seek(self.start)
        return file


@dataclass(frozen=True)
class Inventory:
    """The files of all sources, in order, and what the caps left out.

    Attributes:
        files: In the order of the sources, then by name; what came later behind what was there.
        evaluation: Those of the evaluation sets that documents must not hold.
        earlier: Number of files at which each later generation starts.
        left_out: Files and bytes beyond ``max_bytes``, for each source that has any.
        passed_over: Names that its pattern could match and that are no data, by reason, for each source.
    """

    files: tuple[SourceFile, ...]
    evaluation: tuple[SourceFile, ...] = ()
    earlier: tuple[int, ...] = ()
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    passed_over: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def text_bytes(self) -> int:
        """About how much text there is."""
        return sum(file.text_bytes for file in self.files)

    @property
    def generations(self) -> tuple[tuple[SourceFile, ...], ...]:
        """The files that were there first, then those that came with each later run."""
        ends = (*self.earlier, len(self.files))
        return tuple(self.files[start:end] for start, end in itertools.pairwise((0, *ends)))

    @property
    def evaluation_digest(self) -> str:
        """SHA-256 over the evaluation sets."""
        return digest_of(self.evaluation)

    @property
    def num_files(self) -> int:
        """Files, however many parts they have."""
        return sum(not file.start for file in self.files)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, as stored."""
        return sum(file.num_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over source names, relative names and contents; not over paths."""
        parts = [*map(digest_of, self.generations), *([self.evaluation_digest] if self.evaluation else [])]
        return parts[0] if len(parts) == 1 else sha256_json(parts)

    def summary(self) -> dict[str, Any]:
        """Files and bytes of each source, and what its cap left out."""
        sources: dict[str, dict[str, int]] = {}
        for file in self.files:
            entry = sources.setdefault(file.source, {"files": 0, "bytes": 0})
            entry["files"] += not file.start
            entry["bytes"] += file.num_bytes
        for name, out in self.left_out.items():
            sources[name] |= {"files_left_out": out["files"], "bytes_left_out": out["bytes"]}
        found = {
            "files": self.num_files,
            "bytes": self.total_bytes,
            "sources": sources,
            "digest": self.digest,
        }
        passed_over = {name: dict(sorted(counts.items())) for name, counts in self.passed_over.items()}
        return found | ({"passed_over": passed_over} if passed_over else {})


def digest_of(files: Iterable[SourceFile]) -> str:
    """SHA-256 over source names, relative names and contents of ``files``; not over paths."""
    return sha256_json([[f.source, f.name, f.start, f.first_record, f.sha256] for f in files])


@functools.lru_cache(256)  # asked for of each record of a file
def suffix_of(name: str) -> str:
    """Return the longest of ``SUFFIXES`` that ``name`` ends in, or an empty text."""
    return max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")


def take_inventory(config: DataConfig) -> Inventory:
    """List and digest the files of every source, in sorted order, each source up to its ``max_bytes``.

    Raises:
        DataError: a source matches nothing, holds a file of another kind, or a file cannot be read.
    """
    inventory = find_files(config.sources)
    other = find_files(config.decontamination.sources)
    passed_over = {f"decontamination.{name}": counts for name, counts in other.passed_over.items()}
    return replace(inventory, evaluation=other.files, passed_over={**inventory.passed_over, **passed_over})


def find_files(sources: Sequence[SourceConfig]) -> Inventory:
    """List and digest the files of ``sources``, in sorted order.

    Raises:
        DataError: a source matches nothing, holds a file of another kind, or a file cannot be read.
    """
    found: list[tuple[SourceConfig, str, str, int]] = []
    left_out: dict[str, dict[str, int]] = {}
    passed_over: dict[str, dict[str, int]] = {}
    archives.forget()
    for source in sources:
        listing = _LISTS[source.kind](source)
        listed = sorted(listing.files)
        if listing.passed_over:
            passed_over[source.name] = dict(listing.passed_over)
        taken = _up_to_cap(source, [size for _, _, size in listed])
        found += [(source, name, url, size) for name, url, size in listed[:taken]]
        if taken < len(listed):
            left_out[source.name] = {
                "files": len(listed) - taken,
                "bytes": sum(size for _, _, size in listed[taken:]),
            }
    # hashlib releases the GIL, so threads use all cores: on the parts of one large file, too.
    with ThreadPoolExecutor() as pool:
        places = list(
            pool.map(lambda entry: _cut(entry[2], suffix_of(entry[1]), entry[3], entry[0].encoding), found)
        )
        urls = (url for (_, _, url, _), of_file in zip(found, places, strict=True) for _ in of_file)
        digested = pool.map(_digest, itertools.chain.from_iterable(places), urls)
        parts = [_number([part for _ in of_file for part in next(digested)]) for of_file in places]
    files = tuple(
        SourceFile(source.name, url, name, part.num_bytes, part.sha256, part.start, part.first_record)
        for (source, name, url, _), of_file in zip(found, parts, strict=True)
        for part in of_file
    )
    return Inventory(files, left_out=left_out, passed_over=passed_over)


def text_there(sources: Sequence[SourceConfig]) -> int | None:
    """About how much text local ``sources`` hold, in bytes, by the sizes of their files: none is opened.

    None: it is not known, as of what is not on this machine.
    """
    total = 0
    for source in sources:
        if source.kind == "huggingface" or not patterns.is_local(source.path):
            return None
        try:
            listed = sorted(_LISTS[source.kind](source).files)
            taken = _up_to_cap(source, [size for _, _, size in listed])
        except DataError:
            return None
        total += sum(SourceFile("", url, name, size, "").text_bytes for name, url, size in listed[:taken])
    return total


def _stdlib(_source: SourceConfig) -> Listing:
    return Listing(list(_files_of_stdlib()), Counter())


def _files_of_stdlib() -> Iterator[Found]:
    root = sysconfig.get_path("stdlib")
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_LEFT_OUT]
        for name in names:
            path = Path(folder, name)
            if name.endswith(".py") and path.is_file():
                yield Found(_readable(path.relative_to(root).as_posix()), str(path), path.stat().st_size)


def _glob(source: SourceConfig) -> Listing:
    try:
        matched = patterns.match(source.path)
    except patterns.UnreadableError as error:
        raise DataError(
            f"source {source.name!r} matches what cannot be read as a file",
            expected="files whose size is known, or links to such",
            found=str(error),
            remedy="Bring them here, or narrow the path.",
        ) from error
    except Exception as error:  # each file system has errors of its own
        raise DataError(
            f"source {source.name!r} cannot be listed",
            found=f"{source.path}: {type(error).__name__}: {error}",
            remedy="Correct its path, or install what its file system needs.",
        ) from error
    if not matched.files:
        raise _nothing_found(source, matched)
    wrong = sorted(file.name for file in matched.files if not suffix_of(file.name))
    if wrong:
        raise DataError(
            f"source {source.name!r} matches files of a kind that is not supported",
            expected=", ".join(SUFFIXES),
            found=f"{len(wrong)} of {len(matched.files)}, first {', '.join(wrong[:3])}",
            remedy=f"Narrow its path {source.path!r} to one of these suffixes."
            + _into_archive(source, wrong)
            + " A .wat holds no text of pages: take the .warc or the .wet of the same crawl."
            * any(path.endswith((".wat", ".wat.gz")) for path in wrong),
        )
    return Listing([file._replace(name=_readable(file.name)) for file in matched.files], matched.passed_over)


def _into_archive(source: SourceConfig, names: Sequence[str]) -> str:
    protocol = next((kind for kind in archives.SUFFIXES if names[0].lower().endswith(kind)), None)
    if protocol is None:
        return ""
    return f" Files in archives are read by {archives.SUFFIXES[protocol]}://**/*.jsonl::{source.path}."


def _data_set(source: SourceConfig) -> Listing:
    root = hub.root_of(source)
    try:
        entries, passed_over = _entries_of(root)
        card = b""
        if hub.CARD in entries:
            filesystem, path = fsspec.url_to_fs(entries[hub.CARD].url)
            card = cast("bytes", filesystem.cat_file(path))
    except Exception as error:  # no network, no such data set, no right to see it
        raise DataError(
            f"data set {source.name!r} cannot be listed",
            expected="a folder, or a data set on the hub as owner/name",
            found=f"{root}: {type(error).__name__}: {error}",
            remedy="Correct its path or revision; set HF_TOKEN if it is not open to everybody.",
        ) from error
    kinds = {name: suffix_of(name) for name in entries}
    names, other_splits = hub.files_of(source, entries, kinds, card.decode("utf-8", "replace"))
    files = [entries[name]._replace(name=_readable(name)) for name in names]
    return Listing(files, passed_over + other_splits)


def _entries_of(root: str) -> tuple[dict[str, Found], Counter[str]]:
    """All files of a data set by their names below ``root``, and what was passed over."""
    if patterns.is_local(root):  # links are followed, as the cache of Hugging Face lays files
        matched = patterns.match(f"{root}/**")
        return {file.name: file for file in matched.files}, matched.passed_over
    filesystem, folder = fsspec.url_to_fs(root)
    found = cast("dict[str, dict[str, Any]]", filesystem.find(folder, detail=True))
    names = {path: path[len(folder) :].lstrip("/") for path in found}
    entries = {
        name: Found(name, filesystem.unstrip_protocol(path), int(found[path]["size"]))
        for path, name in names.items()
    }
    return entries, Counter()


_LISTS = {"python_stdlib": _stdlib, "files": _glob, "huggingface": _data_set}


def _readable(name: str) -> str:
    # A file name need not be UTF-8; Python keeps its odd bytes as surrogates, which nothing else can write.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _nothing_found(source: SourceConfig, matched: patterns.Matched) -> DataError:
    local = patterns.is_local(source.path)
    looked, near = _nearest(matched.root, source.path) if local else (matched.root, [])
    passed_over = ", ".join(f"{count} {reason}" for reason, count in sorted(matched.passed_over.items()))
    is_folder = local and Path(source.path).expanduser().is_dir()
    relative = local and not Path(source.path).expanduser().is_absolute()
    remedy = "Correct the path of this source." + " It is looked for from the current folder." * relative
    if "[" in source.path:
        remedy += " A [ begins a set of characters: write [[] for the character itself."
    if passed_over:
        remedy += " Name a file in full, or begin the pattern with a dot, to read what is passed over."
    if is_folder:
        remedy = f"It is a folder: write {source.path.rstrip('/')}/**/*.jsonl or the like."
    return DataError(
        f"source {source.name!r} matches no file",
        expected=f"files at {source.path!r}",
        found=(f"{passed_over}, which are passed over" if passed_over else "none")
        + f"; looked in {looked or '/'}"
        + (f"; nearest there: {', '.join(near)}" if near else ""),
        remedy=remedy,
    )


def _nearest(root: str, path: str) -> tuple[str, list[str]]:
    """The deepest folder of ``root`` that exists, and names in it that are like what is missing there."""
    looked = Path(root or "/")
    while not looked.is_dir():
        looked = looked.parent
    names = sorted(entry.name for entry in looked.iterdir())
    missing = (root[len(str(looked)) :].strip("/") or path.rpartition("/")[2]).split("/")[0]
    return str(looked), difflib.get_close_matches(missing, names, n=3, cutoff=0.3) or names[:3]


def _up_to_cap(source: SourceConfig, sizes: list[int]) -> int:
    if not source.max_bytes:
        return len(sizes)
    total = 0
    for taken, size in enumerate(sizes):
        total += size
        if total > source.max_bytes:
            if not taken:
                raise DataError(
                    f"the first file of source {source.name!r} is larger than the source may be",
                    expected=f"at most max_bytes {source.max_bytes}",
                    found=f"{size} bytes",
                    remedy="Raise max_bytes of this source.",
                )
            return taken
    return len(sizes)


@dataclass(frozen=True)
class _Place:
    """Bytes of a file that are a part of it.

    Attributes:
        start: Where it starts.
        end: The byte behind its last one; -1: it is the file.
        groups: Of a Parquet file, what is in it.
        in_turn: Whether it is yet to be cut at lines, by who reads it.
        encoding: Of its source, where it is.
    """

    start: int = 0
    end: int = -1
    groups: GroupsPart | None = None
    in_turn: bool = False
    encoding: str = ""


@dataclass(frozen=True)
class _Part:
    start: int
    num_bytes: int
    first_record: int
    sha256: str
    lines: int = 0


def _cut(url: str, suffix: str, size: int, encoding: str) -> list[_Place]:
    """Cut the file at ``url``, if it can be, in parts of ``PART_BYTES`` and what is left of a line or a row
    group.
    """
    # A part of an archive's member is reached by unpacking all before it.
    if size <= PART_BYTES or suffix not in (*_CUT_AT_LINES, ".parquet") or archives.is_member(url):
        return [_Place()]
    if suffix != ".parquet" and not _is_local(url):
        return [
            _Place(in_turn=True, encoding=encoding)
        ]  # once from its start to its end: each jump would fetch some more
    with _opened(url) as file:
        if suffix == ".parquet":
            parts = parts_of(file, PART_BYTES)
            return [_Place(part.start, part.end, part) for part in parts] if len(parts) > 1 else [_Place()]
        if not may_be_cut(file.read(HEAD_BYTES), encoding):
            return [_Place()]
        starts = [0, *_line_starts(file)]
        return [_Place(start, end) for start, end in itertools.pairwise([*starts, file.seek(0, os.SEEK_END)])]


def _line_starts(file: BinaryIO) -> Iterator[int]:
    """Where parts start but for the first: behind the first line end at or behind the size of a part."""
    size, start = file.seek(0, os.SEEK_END), 0
    while (place := start + PART_BYTES - 1) < size:
        file.seek(place)
        while (chunk := file.read(_LINE_BYTES)) and b"\n" not in chunk:
            place += len(chunk)
        start = place + chunk.find(b"\n") + 1
        if not chunk or start >= size:
            return
        yield start


def _digest(place: _Place, url: str) -> list[_Part]:
    with _opened(url) as file:
        if place.groups:
            digest = part_digest(file, place.start, place.end)
            return [_Part(place.start, place.end - place.start, place.groups.first_record, digest)]
        if place.in_turn:
            return _cut_at_lines(iter(lambda: file.read(_READ_BYTES), b""), place.encoding)
        if place.start:
            file.seek(place.start)
        digest, size, lines, most, last = hashlib.sha256(), 0, 0, _READ_BYTES, b""
        while chunk := file.read(most if place.end < 0 else min(most, place.end - place.start - size)):
            digest.update(chunk)
            size += len(chunk)
            if place.end >= 0:
                # bytes.count holds the interpreter's lock for half as long as the digest takes.
                lines += int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == _LINE_END))
                lines += _lone_returns(last, chunk)
                last = chunk[-1:]
        return [_Part(place.start, size, 0, digest.hexdigest(), lines)]


def _is_local(url: str) -> bool:
    """Whether a file can be read from any place at the cost of what is read."""
    return url.startswith(("/", "file://"))


def _lone_returns(last: bytes, chunk: bytes) -> int:
    """Returns in ``chunk`` without a line feed, less one if ``last``, the byte before, was one with it."""
    return lone_returns(chunk) - (last == b"\r" and chunk.startswith(b"\n"))


def _cut_at_lines(chunks: Iterable[bytes], encoding: str) -> list[_Part]:
    parts: list[_Part] = []
    digest, start, size, lines = hashlib.sha256(), 0, 0, 0
    part_bytes, last = 0, b""
    for chunk in chunks:
        place = 0
        part_bytes = part_bytes or (PART_BYTES if may_be_cut(chunk[:HEAD_BYTES], encoding) else sys.maxsize)
        while place < len(chunk):
            # The first line end at or behind the size of a part ends it.
            behind = max(place, place + part_bytes - 1 - size)
            end = chunk.find(b"\n", behind) + 1
            head = memoryview(chunk)[place : end or len(chunk)]
            digest.update(head)
            size += len(head)
            lines += chunk.count(b"\n", place, end or len(chunk)) + _lone_returns(last, bytes(head))
            last = bytes(head[-1:])
            place += len(head)
            if end:
                parts.append(_Part(start, size, 0, digest.hexdigest(), lines))
                digest, start, size, lines = hashlib.sha256(), start + size, 0, 0
    if size or not parts:
        parts.append(_Part(start, size, 0, digest.hexdigest(), lines))
    return parts


def _number(parts: list[_Part]) -> list[_Part]:
    """Let each of ``parts`` of a file of lines know how many are before it."""
    before = [0, *itertools.accumulate(part.lines for part in parts)][: len(parts)]
    return [replace(part, first_record=part.first_record + n) for part, n in zip(parts, before, strict=True)]


@contextlib.contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    try:
        with SourceFile("", url, "", 0, "").open() as file:
            yield file
    except Exception as error:  # each file system has errors of its own
        raise DataError(
            f"file {url} cannot be read", found=str(error), remedy="Mend it or leave it out."
        ) from error


def sample_files(source: SourceConfig, most: int, most_bytes: int) -> tuple[list[SourceFile], int, int]:
    """Up to ``most`` files and parts of large files of ``source``, evenly spread, for a look at them.

    A file of more than ``most_bytes`` that is not read in parts has no digest: stop before its end.

    Returns:
        The files; how many files the source has; their bytes, as stored.

    Raises:
        DataError: the source matches nothing, holds a file of another kind, or a file cannot be read.
    """
    listed = sorted(_LISTS[source.kind](source).files)
    listed = listed[: _up_to_cap(source, [size for _, _, size in listed])]
    chosen = _spread(listed, most)
    files = []
    for name, url, size in chosen:
        for place in _spread(_cut(url, suffix_of(name), size, source.encoding), most // len(chosen)):
            is_whole = place.in_turn or (place.end < 0 and place.groups is None)
            no_digest = _Part(0, size, 0, "")
            part = no_digest if is_whole and size > most_bytes else _digest(place, url)[0]
            files.append(SourceFile(source.name, url, name, part.num_bytes, part.sha256, part.start))
    return files, len(listed), sum(size for _, _, size in listed)


def _spread(entries: list[T], most: int) -> list[T]:
    """Up to ``most`` of ``entries``, evenly spread."""
    step = max(1.0, len(entries) / most)
    return [entries[int(i * step)] for i in range(min(most, len(entries)))]
