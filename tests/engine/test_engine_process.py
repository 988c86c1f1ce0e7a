"""vLLM with its engine in a process of its own, as on a GPU: that process alone is killed."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from plant import FAST, Plant
from servers import wait_until

_NUM_REQUESTS = 24
_LOAD_TIMEOUT_S = 200.0
_NOTICE_TIMEOUT_S = 20.0


@pytest.fixture
def plant(home: Path, weights: Path) -> Iterator[Plant]:
    (home / "weights").mkdir()
    (home / "weights" / weights.name).symlink_to(weights)
    settings = {**FAST, "engine": "vllm", "model": weights.name, "cpu_kv_cache_gib": 1, "lease_s": 120}
    opened = Plant(home, **settings)
    yield opened
    opened.close()


def _engine_processes(worker_pid: int) -> list[int]:
    """The worker's children, without Python's own that only counts resources."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == worker_pid and b"resource_tracker" not in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def test_the_engine_s_process_is_killed(plant: Plant) -> None:
    """The worker sees it, gives its chunks back without a wait for their lease, and its supervisor starts another."""
    first = plant.start_worker(
        "--restart-engine", is_ready=False, environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    ).wait_ready(_LOAD_TIMEOUT_S)
    job_id = plant.submit([f"Count to twenty for reader {number}." for number in range(_NUM_REQUESTS)])
    plant.wait_results(job_id, 8, 120)
    killed, finished = first.pid, plant.finished(job_id)
    (engine,) = _engine_processes(killed)
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{killed}").exists(), "the worker ends", _NOTICE_TIMEOUT_S)
    wait_until(lambda: plant.job(job_id).counts.running == 0, "its chunks are back", _NOTICE_TIMEOUT_S)
    outcomes = plant.wait_sound(job_id, _LOAD_TIMEOUT_S + 200)
    assert [outcome.error_code for outcome in outcomes] == [None] * _NUM_REQUESTS
    assert finished.items() <= plant.finished(job_id).items(), "a finished request ran again"
    assert plant.num_rerun(job_id) > 0
    assert plant.num_workers() == 2
