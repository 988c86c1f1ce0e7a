"""A worker that stands still for longer than its lease, or whose clock is wrong, and comes back."""

import os
from pathlib import Path

import pytest
from freezing import frozen
from plant import LEASE_S, LONG_LEASE_S, RECOVERY_MARGIN_S, MakePlant
from servers import wait_until

# Settings under which a worker writes most of the time.
_WRITING = {"echo_latency_s": 0.05, "flush_s": 0.05, "engine_num_seqs": 4}
# A process that imports this takes its own clock for another.
_SHIFTED_CLOCK = """
import time
_true_time = time.time
time.time = lambda: _true_time() + {shift_s}
"""


def test_a_zombie_writes_nothing(make_plant: MakePlant) -> None:
    """Frozen longer than its lease, while another does its work: what it holds when it wakes is discarded."""
    plant = make_plant(echo_latency_s=0.5)
    zombie = plant.start_worker()
    job_id = plant.submit(80)
    plant.wait_results(job_id, 1)
    with frozen(plant, zombie, is_writing=False):
        plant.start_worker(echo_latency_s=0.05, is_ready=False)
        with plant.recovers_within(LEASE_S + RECOVERY_MARGIN_S, plant.worker_ids()):
            pass
        plant.wait_sound(job_id)
        finished = plant.finished(job_id)
    wait_until(lambda: "lease lost" in zombie.log, "the zombie sees that its lease is lost", 15)
    plant.wait_sound(job_id)
    assert plant.finished(job_id) == finished, "the zombie wrote"
    plant.wait_sound(plant.submit(20))


def test_a_worker_frozen_while_it_writes_holds_up_nobody_for_long(big: MakePlant) -> None:
    """It stands still inside a transaction, with rows locked that everybody needs: Postgres ends its session."""
    plant = big(**_WRITING)
    zombie = plant.start_worker()
    job_id = plant.submit(600)
    plant.wait_results(job_id, 1)
    with frozen(plant, zombie, is_writing=True):
        plant.start_worker(echo_latency_s=0.005, is_ready=False)
        plant.wait_sound(job_id, 40)
        finished = plant.finished(job_id)
    plant.wait_sound(plant.submit(20))
    assert plant.finished(job_id) == finished, "the zombie wrote"


def test_a_worker_frozen_in_a_write_to_sqlite_is_waited_for(small: MakePlant) -> None:
    """There is one write lock: the others say that they wait for it, and all go on when the worker wakes."""
    plant = small(**_WRITING, lease_s=60)
    zombie, other = plant.start_worker(is_ready=False), plant.start_worker()
    zombie.wait_ready()
    job_id = plant.submit(400)
    plant.wait_results(job_id, 1)
    with frozen(plant, zombie, is_writing=True):
        submitted = plant.cli.run("submit", str(plant.write(4)))
        assert submitted.returncode == 6, submitted.stderr
        assert "is locked by another process" in submitted.stderr
        assert "Traceback" not in submitted.stderr
        assert plant.cli.run("status", job_id).returncode == 0, "who only reads waits for nobody"
        wait_until(lambda: "is locked by another process" in other.log, "the other worker says so too", 20)
        assert not plant.job(job_id).state.is_final
    plant.wait_sound(job_id)
    assert plant.num_rerun(job_id) == 0
    assert zombie.supervisor.poll() is other.supervisor.poll() is None
    assert "Traceback" not in zombie.log + other.log


def test_a_worker_that_stays_frozen_in_a_write_to_sqlite_is_killed(small: MakePlant) -> None:
    """Its supervisor lives, sees that it locks everybody out for a lease's time, and starts another."""
    plant = small(**_WRITING)
    zombie, other = plant.start_worker("--restart-engine", is_ready=False), plant.start_worker()
    zombie.wait_ready()
    job_id = plant.submit(400)
    plant.wait_results(job_id, 1)
    with frozen(plant, zombie, is_writing=True) as pid:
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "it is killed", LEASE_S + RECOVERY_MARGIN_S)
    assert "keeps all others from writing" in zombie.log
    plant.wait_sound(job_id)
    assert plant.num_workers() == 3
    assert other.supervisor.poll() is None


@pytest.mark.parametrize("shift_s", [3600, -3600])
def test_a_wrong_clock_neither_loses_nor_steals(big: MakePlant, tmp_path: Path, shift_s: int) -> None:
    """Only the database's clock judges leases."""
    plant = big(echo_latency_s=0.5, lease_s=LONG_LEASE_S)  # far from an hour
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(_SHIFTED_CLOCK.format(shift_s=shift_s))
    path = os.pathsep.join([str(tmp_path / "clock"), os.environ.get("PYTHONPATH", "")])
    started = [
        plant.start_worker(is_ready=False),
        plant.start_worker(is_ready=False, environment={"PYTHONPATH": path}),
    ]
    for worker in started:
        worker.wait_ready()
    job_id = plant.submit(120)
    # whoever judged by the wrong clock would have taken or lost every chunk at once
    plant.wait_sound(job_id)
    assert plant.num_rerun(job_id) == 0
    assert not any("lease lost" in worker.log or "recovered" in worker.log for worker in started)
