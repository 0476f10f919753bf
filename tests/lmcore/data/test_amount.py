"""Too little text is told of before a training, with what to do, and that is enough."""

import re

from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import MixtureConfig, ScheduleConfig, SourceConfig, TrainConfig
from lmcore.data.amount import MANY_EPOCHS, TEXT_BYTES_PER_TOKEN, too_little, too_little_text
from lmcore.data.sources import find_files, text_there


def training(steps, **changes):
    return TrainConfig(
        **{"steps": steps, "global_batch_tokens": 4096, "schedule": ScheduleConfig(warmup_steps=1), **changes}
    )


@given(steps=st.integers(2, 10**6), num_tokens=st.integers(0, 10**9))
def test_what_is_read_too_often_is_told_and_only_that(steps, num_tokens):
    said = too_little(training(steps), num_tokens)
    assert bool(said) == (steps * 4096 > MANY_EPOCHS * num_tokens)
    if said:
        assert f"{steps * 4096:,} tokens are needed" in said
        assert f"there are {num_tokens:,}:" in said
    if found := re.search(r"train\.steps=(\d+)", said):
        assert too_little(training(int(found[1])), num_tokens) == ""


def test_the_number_of_epochs_is_told():
    assert "read 228 times, where beyond 4" in too_little(training(228), 4096)
    assert "--path" in too_little(training(228), 4096)
    assert "read 4.3 times, where beyond 4 " in too_little(training(43), 40_960)


def test_steps_that_would_all_be_warmup_are_not_advised():
    short = training(100, schedule=ScheduleConfig(warmup_steps=50))
    assert "train.steps=" not in too_little(short, 4096)
    assert "train.steps=60 " in too_little(short, 4096 * 15)


def test_a_mixture_has_limits_of_its_own():
    assert too_little(training(100, mixture=(MixtureConfig(source="a", max_epochs=90),)), 10) == ""


def test_before_there_are_tokens_it_is_said_to_be_an_estimate():
    there = TEXT_BYTES_PER_TOKEN * 4096
    assert too_little_text(training(MANY_EPOCHS), there) == ""
    assert "there are about 4,096: they would be read about 5.0 times" in too_little_text(training(5), there)


def test_text_is_counted_by_the_sizes_of_files_alone(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("the mill turns\n" * 100)
    source = SourceConfig(name="a", kind="files", path=f"{tmp_path}/*.txt")
    files = find_files([source]).files
    assert text_there([source]) == sum(file.num_bytes for file in files) == 4500
    assert text_there([source.model_copy(update={"max_bytes": 3100})]) == 3000
    assert text_there([SourceConfig(name="s")]) > 10_000_000
    for path in ("s3://bucket/*.txt", f"{tmp_path}/*.jsonl"):
        assert text_there([source, SourceConfig(name="b", kind="files", path=path)]) is None
