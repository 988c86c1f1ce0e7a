"""A submit whose pipe stalls lives, and no sweeper takes it for dead; one that is killed there leaves nothing."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from plant import LEASE_S, MakePlant, Plant
from servers import wait_until
from sqlalchemy import Table, func, select, update

from db import queries, recovery, submits
from db.tables import chunks, jobs, now_s, requests, results

_SUBMIT_LEASE_S = 1.0
# more than a submit stores at once
_NUM_LINES = 20_000


def test_a_pipe_may_stall_for_longer_than_the_submits_lease(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submits, "SUBMIT_LEASE_S", _SUBMIT_LEASE_S)
    plant = make_plant()
    path = plant.home / "pipe"
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(plant.submit_file, path)
        with path.open("w") as pipe:
            for number in range(10):
                pipe.write(f'{{"prompt": "say {number}"}}\n')
            pipe.flush()
            wait_until(lambda: _num_rows(plant, jobs) == 1, "the submit began", 10)
            stall_until = time.monotonic() + 4 * _SUBMIT_LEASE_S
            while time.monotonic() < stall_until:
                assert recovery.run_once(plant.database, LEASE_S, 2).num_jobs_erased == 0
                time.sleep(0.05)
            pipe.write('{"prompt": "say 10"}\n')
        job_id = submitted.result(30)
    plant.start_worker()
    assert len(plant.wait_sound(job_id)) == 11


def test_a_submit_that_is_killed_in_the_middle_leaves_nothing(make_plant: MakePlant) -> None:
    """Nobody ever sees its job; its key is free, and a worker clears away what it staged."""
    plant = make_plant()
    path = plant.home / "pipe"
    os.mkfifo(path)
    submitting = plant.cli.start("submit", str(path), "--idempotency-key", "nightly")
    with path.open("w") as pipe:
        pipe.writelines(f'{{"prompt": "say {number}"}}\n' for number in range(_NUM_LINES))
        pipe.flush()
        wait_until(lambda: _num_rows(plant, requests) > 0, "lines are stored")
        submitting.kill()
        submitting.wait()
    assert queries.list_jobs(plant.database, 10) == []
    worker = plant.start_worker()
    job_id = plant.submit(20, idempotency_key="nightly")
    plant.wait_sound(job_id)
    assert _num_rows(plant, jobs) == 2, "the sweeper did not wait for the submit's lease"
    with plant.database.write() as tx:  # age it, instead of waiting for the submit's lease
        tx.execute(update(jobs).where(jobs.c.id != job_id).values(submit_lease_until=now_s() - 1))
    wait_until(lambda: _num_rows(plant, jobs) == 1, "it is cleared away", 20)
    assert [_num_rows(plant, table) for table in (requests, results, chunks)] == [20, 20, 3]
    plant.wait_sound(job_id)
    assert "Traceback" not in worker.log


def _num_rows(plant: Plant, table: Table) -> int:
    """Also of jobs that only their submit sees."""
    with plant.database.read() as tx:
        return tx.execute(select(func.count()).select_from(table)).scalar_one()
