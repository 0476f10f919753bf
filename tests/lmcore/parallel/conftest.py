"""A few processes that import torch once."""

import pytest
from parity.corpus import write_corpus
from parity.pool import Pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    workers = Pool(tmp_path_factory.mktemp("pool"), 4)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), lengths=(9, 33))
