"""A worker that ends while it fires a schedule: another makes the job, and there is one."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from plant import LEASE_S, RECOVERY_MARGIN_S, MakePlant, Plant, WorkerProcess
from servers import wait_until
from sqlalchemy import select, update

from db import queries
from db.tables import schedules
from jobs.cards import find_card
from jobs.schedules import ScheduledSubmit, add
from jobs.submit import SubmitOptions


def _add_due(plant: Plant, path: Path) -> None:
    """Due once: the next time is in months or years."""
    card = find_card(plant.home, plant.settings.model)
    scheduled = ScheduledSubmit.of([str(path)], card, SubmitOptions())
    add(plant.database, "nightly", "0 0 1 1 *", "UTC", ["submit"], scheduled, replace=False)
    with plant.database.write() as tx:
        tx.execute(update(schedules).values(due_at=60.0))


def _num_tries(plant: Plant) -> int:
    with plant.database.read() as tx:
        return int(tx.execute(select(schedules.c.num_tries)).scalar_one())


def _num_fired(plant: Plant) -> int:
    with plant.database.read() as tx:
        return int(tx.execute(select(schedules.c.num_fired)).scalar_one())


def _jobs_made(plant: Plant) -> list[str]:
    return [job.id for job in queries.list_jobs(plant.database, 10) if job.input_name == "slow.jsonl"]


def _the_job(plant: Plant) -> str:
    """The one that the schedule names, and the only one."""
    with plant.database.read() as tx:
        job_id = str(tx.execute(select(schedules.c.last_job_id)).scalar_one())
    assert (_jobs_made(plant), _num_fired(plant)) == ([job_id], 1)
    return job_id


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A file that nobody has read until a test writes it."""
    path = tmp_path / "slow.jsonl"
    os.mkfifo(path)
    return path


def _kill(worker: WorkerProcess) -> None:
    worker.kill(with_supervisor=True)


def _stop(worker: WorkerProcess) -> None:
    worker.supervisor.send_signal(signal.SIGTERM)
    assert worker.supervisor.wait(15) == 0, "a stop does not wait for a submit"


@pytest.mark.parametrize("end", [_kill, _stop], ids=["killed", "stopped"])
def test_a_worker_that_ends_while_it_fires_is_replaced(
    make_plant: MakePlant, slow: Path, end: Callable[[WorkerProcess], None]
) -> None:
    plant = make_plant()
    _add_due(plant, slow)
    first = plant.start_worker()
    wait_until(lambda: _num_tries(plant) == 1, "it fires")
    # meanwhile it beats, and runs what there is
    plant.wait_sound(plant.submit(16))
    assert plant.has_beaten(first.id)
    plant.start_worker()
    end(first)
    began = time.monotonic()
    wait_until(lambda: _num_tries(plant) == 2, "it is taken up", LEASE_S + RECOVERY_MARGIN_S)
    print(f"taken up after {time.monotonic() - began:.1f} s")
    assert _jobs_made(plant) == []
    slow.write_text('{"prompt": "x"}\n' * 20)
    wait_until(lambda: _num_fired(plant), "it is fired")
    assert len(plant.wait_sound(_the_job(plant))) == 20
    _the_job(plant)


def test_a_worker_that_wakes_makes_no_second_job(big: MakePlant, tmp_path: Path, slow: Path) -> None:
    """Frozen for longer than its lease: another has fired, and what it goes on with comes to that one job."""
    plant = big()
    _add_due(plant, slow)
    first = plant.start_worker()
    wait_until(lambda: _num_tries(plant) == 1, "it fires")
    pid = first.freeze()
    # from now on it can be read as often as one likes
    slow.rename(tmp_path / "pipe")
    slow.write_text('{"prompt": "x"}\n' * 20)
    plant.start_worker()
    wait_until(lambda: _num_fired(plant), "another has fired", LEASE_S + 3 * RECOVERY_MARGIN_S)
    os.kill(pid, signal.SIGCONT)
    with contextlib.suppress(OSError):  # it had not opened it yet, and reads the file
        descriptor = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
        os.write(descriptor, b'{"prompt": "x"}\n' * 20)
        os.close(descriptor)
    plant.wait_sound(_the_job(plant))
    wait_until(lambda: "took it up" in first.log, "it has seen that it is late")
    _the_job(plant)
