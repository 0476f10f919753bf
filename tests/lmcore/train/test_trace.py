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


def launched(name, stream, start, stop, *, at, thread=1, category="kernel"):
    """Work of a device and the call of the host that launched it."""
    told = {"args": {"correlation": next(NUMBERS)}}
    call = event("cuLaunchKernelEx" if "nccl" in name else "cudaLaunchKernel", "cuda_runtime", thread, at, at)
    return [event(name, category, stream, start, stop) | told, call | told]


NUMBERS = itertools.count(1)
AUTOGRAD = 2  # its own thread
GPU_TRACE = [
    event("gristmill.step", "user_annotation", 1, 0, 1000),
    event("gristmill.data", "user_annotation", 1, 0, 20),
    event("gristmill.forward", "user_annotation", 1, 20, 50),
    event("gristmill.backward", "user_annotation", 1, 50, 90),
    event("gristmill.optimizer", "user_annotation", 1, 90, 110),
    # As the profiler has it: the backward pass is empty, and the step ends as the forward pass does.
    event("gristmill.step", "gpu_user_annotation", 20, 40, 1000),
    event("gristmill.forward", "gpu_user_annotation", 20, 40, 300),
    event("gristmill.optimizer", "gpu_user_annotation", 20, 900, 1000),
    event("aten::mm", "cpu_op", 1, 0, 10),
    *launched("gemm", 20, 40, 200, at=30),
    *launched("ncclDevKernel_AllGather_RING_LL", 24, 150, 250, at=31),
    *launched("gemm", 20, 250, 300, at=40),
    *launched("gemm_back", 20, 302, 500, at=60, thread=AUTOGRAD),
    *launched("ncclDevKernel_ReduceScatter_RING_LL", 24, 450, 890, at=70, thread=AUTOGRAD),
    *launched("copy", 26, 480, 520, at=100, category="gpu_memcpy"),  # beside it: of no part's computing
    *launched("gemm_back", 20, 600, 650, at=80, thread=AUTOGRAD),
    *launched("adamw", 20, 900, 1000, at=95),
]


def test_communication_on_a_gpu_is_that_of_its_kernels_whichever_thread_launched_them():
    parts = exposed_communication(GPU_TRACE)
    assert {name: round(part.seconds * 1e6) for name, part in parts.items()} == {
        "data": 20,  # the device waits for what the host is at
        "forward": 20 + 260,
        "backward": 2 + 588 - 20,
        "optimizer": 20 + 10 + 100,
        "other": 0,
    }
    assert {name: round(part.exposed * 1e6) for name, part in parts.items()} == {
        "data": 0,
        "forward": 50,
        "backward": 80 + 240,
        "optimizer": 0,
        "other": 0,
    }
    assert largest_operators(GPU_TRACE, 2)[1] == ("gemm_back", pytest.approx(248e-6), 2)


def test_work_that_no_launch_is_known_of_is_of_its_operator_or_of_what_was_before_it():
    trace = [
        event("early", "kernel", 20, 0, 5),  # launched before the trace began
        event("gristmill.step", "user_annotation", 1, 10, 30),
        event("gristmill.backward", "user_annotation", 1, 12, 20),
        event("c10d::allreduce_", "cpu_op", AUTOGRAD, 13, 14) | {"args": {"External id": 7}},
        event("ncclDevKernel_AllReduce", "kernel", 24, 20, 60) | {"args": {"External id": 7}},
        event("ncclDevKernel_AllReduce", "kernel", 24, 60, 90),
    ]
    parts = exposed_communication(trace)
    assert parts["backward"].exposed == pytest.approx(70e-6)
    assert set(parts) == {"backward", "other"}


def test_a_trace_without_our_steps_says_nothing():
    assert exposed_communication([event("aten::mm", "cpu_op", 1, 0, 10)]) == {}
