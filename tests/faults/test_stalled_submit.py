"""A submit whose pipe stalls: it lives, and no sweeper takes it for dead."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from plant import LEASE_S, MakePlant, Plant
from servers import wait_until
from sqlalchemy import func, select

from db import recovery, submits
from db.tables import jobs

_SUBMIT_LEASE_S = 1.0


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
            wait_until(lambda: _num_jobs(plant) == 1, "the submit began", 10)
            stall_until = time.monotonic() + 4 * _SUBMIT_LEASE_S
            while time.monotonic() < stall_until:
                assert recovery.run_once(plant.database, LEASE_S, 2).num_jobs_erased == 0
                time.sleep(0.05)
            pipe.write('{"prompt": "say 10"}\n')
        job_id = submitted.result(30)
    plant.start_worker()
    assert len(plant.wait_sound(job_id)) == 11


def _num_jobs(plant: Plant) -> int:
    """Also those that only their submit sees."""
    with plant.database.read() as tx:
        return tx.execute(select(func.count()).select_from(jobs)).scalar_one()
