import os
import subprocess
import sys

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.arrow import bytes_array, joined, text_array, views_of


def run(script):
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_arrow_works_in_memory_that_the_allocator_keeps_also_where_it_names_none(tmp_path):
    """From the command line on: nothing that it imports loads Arrow before."""
    script = f"""
from pathlib import Path
import flows.cli
from flows.environment import set_environment
from lmcore.home import Home
set_environment(Home(Path({str(tmp_path)!r})), quiet=True)
import lmcore.data.documents, pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""
    assert run(script) == ["system"]


def test_to_import_it_leaves_the_environment_as_it_is():
    names = "import os; before = dict(os.environ); import lmcore.data.documents; print(before == os.environ)"
    assert run(names) == ["True"]


@given(st.lists(st.lists(st.text(max_size=5), max_size=5), max_size=4), st.integers(0, 3))
def test_views_are_the_bytes_of_each_text_however_the_column_is_cut(parts, start):
    column = pa.chunked_array([text_array(texts) for texts in parts], pa.large_string()).slice(start)
    texts = joined(column)
    expected = [text for part in parts for text in part][start:]
    assert texts.to_pylist() == expected
    assert [bytes(view).decode() for view in views_of(texts)] == expected
    assert bytes_array(views_of(texts)).equals(text_array(expected))
