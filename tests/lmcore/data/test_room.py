"""Tables that take memory only where they are written to."""

import re
from pathlib import Path

import numpy as np

from lmcore.data.room import sparse_zeros


def held_bytes():
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def test_a_large_table_takes_as_much_as_is_written_to():
    before = held_bytes()
    table = sparse_zeros((1 << 26, 2), np.uint64)  # a gigabyte
    assert table.shape == (1 << 26, 2)
    table[:1000] = 7
    table[-1] = 8
    assert table[:1001].sum() == 14_000
    assert table[-2].sum() == 0
    assert held_bytes() - before < 50_000_000
