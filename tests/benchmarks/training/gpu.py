"""Target 6: MFU and tokens per joule on one GPU, and nanoGPT with compile beside it. It needs lmcore alone.

MFU is (operations of training on a token, ``Transformer.flops_per_token``) x (tokens/s) over the data sheet's
dense 16-bit rate, for fp8 too: so a fp8 that is faster has the larger figure. nanoGPT's tokens count the same
operations. With ``--small`` tiny models run wherever there is room, to show that all of it works.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lmcore.config import ModelConfig, TrainConfig
from lmcore.model.transformer import Transformer
from lmcore.parallel.mesh import World
from lmcore.train.energy import open_gpu
from lmcore.train.peaks import vendor_peak
from lmcore.train.trainer import Trainer
from training.measuring import not_measured, say, verdict
from training.nanogpt import NanoGPT, is_there
from training.trainers import make_trainer, write_noise

TARGET = "MFU in bf16 at 2,048-token sequences"
FP8 = "tokens/s in fp8 over those in bf16, 1.5B"
VOCAB = 50_304
_WARMUP_STEPS = 5


@dataclass(frozen=True)
class Size:
    """A GPT-2 of nanoGPT's kind, and what is asked of it.

    Attributes:
        name: In words.
        layers, heads, width: Its shape; heads are 64 wide.
        batch: Sequences at a time.
        micro_batches: Of a step.
        limit: Least MFU.
    """

    name: str
    layers: int
    heads: int
    width: int
    batch: int
    micro_batches: int
    limit: float


SIZES = (
    Size("124M", 12, 12, 768, 16, 2, 0.50),
    Size("350M", 24, 16, 1024, 8, 4, 0.55),
    Size("1.5B", 48, 25, 1600, 4, 8, 0.60),
)
SMALL = (Size("tiny", 2, 2, 128, 2, 2, 0.0),)


def measure(nanogpt: Path | None, *, small: bool, quick: bool) -> None:
    """Print MFU and tokens per joule of each size, and of nanoGPT's."""
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        for size in SIZES:
            not_measured(6, f"{TARGET}, {size.name}", "no GPU")
        not_measured(6, FP8, "no GPU")
        if not small:
            return
    device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
    seq_len, vocab, steps = (128, 512, 3) if small else (2_048, VOCAB, 10 if quick else 30)
    say(f"  {torch.cuda.get_device_name(device) if has_gpu else 'the CPU'}, {seq_len} tokens a sequence")
    for size in SMALL if small else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_noise(Path(folder), vocab, 200_000 if small else 4_000_000)
            rates = {}
            for precision in ("bf16", "fp8") if small or size.name == "1.5B" else ("bf16",):
                rates[precision] = _ours(Path(folder), size, precision, seq_len, vocab, steps, device)
            if is_there(nanogpt):
                _theirs(nanogpt, Path(folder) / "nanogpt", size, seq_len, vocab, steps, device)
            if not small:
                _judge(size, rates, seq_len, device)


def _judge(size: Size, rates: dict[str, float | None], seq_len: int, device: torch.device) -> None:
    target, rate, peak = f"{TARGET}, {size.name}", rates["bf16"], _peak(device)
    if rate is None or peak is None:
        not_measured(6, target, "it failed" if rate is None else "no data sheet of this GPU at hand")
    else:
        verdict(6, target, rate * _flops(size, seq_len, VOCAB) / peak, size.limit, least=True)
    if rates.get("fp8") and rate:
        verdict(6, FP8, rates["fp8"] / rate, 1.0, least=True)


def _ours(
    folder: Path, size: Size, precision: str, seq_len: int, vocab: int, steps: int, device: torch.device
) -> float | None:
    """Tokens per second of our trainer, or None if it cannot."""
    train = {
        "steps": 10_000,
        "seq_len": seq_len,
        "global_batch_tokens": size.batch * size.micro_batches * seq_len,
        "micro_batch_size": size.batch,
        "precision": precision,
        "optimizer": {"name": "adamw", "learning_rate": 6e-4, "weight_decay": 0.1},
        "parallel": {"dp_replicate": 1},
        "checkpoint_every": 0,
    }
    try:
        trainer = make_trainer(
            folder, _model(size, seq_len), TrainConfig.model_validate(train), World(0, 1, device)
        )
        seconds, joules = _timed(trainer, steps, device)
    except Exception as error:  # the next one may fit
        say(f"  ours, {size.name} in {precision}: failed: {' '.join(str(error).split())[:300]}")
        return None
    finally:
        trainer = None
        _let_go(device)
    rate = train["global_batch_tokens"] * steps / seconds
    _print_rate(f"ours, {size.name} in {precision}", rate, size, seq_len, vocab, device)
    energy = "not measured" if joules is None else f"{train['global_batch_tokens'] * steps / joules:,.1f}"
    say(f"    tokens per joule: {energy}")
    return rate


def _timed(trainer: Trainer, steps: int, device: torch.device) -> tuple[float, float | None]:
    for _ in range(_WARMUP_STEPS):
        trainer._train_step()
    wait = _waiting(device)
    wait()
    meter, start = open_gpu(device) if device.type == "cuda" else None, time.perf_counter()
    for _ in range(steps):
        trainer._train_step()
    wait()
    return time.perf_counter() - start, meter.joules() if meter else None


def _theirs(
    sources: Path, folder: Path, size: Size, seq_len: int, vocab: int, steps: int, device: torch.device
) -> None:
    """The same shape in nanoGPT, compiled on a GPU, in a process of its own before or after ours."""
    settings = (
        f"--device={device.type} --compile={device.type == 'cuda'} --eval_iters=1 "
        f"--dtype={'bfloat16' if device.type == 'cuda' else 'float32'} --log_interval=1 --dropout=0.0 "
        f"--block_size={seq_len} --batch_size={size.batch} "
        f"--gradient_accumulation_steps={size.micro_batches} "
        f"--n_layer={size.layers} --n_head={size.heads} --n_embd={size.width} --max_iters={steps + 10} "
        "--eval_interval=1000000 --bias=False"
    )
    noise = np.random.default_rng(0).integers(0, vocab, 2_000_000)
    peer = NanoGPT(sources, folder, 2, noise, noise[:100_000], vocab, settings)
    try:
        peer.finish()
        rate = size.batch * size.micro_batches * seq_len / peer.iteration_seconds()
        _print_rate(f"nanoGPT, {size.name}", rate, size, seq_len, vocab, device)
    except RuntimeError as error:
        say(f"  nanoGPT, {size.name}: failed: {' '.join(str(error).split())[-300:]}")
    finally:
        peer.stop()


def _print_rate(name: str, rate: float, size: Size, seq_len: int, vocab: int, device: torch.device) -> None:
    flops, peak = rate * _flops(size, seq_len, vocab), _peak(device)
    mfu = "" if peak is None else f", MFU {flops / peak:.1%} of {peak / 1e12:.0f} TFLOP/s"
    memory = (
        f", at most {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
        if device.type == "cuda" and name.startswith("ours")
        else ""
    )
    say(f"  {name}: {rate:,.0f} tokens/s, {flops / 1e12:.3g} TFLOP/s{mfu}{memory}")


def _model(size: Size, seq_len: int) -> ModelConfig:
    return ModelConfig(
        num_layers=size.layers,
        hidden_size=size.width,
        num_heads=size.heads,
        max_seq_len=seq_len,
        position="learned",
        norm="layernorm",
        activation="gelu",
        qk_norm=False,
        zero_init_projections=False,
    )


def _flops(size: Size, seq_len: int, vocab: int) -> int:
    with torch.device("meta"):
        return Transformer(_model(size, seq_len), vocab).flops_per_token(seq_len)


def _peak(device: torch.device) -> float | None:
    peak = vendor_peak(torch.cuda.get_device_name(device), "16-bit") if device.type == "cuda" else None
    return None if peak is None else peak.flops


def _waiting(device: torch.device) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None


def _let_go(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
