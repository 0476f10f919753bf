"""Reading a checkpoint's shards: nothing in them is executed, whoever wrote them.

torch DCP keeps its index, ``.metadata``, as a pickle and unpickles it, and it unpickles an entry that the
index calls no tensor. A pickle calls what it names. Here the index may name the classes of an index alone,
every entry must be a tensor, and shards must lie in the checkpoint's own folder.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import _get_layout

from lmcore.errors import CheckpointError

INDEX = ".metadata"
_CLASSES: tuple[Any, ...] = (
    metadata.Metadata,
    metadata.TensorStorageMetadata,
    metadata.ChunkStorageMetadata,
    metadata.TensorProperties,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
    torch.Size,
    _get_layout,
)
# A path is nobody's to follow: a pure one says where the checkpoint was written.
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(found.__module__, found.__qualname__): found for found in _CLASSES},
    **{("torch", str(found).removeprefix("torch.")): found for found in vars(torch).values()
       if isinstance(found, torch.dtype)},
    **{(module, name): pathlib.PurePath for module in ("pathlib", "pathlib._local")
       for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
}  # fmt: skip


class ShardReader(FileSystemReader):
    """Reads the shards of the checkpoint at ``path`` by an index that can name nothing but its own classes.

    Args:
        path: The folder of a checkpoint.

    Raises:
        CheckpointError: on reading, the index names something else, or is none.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.folder = path

    def read_metadata(self, *arguments: Any, **settings: Any) -> Metadata:
        """Read the index."""
        if settings.get("rank") is not None:
            raise _refused(self.folder, "an index for each process, which no checkpoint of ours has")
        index = read_index(self.folder)
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


class TensorPlanner(DefaultLoadPlanner):
    """Loads tensors; DCP's own planner unpickles what is none."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> NoReturn:
        """Refuse an entry that is no tensor."""
        raise CheckpointError("a checkpoint holds no tensor", found=read_item.dest_index.fqn)


def read_index(folder: Path) -> Metadata:
    """Read ``.metadata`` of the checkpoint at ``folder``; no code that it names is imported or called.

    Raises:
        CheckpointError: it names another class, is damaged, or points outside of the folder.
    """
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            index = _Unpickler(file).load()
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle raises whatever it likes
        raise _refused(folder, f"{type(error).__name__}: {error}") from None
    if not isinstance(index, Metadata) or not isinstance(index.state_dict_metadata, dict):
        raise _refused(folder, f"a {type(index).__name__}")
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(entry, TensorStorageMetadata):
            raise _refused(folder, f"{name!r}, which is no tensor")
    _check_places(folder, index.storage_data)
    return index


def _check_places(folder: Path, places: Any) -> None:
    names = {path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    entries: Iterable[tuple[Any, Any]] = places.items() if isinstance(places, dict) else [(None, None)]
    for index, place in entries:
        if not isinstance(index, MetadataIndex) or not isinstance(place, filesystem._StorageInfo):
            raise _refused(folder, "no table of places in shards")
        if place.relative_path not in names or place.transform_descriptors:
            raise _refused(folder, f"{index.fqn} in {place.relative_path!r}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise CheckpointError(
                f"the index {INDEX} of a checkpoint names {module}.{name}",
                expected="classes of torch.distributed.checkpoint, types and sizes of tensors alone",
                remedy="It is not read: a pickle may run anything. Remove the checkpoint unless you made it.",
            )
        return found


def _refused(folder: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"the index {folder / INDEX} cannot be read",
        expected="that of tensors in the files beside it, as torch.distributed.checkpoint writes it",
        found=" ".join(found.split())[:200],
        remedy="Remove the checkpoint: the one before is used.",
    )
