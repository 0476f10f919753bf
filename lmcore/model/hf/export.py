"""A model of ours as a Hugging Face directory, which ``transformers`` loads with no code of ours.

Where each tensor goes is planned from the shapes alone. So the tensors may come in any order, each is written
to its place and forgotten, and no more than one parameter is held at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmcore.config import ModelConfig
from lmcore.disk import storage_error
from lmcore.errors import CheckpointError, ConfigError
from lmcore.model.hf.config import CONFIG, to_config
from lmcore.model.hf.files import INDEX, SINGLE
from lmcore.model.hf.layout import layout
from lmcore.model.hf.settings import family_of
from lmcore.model.io import TOKENIZER_FILES
from lmcore.model.manifest import write_manifest
from lmcore.tokenizer_settings import switch_off

MAX_FILE_BYTES = 4_000_000_000
DType = Literal["fp32", "bf16"]
_DTYPES = {"fp32": (torch.float32, "F32"), "bf16": (torch.bfloat16, "BF16")}
_ALIGNMENT = 8  # of the first byte behind a header


@dataclass(frozen=True)
class _Place:
    """Where a tensor is written: file, and its first byte there."""

    file: Path
    begin: int


def export(
    directory: Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    vocab_size: int,
    tokenizer_dir: Path | None = None,
    *,
    dtype: DType = "fp32",
    max_file_bytes: int = MAX_FILE_BYTES,
    manifest: bool = False,
) -> None:
    """Write a Hugging Face directory, built beside its place and renamed once it is whole.

    Args:
        directory: Must not be there yet, or be empty.
        tensors: Name and whole tensor of every parameter, in any order; a tied head may be left out.
        config: Its shape.
        vocab_size: Rows of its embedding.
        tokenizer_dir: Its tokenizer's files are taken over from here; None: without one.
        dtype: Type of the weights written.
        max_file_bytes: Weights of one file; a larger tensor has one of its own.
        manifest: Whether a manifest says what its files are, which nobody may change then.

    Raises:
        ConfigError: no family of Hugging Face has such a model, or something is at ``directory``.
        CheckpointError: the tensors are not those of the model.
        StorageError: the disk has no room.
    """
    family_of(config)
    directory = directory.absolute()
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise ConfigError(
            f"{directory} is there already", expected="a folder that is new or empty", remedy="Name another."
        )
    build = directory.parent / f".{directory.name}-{uuid.uuid4().hex[:8]}"
    try:
        build.mkdir(parents=True)
        _write_weights(build, tensors, config, vocab_size, dtype, max_file_bytes)
        _write_descriptions(build, config, vocab_size, tokenizer_dir, dtype)
        if manifest:
            write_manifest(build, [path.name for path in build.iterdir()])
        if directory.is_dir():
            directory.rmdir()
        build.rename(directory)
    except OSError as error:
        raise storage_error(
            build, f"the model was written to {directory}", error, "or name another folder"
        ) from error
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _write_weights(
    build: Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    vocab_size: int,
    dtype: DType,
    max_file_bytes: int,
) -> None:
    parameters = layout(family_of(config), config, vocab_size)
    shapes = {name: shape for parameter in parameters.values() for name, shape in parameter.tensors.items()}
    places = _plan(build, shapes, dtype, max_file_bytes)
    waiting = dict(parameters)
    for name, tensor in tensors:
        if name == "head.weight" and config.tie_embeddings:
            continue
        parameter = waiting.pop(name, None)
        if parameter is None or parameter.shape != tensor.shape:
            raise CheckpointError(
                "the tensors are not those of the model",
                expected=f"{list(parameter.shape)} for {name}"
                if parameter
                else "each of its parameters once",
                found=f"{name} {list(tensor.shape)}",
            )
        for part, content in parameter.split(tensor.detach()).items():
            _write_tensor(places[part], content, dtype)
    if waiting:
        raise CheckpointError(
            "the tensors are not those of the model",
            expected=", ".join(list(waiting)[:3]),
            found=f"{len(parameters) - len(waiting)} of {len(parameters)} parameters",
        )
    for file in {place.file for place in places.values()}:
        _sync(file)


def _plan(build: Path, shapes: dict[str, torch.Size], dtype: DType, max_bytes: int) -> dict[str, _Place]:
    """Divide the tensors over files, write the headers and the index, and say where each tensor goes."""
    width, type_name = _DTYPES[dtype][0].itemsize, _DTYPES[dtype][1]
    groups: list[dict[str, int]] = [{}]
    for name, shape in shapes.items():
        size = width * prod(shape)
        if groups[-1] and sum(groups[-1].values()) + size > max_bytes:
            groups.append({})
        groups[-1][name] = size
    places: dict[str, _Place] = {}
    for number, group in enumerate(groups, start=1):
        single = len(groups) == 1
        file = build / (SINGLE if single else f"model-{number:05d}-of-{len(groups):05d}.safetensors")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, size in group.items():
            header[name] = {"dtype": type_name, "shape": [*shapes[name]], "data_offsets": [end, end + size]}
            end += size
        start = _write_header(file, header, end)
        places |= {name: _Place(file, start + header[name]["data_offsets"][0]) for name in group}
    if len(groups) > 1:
        total = sum(sum(group.values()) for group in groups)
        weight_map = {name: place.file.name for name, place in places.items()}
        _write_json(build / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return places


def _write_header(file: Path, header: dict[str, Any], num_bytes: int) -> int:
    """Begin a safetensors file for ``num_bytes`` of tensors; return where they begin."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        start = opened.tell()
        opened.truncate(start + num_bytes)
    return start


def _write_tensor(place: _Place, tensor: Tensor, dtype: DType) -> None:
    content = tensor.to("cpu", _DTYPES[dtype][0]).contiguous().flatten()
    with place.file.open("r+b") as opened:
        opened.seek(place.begin)
        opened.write(content.view(torch.uint8).numpy().data)


def _write_descriptions(
    build: Path, config: ModelConfig, vocab_size: int, tokenizer_dir: Path | None, dtype: DType
) -> None:
    eos_id = None
    if tokenizer_dir is not None:
        eos_id = _copy_tokenizer(tokenizer_dir, build, config.max_seq_len)
    type_name = str(_DTYPES[dtype][0]).removeprefix("torch.")
    _write_json(build / CONFIG, to_config(config, vocab_size, type_name, eos_id))
    # Documents follow the token that ends the one before: a text begins behind it too.
    ends = {} if eos_id is None else {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    _write_json(build / "generation_config.json", {"_from_model_config": True, **ends})


def _copy_tokenizer(source: Path, build: Path, max_seq_len: int) -> int | None:
    """Take over a tokenizer's files; return the token that ends a document, if they say one."""
    file, described = (source / name for name in TOKENIZER_FILES)
    try:
        description = json.loads(described.read_text(encoding="utf-8"))
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
        ids = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
        plain, off = switch_off(tokenizer)
        if off:
            (build / file.name).write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")
        else:
            shutil.copyfile(file, build / file.name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the tokenizer at {source} cannot be read",
            expected=" and ".join(TOKENIZER_FILES),
            found=str(error),
        ) from None
    _write_json(build / described.name, {**description, "model_max_length": max_seq_len})
    end = description.get("eos_token")
    return ids.get(end["content"] if isinstance(end, dict) else end)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
