import os
import subprocess
import sys

import pytest
import torch

from lmcore.config import SamplingConfig
from lmcore.errors import CheckpointError, DataError
from lmcore.eval.generate import Generator, main
from lmcore.model.io import save_model

PROMPTS = ["", "d", "def value(self)", "日本 🙂 naïve", "if x " * 30]


@pytest.fixture(scope="module")
def generator(corpus):
    return Generator.load(corpus.model)


def without_cache(generator, prompt, num_tokens):
    """Greedy tokens, each from a pass over all that the model remembers then."""
    text = [generator.decoder.eos_id, *generator.tokenizer.encode(prompt, add_special_tokens=False).ids]
    room = generator.max_tokens
    found = []
    for _ in range(num_tokens):
        text = text[-(room // 2) :] if len(text) > room else text
        with torch.no_grad():
            token = int(generator.model(torch.tensor([text]))[0, -1].argmax())
        if token == generator.decoder.eos_id:
            break
        found.append(token)
        text.append(token)
    return found


@pytest.mark.parametrize(("position", "length"), [("rope", 32), ("learned", 32), ("learned", 20)])
def test_the_cache_changes_nothing_even_where_the_text_outgrows_the_model(corpus, position, length):
    generator = Generator(corpus.make_model(position=position), corpus.tokenizer, length)
    sampling = SamplingConfig(temperature=0, max_new_tokens=80)
    longest = 0
    for prompt in PROMPTS:
        ids = generator.tokenizer.encode(prompt, add_special_tokens=False).ids
        tokens = list(generator.continue_tokens(ids, sampling))
        assert tokens == without_cache(generator, prompt, 80)
        longest = max(longest, len(tokens))
    assert longest > 2 * generator.max_tokens


def test_positions_that_were_never_trained_are_never_used(corpus, tmp_path):
    model = corpus.make_model(position="learned")
    with torch.no_grad():
        model.position_embedding.weight[20:] = torch.nan
    save_model(tmp_path, model, model.config, model.vocab_size, corpus.tokenizer, trained_seq_len=20)
    text = Generator.load(tmp_path).text("def value", SamplingConfig(max_new_tokens=60))
    assert len(text) > 40


def test_a_text_does_not_depend_on_the_others(corpus, generator):
    sampling = SamplingConfig(temperature=0.9, max_new_tokens=12)
    together = [generator.text(prompt, sampling) for prompt in PROMPTS]
    alone = [Generator.load(corpus.model).text(prompt, sampling) for prompt in reversed(PROMPTS)]
    assert together == alone[::-1]


def test_the_seed_decides(generator):
    texts = [
        generator.text("x", SamplingConfig(temperature=1.5, top_k=0, top_p=1.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_it_stops_at_the_end_of_a_document(corpus):
    model = corpus.make_model()
    with torch.no_grad():
        model.head.weight.zero_()  # all tokens alike: the likeliest is the first, EOS
    assert Generator(model, corpus.tokenizer, 32).text("x", SamplingConfig(temperature=0)) == ""


def test_a_prompt_that_is_not_text_is_refused(generator):
    with pytest.raises(DataError, match="UTF-8"):
        generator.text("\udcff", SamplingConfig())


def test_a_tokenizer_larger_than_the_model_is_refused(corpus):
    with pytest.raises(CheckpointError, match="not this model's"):
        Generator(corpus.make_model(vocab_size=100), corpus.tokenizer, 32)


def test_the_command_prints_prompt_and_continuation(corpus, generator, capsys):
    options = ["--prompt", "def value", "--max-new-tokens", "9", "--temperature", "0.7", "--top-k", "20"]
    assert main([str(corpus.model), *options, "--top-p", "0.9", "--seed", "4"]) == 0
    sampling = SamplingConfig(max_new_tokens=9, temperature=0.7, top_k=20, top_p=0.9, seed=4)
    assert capsys.readouterr().out == "def value" + generator.text("def value", sampling) + "\n"


@pytest.mark.parametrize(
    ("options", "message"), [(["nowhere"], "whole model"), (["MODEL", "--top-p", "0"], "top_p")]
)
def test_the_command_fails_with_one_line(corpus, tmp_path, options, message):
    options = [str(corpus.model) if option == "MODEL" else option for option in options]
    done = subprocess.run(
        [sys.executable, "-m", "lmcore.eval.generate", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
