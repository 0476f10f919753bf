"""One pool of processes for the whole matrix."""

import pytest
from parity.corpus import write_corpus
from parity.pool import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory):
    workers = Pool(tmp_path_factory.mktemp("pool"))
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    # Packed into sequences of 32, they leave more or less of each empty.
    return write_corpus(tmp_path_factory.mktemp("corpus"), lengths=(9, 33))
