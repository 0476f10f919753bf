"""What a trace says of parts and of communication: sets of times by their definition, and whole traces."""

import gzip
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.train.trace import (
    exclusive,
    exposed_communication,
    intersect,
    largest_operators,
    length,
    read_trace,
    subtract,
    union,
)

SPANS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda s: (s[0], s[0] + s[1])), max_size=8
)


def moments(spans):
    return {moment for start, stop in spans for moment in range(start, stop)}


@given(SPANS, SPANS)
def test_sets_of_times_are_sets(left, right):
    a, b = union(left), union(right)
    assert moments(a) == moments(left)
    assert length(a) == len(moments(left))
    assert all(before[1] < after[0] for before, after in itertools.pairwise(a))
    assert moments(intersect(a, b)) == moments(left) & moments(right)
    assert moments(subtract(a, b)) == moments(left) - moments(right)


def test_each_moment_is_of_the_innermost_part():
    parts = exclusive([("step", 0, 100), ("backward", 10, 60), ("forward", 20, 30), ("forward", 70, 80)])
    assert parts == {
        "forward": [(20, 30), (70, 80)],
        "backward": [(10, 20), (30, 60)],
        "other": [(0, 10), (60, 70), (80, 100)],
    }


def event(name, category, thread, start, stop):
    return {"ph": "X", "name": name, "cat": category, "tid": thread, "ts": start, "dur": stop - start}


CPU_TRACE = [
    event("gristmill.step", "user_annotation", 1, 0, 1000),
    event("gristmill.forward", "user_annotation", 1, 0, 400),
    event("gristmill.backward", "user_annotation", 1, 400, 900),
    event("aten::linear", "cpu_op", 1, 0, 200),
    event("aten::mm", "cpu_op", 1, 10, 190),
    event("aten::mm", "cpu_op", 1, 400, 600),
    event("gloo:all_reduce", "user_annotation", 7, 500, 700),  # 100 beside the product, 100 alone
    event("aten::wait", "cpu_op", 1, 700, 800),
    event("_c10d_functional::wait_tensor", "cpu_op", 1, 710, 790),  # a wait is no computing
    event("gloo:all_gather", "user_annotation", 7, 720, 780),
    {"ph": "M", "name": "thread_name"},
]


def test_communication_on_a_cpu_is_exposed_where_nothing_is_computed(tmp_path):
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": CPU_TRACE}).encode()))
    events = read_trace(path)
    parts = exposed_communication(events)
    assert {name: round(part.seconds * 1e6) for name, part in parts.items()} == {
        "forward": 400,
        "backward": 500,
        "other": 100,
    }
    assert parts["backward"].exposed == pytest.approx(160e-6)
    assert parts["forward"].exposed == parts["other"].exposed == 0
    assert largest_operators(events, 2) == [
        ("aten::mm", pytest.approx(380e-6), 2),
        ("_c10d_functional::wait_tensor", pytest.approx(80e-6), 1),
    ]


def test_communication_on_a_gpu_is_that_of_its_kernels():
    events = [
        event("gristmill.step", "user_annotation", 1, 0, 10),  # the host is long done
        event("gristmill.step", "gpu_user_annotation", 20, 100, 1000),
        event("gristmill.forward", "gpu_user_annotation", 20, 100, 500),
        event("aten::mm", "cpu_op", 1, 0, 10),
        event("gemm", "kernel", 20, 100, 300),
        event("ncclDevKernel_AllGather_RING_LL", "kernel", 24, 250, 450),
        event("gemm", "kernel", 20, 450, 900),
    ]
    parts = exposed_communication(events)
    assert parts["forward"].seconds == pytest.approx(400e-6)
    assert parts["forward"].exposed == pytest.approx(150e-6)
    assert parts["other"].exposed == 0
    assert largest_operators(events, 1) == [("gemm", pytest.approx(650e-6), 2)]


def test_a_trace_without_our_steps_says_nothing():
    assert exposed_communication([event("aten::mm", "cpu_op", 1, 0, 10)]) == {}
