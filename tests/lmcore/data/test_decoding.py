import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import TokenizerConfig
from lmcore.data.decoding import END, Decoder
from lmcore.data.tokenizer import load_tokenizer, save_tokenizer, token_bytes, train_tokenizer
from lmcore.errors import DataError

any_text = st.text(st.characters(exclude_categories=("Cs",)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    texts = [f"def name_{i}(self):\n    return {i}\n" for i in range(100)]
    save_tokenizer(train_tokenizer(TokenizerConfig(vocab_size=320), texts), path)
    return path


@pytest.fixture(scope="module")
def decoder(directory):
    return Decoder(directory)


@given(texts=st.lists(any_text, max_size=5))
def test_documents_come_back_with_their_ends(directory, decoder, texts):
    tokenizer = load_tokenizer(directory)
    tokens, expected = [], []
    for text in texts:
        tokens += [*tokenizer.encode(text, add_special_tokens=False).ids, decoder.eos_id]
        expected += [*text.encode(), END]
    tokens = np.array(tokens, np.int32)
    assert decoder.symbols(tokens).tolist() == expected
    assert decoder.decode(tokens) == "".join(texts).encode()
    assert decoder.sizes(tokens).tolist() == token_bytes(tokenizer)[tokens].tolist()


@pytest.mark.parametrize("token", [-1, 320])
def test_tokens_of_another_tokenizer_are_refused(decoder, token):
    with pytest.raises(DataError, match="not of this tokenizer"):
        decoder.decode(np.array([1, token], np.int32))
