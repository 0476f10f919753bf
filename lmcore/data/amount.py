"""Whether there is enough text for a training: told before it begins, not after."""

from __future__ import annotations

from lmcore.config import TrainConfig

MANY_EPOCHS = 4  # up to so many are nearly as good as new text (Muennighoff et al. 2023)
TEXT_BYTES_PER_TOKEN = 4  # roughly, of English


def too_little(train: TrainConfig, num_tokens: int, *, estimated: bool = False) -> str:
    """Say that a training would read its text more than ``MANY_EPOCHS`` times, and what to do; or nothing.

    A mixture has limits of its own (``max_epochs``), which are held to.

    Args:
        train: The training.
        num_tokens: Of the training split.
        estimated: Whether that is an estimate.
    """
    wanted = train.steps * train.global_batch_tokens
    if train.mixture or wanted <= MANY_EPOCHS * num_tokens:
        return ""
    about = "about " if estimated else ""
    times = wanted / num_tokens if num_tokens else 0.0
    epochs = f"{about}{times:,.{1 if times < 10 else 0}f} times" if times else "more often than can be told"
    steps = MANY_EPOCHS * num_tokens // train.global_batch_tokens
    fewer = (
        f": train.steps={steps} reads it {MANY_EPOCHS} times" if steps > train.schedule.warmup_steps else ""
    )
    return (
        f"too little text: {wanted:,} tokens are needed (train.steps x train.global_batch_tokens), and there "
        f"are {about}{num_tokens:,}: they would be read {epochs}, where beyond {MANY_EPOCHS} times a model "
        f"learns less and less (Muennighoff et al. 2023). Add text (data.sources; `gristmill size --path`), "
        f"or take a smaller model or fewer tokens{fewer}."
    )


def too_little_text(train: TrainConfig, text_bytes: int) -> str:
    """The same before there are tokens, by about how many bytes of text there are."""
    return too_little(train, text_bytes // TEXT_BYTES_PER_TOKEN, estimated=True)
