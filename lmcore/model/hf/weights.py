"""Weights of a Hugging Face directory as parameters of ours, read one by one as they are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmcore.config import ModelConfig
from lmcore.errors import CheckpointError
from lmcore.model.hf.config import check_settings, read_config
from lmcore.model.hf.families import HEAD, Family
from lmcore.model.hf.files import weight_files
from lmcore.model.hf.layout import layout
from lmcore.model.manifest import verify_model

_DTYPES = ("F32", "BF16", "F16")
_MOST_NAMED = 4


class HFWeights(Mapping[str, Tensor]):
    """The parameters of a Hugging Face model: name to whole fp32 tensor on the CPU, read when asked for.

    No tensor is read before all names, shapes and types were checked in the files' headers.

    Args:
        directory: With ``config.json`` and safetensors, one file or several with an index.
        wanted: Settings that the model must have; None: those that its ``config.json`` says.

    Attributes:
        config: Shape of the model: ``wanted``, or that of ``config.json``.
        vocab_size: Rows of its embedding; a tokenizer may have fewer entries.
        family: Its ``model_type``.
        parameters: What each parameter is made of.
        verified: Whether a manifest says that its files are what was written.

    Raises:
        CheckpointError: tensors are missing, misshapen, of another type or too many, or a file is damaged.
        ConfigError: the model is of a family that we lack, or the settings are not its own.
    """

    def __init__(self, directory: str | Path, wanted: ModelConfig | None = None) -> None:
        self.directory = Path(directory).expanduser()
        self.verified = verify_model(self.directory)
        description = check_settings(self.directory, wanted) if wanted else read_config(self.directory)
        self.config = wanted.unpadded if wanted else description.config
        self.vocab_size = description.vocab_size
        self.family = description.family.model_type
        self.parameters = layout(description.family, self.config, self.vocab_size)
        self._handles = [_open(path) for path in weight_files(self.directory)]
        self._places = self._find(description.family)
        self._check(description.family)

    def __call__(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """Return parameter ``name``, which must be of ``shape`` if that is given.

        Raises:
            CheckpointError: the model has none such, or a file cannot be read.
        """
        if name == "head.weight" and self.config.tie_embeddings:
            name = "embedding.weight"
        parameter = self.parameters.get(name)
        if parameter is None or (shape is not None and tuple(shape) != tuple(parameter.shape)):
            raise CheckpointError(
                f"{self.directory} has no such parameter",
                expected=f"{name} {list(shape or ())}",
                found=f"{list(parameter.shape)}" if parameter else "none",
            )
        try:
            parts = [self._read(tensor) for tensor in parameter.tensors]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{name} cannot be read from {self.directory}", found=str(error)) from None
        # A copy: what is mapped from a file must not become a parameter that is trained.
        return parameter.join(parts).to(torch.float32, copy=True, memory_format=torch.contiguous_format)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.parameters:
            raise KeyError(name)
        return self(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def _read(self, tensor: str) -> Tensor:
        handle, stored = self._places[tensor]
        return handle.get_tensor(stored)

    def _find(self, family: Family) -> dict[str, tuple[Any, str]]:
        """Where each tensor is, by the family's full name: its file, and its name there."""
        stored = [(handle, name) for handle in self._handles for name in handle.keys()]  # noqa: SIM118
        bare = not any(name.startswith(family.prefix) for _, name in stored)
        places: dict[str, tuple[Any, str]] = {}
        for handle, name in stored:
            full = family.prefix + name if bare and name != HEAD else name
            if full in places:
                raise CheckpointError(f"{self.directory} holds a tensor twice", found=name)
            places[full] = (handle, name)
        return places

    def _check(self, family: Family) -> None:
        expected = {name: shape for p in self.parameters.values() for name, shape in p.tensors.items()}
        if missing := sorted(expected.keys() - self._places.keys()):
            raise self._misfit("lacks tensors", expected=_listed(missing), found="none")
        unneeded = [HEAD] if self.config.tie_embeddings else []
        patterns = [*map(re.escape, unneeded), *(re.escape(family.prefix) + p for p in family.buffers)]
        known = re.compile("|".join(patterns) or "(?!)")
        if extra := sorted(n for n in self._places.keys() - expected.keys() if not known.fullmatch(n)):
            raise self._misfit(
                "holds tensors that its model has not",
                expected=f"those of a {family.model_type} as its config.json describes it",
                found=_listed(extra),
            )
        headers = {name: handle.get_slice(stored) for name, (handle, stored) in self._places.items()}
        wrong = [
            name
            for name, shape in expected.items()
            if headers[name].get_shape() != list(shape) or headers[name].get_dtype() not in _DTYPES
        ]
        if wrong:
            raise self._misfit(
                "holds tensors of another shape or type",
                expected=_listed(f"{name} {list(expected[name])}" for name in wrong)
                + f" of {', '.join(_DTYPES)}",
                found=_listed(
                    f"{headers[name].get_shape()} of {headers[name].get_dtype()}" for name in wrong
                ),
            )

    def _misfit(self, what: str, *, expected: str, found: str) -> CheckpointError:
        return CheckpointError(
            f"{self.directory} {what}",
            expected=expected,
            found=found,
            remedy="Copy or download it again; its config.json and its weights must be of one model.",
        )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged", found=str(error), remedy="Copy or download it again."
        ) from None


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
