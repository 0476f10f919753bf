import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import TokenizerConfig
from lmcore.data.decoding import Decoder
from lmcore.data.tokenizer import save_tokenizer, train_tokenizer
from lmcore.errors import DataError
from lmcore.eval.held_out import HeldOut


@given(limit=st.integers(1, 4000))
def test_whole_documents_up_to_the_limit_and_at_least_one(corpus, limit):
    held_out = HeldOut(corpus.tokens / "validation", Decoder(corpus.tokenizer), limit)
    sizes = np.cumsum([len(text.encode()) for text in corpus.texts["validation"]])
    expected = max(1, int((sizes <= limit).sum()))
    assert held_out.num_documents == expected
    assert held_out.num_bytes == sizes[expected - 1] == sum(map(len, held_out.documents()))
    assert held_out.num_tokens == held_out.stream.document_offsets[expected]


def test_blocks_do_not_matter(corpus, monkeypatch):
    decoder = Decoder(corpus.tokenizer)
    whole = HeldOut(corpus.tokens / "validation", decoder, 700)
    monkeypatch.setattr("lmcore.eval.held_out._BLOCK_TOKENS", 7)
    parts = HeldOut(corpus.tokens / "validation", decoder, 700)
    assert (whole.num_documents, whole.num_bytes) == (parts.num_documents, parts.num_bytes)
    texts = [text.encode() for text in corpus.texts["validation"]]
    assert parts.documents() == texts[: parts.num_documents]
    assert parts.documents(len(texts[0]) + len(texts[1])) == texts[:2]
    assert parts.documents(1) == texts[:1]


def test_another_tokenizer_is_refused(corpus, tmp_path):
    save_tokenizer(train_tokenizer(TokenizerConfig(vocab_size=300), ["zz yy " * 50]), tmp_path)
    with pytest.raises(DataError, match=r"do not spell its text.*bytes|not of this tokenizer"):
        HeldOut(corpus.tokens / "validation", Decoder(tmp_path))


def test_a_wrong_number_of_bytes_is_refused(corpus, tmp_path):
    shutil.copytree(corpus.tokens / "validation", tmp_path / "validation")
    path = tmp_path / "validation" / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "num_bytes": index["num_bytes"] + 1}))
    with pytest.raises(DataError, match="do not spell its text"):
        HeldOut(tmp_path / "validation", Decoder(corpus.tokenizer))
