"""Settings of a whole run from one number: how deep the model is, or how many parameters it has.

Each function is one published rule; Bi et al. 2024 is DeepSeek LLM. Together they are a place to begin a
sweep from, not the best that is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmcore.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    QualityConfig,
    Recipe,
    ScheduleConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
    make_recipe,
    parse,
)
from lmcore.errors import ConfigError

MAX_DEPTH = 128
MIN_PARAMETERS, MAX_PARAMETERS = 500_000, 400_000_000_000
TOKENS_PER_PARAMETER = 20
BETA2 = 0.95
DEVICE_BYTES = 80e9  # of the GPU that micro-batches are cut for
STATE_BYTES = 16  # weight, gradient and two moments in fp32

# The rule behind each setting, for people.
RULES: dict[str, str] = {
    "data.tokenizer.vocab_size": "1.77e9 (N / 70e9)^0.83 numbers for N others: Tao et al. 2024",
    "model.num_layers": "The dial.",
    "model.hidden_size": "64 a layer to 16 (GPT-2), 128 from 32 on (Llama 3): Kaplan et al. 2020",
    "model.num_heads": "Heads of 64 (GPT-2), from width 2048 on of 128 (Llama 3).",
    "model.num_kv_heads": "At most 8 from width 2048 on: Ainslie et al. 2023, Llama 3",
    "model.intermediate_size": "8/3 of the width, or what is missing to the number asked for: Shazeer 2020",
    "model.max_seq_len": "Near the width (GPT-2, Llama 2): attention's products stay a seventh to a quarter.",
    "model.rope_theta": "10,000: Su et al. 2021; 500,000 beyond 4,096 tokens: Xiong et al. 2023",
    "model.activation": "Shazeer 2020",
    "model.qk_norm": "Bears larger learning rates: Wortsman et al. 2023",
    "model.tie_embeddings": "Below width 4096: Press and Wolf 2017, Llama 3.2",
    "model.init_std": "sqrt(2 / (5 width)): Nguyen and Salazar 2019",
    "train.steps": "20 tokens for each parameter: Hoffmann et al. 2022",
    "train.global_batch_tokens": "0.2920 C^0.3271 for C operations, as a power of two: Bi et al. 2024",
    "train.micro_batch_size": "What 20 GB hold: Korthikanti et al. 2022. It does not change the result.",
    "train.activation_checkpointing": "Full where not even one sequence fits there: Chen et al. 2016",
    "train.optimizer.name": "With these betas, decay and clipping the laws of Bi et al. 2024 were found.",
    "train.optimizer.learning_rate": "0.3118 C^-0.1250 for C operations: Bi et al. 2024",
    "train.optimizer.weight_decay": "Brown et al. 2020, Bi et al. 2024",
    "train.schedule.name": "Hu et al. 2024",
    "train.schedule.warmup_steps": "2%, from 40 (Ma and Yarats 2021) to 2,000 (Bi et al. 2024)",
    "train.schedule.decay_fraction": "A fifth is as good as a cosine: Hägele et al. 2024",
    "train.parallel.dp_shard": "All, where 16 bytes a parameter are more than 20 GB: Rajbhandari et al. 2020",
}


@dataclass(frozen=True)
class Size:
    """A model of some size.

    Attributes:
        model: Its shape.
        vocab_size: Entries of its tokenizer.
    """

    model: ModelConfig
    vocab_size: int

    @property
    def num_parameters(self) -> int:
        """Trainable numbers, tied ones once."""
        return count_parameters(self.model, self.vocab_size)


def size_of_depth(depth: int) -> Size:
    """The model of ``depth`` layers.

    Raises:
        ConfigError: there is no rule for so many.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise ConfigError(
            "no rule for a model of this depth",
            expected=f"1 to {MAX_DEPTH} layers",
            found=f"{depth}",
            remedy="Write the recipe by hand.",
        )
    return _size(depth, width_of_depth(depth))


def size_of_parameters(num_parameters: int) -> Size:
    """The model of nearly ``num_parameters``: within 3%, and as near as can be to the shape of its depth.

    Raises:
        ConfigError: there is no rule for so few or so many.
    """
    if not MIN_PARAMETERS <= num_parameters <= MAX_PARAMETERS:
        raise ConfigError(
            "no rule for a model of this size",
            expected=f"{MIN_PARAMETERS:,} to {MAX_PARAMETERS:,} parameters",
            found=f"{num_parameters:,}",
            remedy="Write the recipe by hand.",
        )

    def misfit(size: Size) -> tuple[bool, float]:
        model = size.model
        error = abs(math.log(size.num_parameters / num_parameters))
        wish = width_of_depth(model.num_layers)
        distance = abs(math.log(model.hidden_size / wish))
        distance += abs(math.log(model.mlp_size / (model.hidden_size * 8 / 3)))
        return (True, error) if error > 0.03 else (False, distance)

    return min(_candidates(num_parameters), key=misfit)


def _candidates(num_parameters: int) -> Iterator[Size]:
    """Models of all depths, up to twice as narrow or wide as the rule, whose MLP makes up for the rest."""
    for depth in range(1, MAX_DEPTH + 1):
        wish = width_of_depth(depth)
        for width in sorted({_round_width(wish * 2 ** (k / 16)) for k in range(-16, 17)}):
            size = _size(depth, width)
            # Too far for the MLP, which is two thirds of a block and stays between 2 and 4 widths.
            if not 0.6 < size.num_parameters / num_parameters < 1.7:
                continue
            missing = (num_parameters - size.num_parameters) / (3 * width * depth)
            step = 64 if width < 2048 else 256
            wanted = min(max(size.model.mlp_size + missing, 2 * width), 4 * width)
            yield _size(depth, width, step * max(1, round(wanted / step)))


def _size(depth: int, width: int, intermediate_size: int | None = None) -> Size:
    head_dim = 64 if width < 2048 else 128
    heads = width // head_dim
    kv_heads = heads if width < 2048 else max(k for k in range(1, 9) if heads % k == 0)
    seq_len = context_of_width(width)
    model = ModelConfig(
        num_layers=depth,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size or 64 * math.ceil(width * 8 / 3 / 64),
        max_seq_len=seq_len,
        rope_theta=10_000.0 if seq_len <= 4096 else 500_000.0,
        activation="swiglu",
        tie_embeddings=width < 4096,
        init_std=_significant(math.sqrt(2 / (5 * width))),
    )
    plain = model.model_copy(update={"intermediate_size": None})  # so that the MLP's size has no say in it
    return Size(model, vocab_of(count_parameters(plain, 0), width))


def width_of_depth(depth: int) -> int:
    """Width of the residual stream for ``depth`` layers.

    Loss depends little on their ratio: 6 layers of 4,288 were within 3% of 48 of 1,600 (Kaplan et al. 2020,
    section 3.1). GPT-2 has 64 at 12 layers, Llama 128 at 32 and 40, Llama 3.2 110 at 28; so has this rule.
    """
    return _round_width(depth * min(128, max(64, 4 * depth)))


def _round_width(width: float) -> int:
    # From 2,048 on heads come in fours, so that a good number of key heads divides them.
    step = 64 if width < 2048 else 512
    return max(64, step * round(width / step))


def vocab_of(num_block_parameters: int, width: int) -> int:
    """Entries of the vocabulary: its numbers grow as the others to the power of 0.83 (Tao et al. 2024).

    The constant is theirs for Llama 2 70B: 216,000 entries of width 8,192.
    """
    numbers = 216_000 * 8192 * (num_block_parameters / 70e9) ** 0.83
    return 1024 * min(256, max(1, round(numbers / width / 1024)))


def context_of_width(width: int) -> int:
    """Tokens of a sequence: the power of two at or above the width, from 256 to 8,192.

    Forward and backward, a block's matrices take 72 width^2 operations a token and its attention 12 width x
    tokens, so the two stay in proportion. GPT-2 (768) has 1,024 and Llama 2 (4,096) 4,096, as here.
    """
    return min(8192, max(256, 2 ** math.ceil(math.log2(width))))


def count_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Trainable numbers of a model, tied ones once; for a vocabulary of 0, all but those of its tables."""
    width, head = model.hidden_size, model.head_size
    qkv = (model.num_heads + 2 * model.kv_heads) * head
    block = width * (qkv + model.num_heads * head) + (qkv + width if model.bias else 0)
    norm = width * (2 if model.norm == "layernorm" and model.bias else 1)
    block += 2 * norm + (2 * head if model.qk_norm else 0)
    tables = vocab_size * width * (1 if model.tie_embeddings else 2)
    if model.position == "learned":
        tables += model.max_seq_len * width
    moe = model.moe
    mixture = width * moe.num_experts + sum(
        _mlp(model, size * model.expert_size) * number
        for size, number in ((1, moe.num_experts), (moe.num_shared_experts, 1))
    )
    mixtures = sum(map(moe.replaces_mlp, range(model.num_layers)))
    mlps = mixtures * mixture + (model.num_layers - mixtures) * _mlp(model, model.mlp_size)
    return model.num_layers * block + mlps + norm + tables


def _mlp(model: ModelConfig, size: int) -> int:
    up = size * (2 if model.activation == "swiglu" else 1)
    return model.hidden_size * (up + size) + (up + model.hidden_size if model.bias and size else 0)


def operations_of(size: Size, num_tokens: float, seq_len: int) -> float:
    """Floating-point operations of a training, without the vocabulary's (Bi et al. 2024, equation 2)."""
    model = size.model
    attention = 12 * model.num_layers * model.num_heads * model.head_size * seq_len
    return num_tokens * (6 * count_parameters(model, 0) + attention)


def batch_of(operations: float) -> int:
    """Tokens of a step: 0.2920 C^0.3271 (Bi et al. 2024, equation 1), as the nearest power of two.

    The good ones are a broad band (there, section 3.1), wider than the rounding.
    """
    return 2 ** round(math.log2(0.2920 * operations**0.3271))


def learning_rate_of(operations: float) -> float:
    """Peak learning rate of AdamW: 0.3118 C^-0.1250 (Bi et al. 2024, equation 1)."""
    return _significant(0.3118 * operations**-0.1250)


def warmup_of(steps: int) -> int:
    """Steps of linear warmup: 2% of all, at least 2 / (1 - beta2) (Ma and Yarats 2021), and at most 2,000."""
    return min(2_000, max(round(2 / (1 - BETA2)), steps // 50), steps - 1)


def training_of(size: Size, processes: int = 1, precision: str = "bf16") -> TrainConfig:
    """The training of a model of this size, on so many processes."""
    seq_len = size.model.max_seq_len
    num_tokens = TOKENS_PER_PARAMETER * size.num_parameters
    operations = operations_of(size, num_tokens, seq_len)
    # A whole number of sequences for each process, whatever their number.
    each = max(1, round(batch_of(operations) / seq_len / processes))
    batch = each * processes * seq_len
    steps = max(2, math.ceil(num_tokens / batch))
    micro_batch_size, checkpointing = _memory(size, each, precision)
    shards = processes if size.num_parameters * STATE_BYTES > DEVICE_BYTES / 4 else 1
    every = max(1, steps // 20)
    values: dict[str, Any] = {
        "steps": steps,
        "seq_len": seq_len,
        "global_batch_tokens": batch,
        "micro_batch_size": micro_batch_size,
        "precision": precision,
        "activation_checkpointing": checkpointing,
        "optimizer": OptimizerConfig(
            name="adamw", learning_rate=learning_rate_of(operations), beta2=BETA2, weight_decay=0.1
        ),
        "schedule": ScheduleConfig(
            name="wsd", warmup_steps=warmup_of(steps), decay_fraction=0.2, min_ratio=0.0
        ),
        "parallel": ParallelConfig(dp_replicate=processes // shards, dp_shard=shards),
        "validate_every": every,
        "validation_tokens": max(32_768, batch),
        "checkpoint_every": every,
    }
    return parse(TrainConfig, values, where="the training of this size")


def _memory(size: Size, sequences: int, precision: str) -> tuple[int, str]:
    """Sequences to compute at a time, and whether to keep what is between a block's ends.

    A block keeps 34 bytes of each of its dimensions in 16 bits, without the scores of attention, which are
    never whole (Korthikanti et al. 2022, equation 1); the logits take 10 more bytes an entry.
    """
    model, tokens = size.model, size.model.max_seq_len
    wide = 2 if precision == "fp32" else 1
    logits = 10 * size.vocab_size
    kept = wide * 34 * model.hidden_size * model.num_layers + logits
    ends = wide * model.hidden_size * (2 * model.num_layers + 34) + logits
    fits = DEVICE_BYTES / 4 / tokens
    cost, checkpointing = (kept, "none") if kept <= fits else (ends, "full")
    divisors = [d for d in range(1, sequences + 1) if sequences % d == 0 and d * cost <= fits]
    return max(divisors, default=1), checkpointing


def recipe_of(size: Size, name: str, path: str = "", processes: int = 1, precision: str = "bf16") -> Recipe:
    """A complete recipe for a model of this size, of the files at ``path`` or else the quickstart's.

    Raises:
        ConfigError: the path, the precision or the name is none.
    """
    tokenizer = TokenizerConfig(
        vocab_size=size.vocab_size, sample_bytes=max(10_000_000, 2_500 * size.vocab_size)
    )
    seq_len = size.model.max_seq_len
    evaluation = EvaluationConfig(stride_tokens=seq_len // 2, micro_batch_size=max(1, 16_384 // seq_len))
    if not path:
        data = DataConfig(tokenizer=tokenizer)
    else:
        source = parse(SourceConfig, {"name": "text", "kind": "files", "path": path}, where="the path")
        data = DataConfig(sources=(source,), quality=QualityConfig(profile="prose"), tokenizer=tokenizer)
        evaluation = evaluation.model_copy(update={"prompts": ("The ", "In the beginning ")})
    train = training_of(size, processes, precision)
    return make_recipe(name=name, data=data, model=size.model, train=train, evaluation=evaluation)


def _significant(value: float) -> float:
    return float(f"{value:.3g}")
