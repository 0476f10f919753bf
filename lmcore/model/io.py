"""A model as a directory: ``model.safetensors``, ``config.json`` and its tokenizer."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lmcore.config import ModelConfig, parse, swiglu_block
from lmcore.errors import CheckpointError, GristmillError
from lmcore.model.manifest import verify_model, write_manifest
from lmcore.model.transformer import Transformer
from lmcore.store import write_atomically

FORMAT = 2  # 1: rows of all queries, then keys, then values; of the gate, then of up
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_model(
    directory: Path,
    model: nn.Module | Mapping[str, Tensor],
    config: ModelConfig,
    vocab_size: int,
    tokenizer_dir: Path | None = None,
    trained_seq_len: int | None = None,
) -> None:
    """Write a model directory and its manifest; a tied head is written once, as the embedding.

    Args:
        directory: Created if missing; files of the same names are replaced.
        model: A module, or its whole (unsharded) state by name.
        config: Its shape.
        vocab_size: Rows of its embedding.
        tokenizer_dir: Its tokenizer's files are copied from here.
        trained_seq_len: Longest sequence it was trained on, in tokens; None: all it is made for.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tied = {"head.weight"} if config.tie_embeddings else set()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in tied}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    description = {
        "format": FORMAT,
        "model": config.model_dump(mode="json"),
        "vocab_size": vocab_size,
        "trained_seq_len": trained_seq_len or config.max_seq_len,
    }
    write_atomically(directory / CONFIG, json.dumps(description, indent=1) + "\n")
    names = [WEIGHTS, CONFIG]
    if tokenizer_dir is not None:
        there = [name for name in TOKENIZER_FILES if (tokenizer_dir / name).exists()]
        for name in there:
            shutil.copyfile(tokenizer_dir / name, directory / name)
        names += there
    write_manifest(directory, names)


def trained_seq_len(directory: Path) -> int:
    """Return the longest sequence that the model in ``directory`` was trained on, in tokens.

    Raises:
        CheckpointError: there is no model.
    """
    try:
        return int(json.loads((directory / CONFIG).read_text(encoding="utf-8"))["trained_seq_len"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory} does not hold a whole model", found=repr(error)) from None


def _regrouped(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """The tensor of that name with the rows in today's order, from format 1."""
    if ".attention.qkv." in name:
        sizes = [heads * config.head_size for heads in (config.num_heads, config.kv_heads, config.kv_heads)]
        parts = [part.unflatten(0, (config.kv_heads, -1)) for part in tensor.split(sizes)]
        return torch.cat(parts, dim=1).flatten(0, 1).contiguous()
    if ".mlp.up." in name and config.activation == "swiglu":
        blocks = tensor.unflatten(0, (2, -1, swiglu_block(config.mlp_size)))
        return blocks.transpose(0, 1).flatten(0, 2).contiguous()
    return tensor


def load_model(
    directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """Read a model directory, of this version or an earlier one, ready to evaluate.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not those of the config.
    """
    saved = SavedModel(directory)
    config, vocab_size = saved.config, saved.vocab_size
    with _damage(directory):
        weights = dict(saved.tensors())
        # On no device: the weights that are loaded next become the parameters.
        with torch.device("meta"):
            model = Transformer(config, vocab_size)
        if config.tie_embeddings:
            weights["head.weight"] = weights["embedding.weight"]
        # Biases of experts stay in fp32: they move by less than other types can tell.
        kept = {name for name, _ in model.named_buffers()}
        weights = {name: tensor if name in kept else tensor.to(dtype) for name, tensor in weights.items()}
        model.load_state_dict(weights, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    model.restore_tables()
    model.to(device=device)
    return model.eval()


class SavedModel:
    """A model directory, of this version or an earlier one, whose tensors are read one by one.

    Args:
        directory: Of the model.

    Attributes:
        config, vocab_size: Its shape.
        verified: Whether a manifest says that its files are what was written.

    Raises:
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.verified = verify_model(self.directory)
        with _damage(self.directory):
            description = json.loads((self.directory / CONFIG).read_text(encoding="utf-8"))
            self.config = parse(ModelConfig, description["model"], where=str(self.directory / CONFIG))
            self.vocab_size = int(description["vocab_size"])
            self._is_old = description.get("format", 1) == 1
            self._file = safe_open(self.directory / WEIGHTS, framework="pt")

    def __call__(self, name: str, shape: torch.Size) -> Tensor:
        """Return a parameter or buffer on the CPU, in fp32.

        Raises:
            CheckpointError: there is none of this name and shape.
        """
        tensor = self._read(name)
        with _damage(self.directory):
            if tensor.shape != shape:
                raise ValueError(f"{name} is of {list(tensor.shape)}, not {list(shape)}")
        return tensor.to(torch.float32)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and tensors.

        Raises:
            CheckpointError: the file is damaged.
        """
        for name in self._file.keys():  # noqa: SIM118 - it is no mapping
            yield name, self._read(name)

    def _read(self, name: str) -> Tensor:
        with _damage(self.directory):
            tensor = self._file.get_tensor(name)
            return _regrouped(name, tensor, self.config) if self._is_old else tensor


@contextlib.contextmanager
def _damage(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, GristmillError) as error:
        raise CheckpointError(
            f"{directory} does not hold a whole model",
            expected=f"{CONFIG} and {WEIGHTS} that fit each other",
            found=" ".join(str(error).split())[:300],
            remedy="Train it again, or copy the directory again.",
        ) from None
