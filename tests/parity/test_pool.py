"""What goes wrong in a process of the pool is told, and leaves none behind."""

import itertools
import json
import os
import socket

import psutil
import pytest
from parity import pool as pool_module
from parity.matrix import write_job
from parity.pool import Pool, PoolError


def family(pool):
    """Processes of the sessions of the workers."""
    leaders = {worker.pid for worker in pool.workers}
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in leaders and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


@pytest.mark.parametrize(
    ("plant", "patience", "said"),
    [("kills_its_worker", 120.0, "worker died"), ("stalls", 3.0, "stuck for 3 s")],
)
def test_a_worker_that_is_gone_or_stands_still_is_told_and_all_are_ended(
    tmp_path, corpus, plant, patience, said
):
    pool = Pool(tmp_path, 2, patience, stall_seconds=60.0)
    try:
        task = write_job(tmp_path, corpus, "run", {"dp_shard": 2}, "dense", "plain")
        task.plant = plant
        assert len(family(pool)) == 2
        with pytest.raises(PoolError, match=said):
            pool.run([task])
        _, left = psutil.wait_procs(family(pool), 30)  # what is killed takes a moment to be gone
        assert left == []
    finally:
        pool.close()


def test_a_run_that_is_killed_or_finds_its_port_taken_leaves_the_pool_whole(tmp_path, corpus, monkeypatch):
    pool = Pool(tmp_path, 2, stall_seconds=3.0)
    try:
        killed = write_job(tmp_path, corpus, "killed", {"dp_shard": 2}, "dense", "plain")
        killed.plant = "dies"
        pool.run([killed])
        assert "ended with status 9" in killed.error
        with socket.socket() as other:
            other.bind(("0.0.0.0", 0))  # noqa: S104 - it answers nobody
            free = pool_module.free_port
            ports = itertools.chain([other.getsockname()[1]], (free() for _ in itertools.count()))
            monkeypatch.setattr(pool_module, "free_port", lambda: next(ports))
            good = write_job(tmp_path, corpus, "good", {"dp_shard": 2}, "dense", "plain")
            pool.run([good])
        assert (good.error, good.tries) == ("", 2)
    finally:
        pool.close()
    assert family(pool) == []


def test_a_run_that_stood_still_is_told_of_and_done_once_more_from_where_it_began(tmp_path, corpus):
    pool = Pool(tmp_path, 2, stall_seconds=3.0)
    try:
        late = write_job(tmp_path, corpus, "late", {"dp_shard": 2}, "dense", "plain")
        late.plant = "stands_still_once"
        with pytest.warns(UserWarning, match=r"late stood still[\s\S]*Timed out waiting"):
            pool.run([late])
    finally:
        pool.close()
    assert (late.error, late.tries) == ("", 2)
    events = (late.run_dir / "events.jsonl").read_text().splitlines()
    assert [json.loads(row)["kind"] for row in events].count("start") == 1
