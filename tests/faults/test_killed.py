"""SIGKILL: whatever is killed, its requests run elsewhere soon, and none that was finished runs again."""

import json
import os
import signal
from pathlib import Path

import pytest
from plant import LEASE_S, RECOVERY_MARGIN_S, MakePlant
from samples import read_results
from servers import wait_until
from soundness import assert_job_is_sound


def test_a_killed_worker_process_is_noticed_at_once(big: MakePlant) -> None:
    """Its supervisor lives, and takes its chunks back without waiting for a lease to expire."""
    plant = big(lease_s=60)
    first = plant.start_worker("--restart-engine")
    job_id = plant.submit(100)
    plant.wait_results(job_id, 8)
    finished = plant.finished(job_id)
    with plant.recovers_within(RECOVERY_MARGIN_S, [first.id]):
        first.kill(with_supervisor=False)
    plant.wait_sound(job_id)
    assert finished.items() <= plant.finished(job_id).items(), "a finished request ran again"
    assert 0 < plant.num_rerun(job_id) <= 5 * 8, "more ran again than was in flight"
    assert plant.num_workers() == 2


def test_a_lost_machine_is_noticed_when_its_leases_expire(make_plant: MakePlant) -> None:
    """Worker and supervisor are gone together, as in a power cut: nobody says so but the clock."""
    plant = make_plant()
    job_id = plant.submit(200)
    first = plant.start_worker()
    second = plant.start_worker(is_ready=False)
    plant.wait_results(job_id, 8)
    second.wait_ready()
    finished = plant.finished(job_id)
    with plant.recovers_within(LEASE_S + RECOVERY_MARGIN_S, [first.id]):
        first.kill(with_supervisor=True)
    plant.wait_sound(job_id)
    assert finished.items() <= plant.finished(job_id).items(), "a finished request ran again"


def test_a_killed_supervisor_takes_its_worker_along(small: MakePlant) -> None:
    plant = small()
    job_id = plant.submit(60)
    first = plant.start_worker()
    plant.wait_results(job_id, 8)
    pid = first.pid
    first.supervisor.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "no worker runs without its supervisor", 5)
    plant.start_worker(echo_latency_s=0.02)
    plant.wait_sound(job_id)


def test_all_workers_are_killed_and_the_next_one_goes_on(make_plant: MakePlant) -> None:
    plant = make_plant()
    fleet = [plant.start_worker(is_ready=False) for _ in range(3)]
    job_id = plant.submit(300)
    for worker in fleet:
        worker.wait_ready()
    plant.wait_results(job_id, 30)
    wait_until(lambda: all(plant.held([worker.id]) for worker in fleet), "all three hold chunks")
    finished = plant.finished(job_id)
    ids = [worker.id for worker in fleet]
    with plant.recovers_within(LEASE_S + RECOVERY_MARGIN_S, ids):
        for worker in fleet:
            worker.kill(with_supervisor=True)
        plant.start_worker(echo_latency_s=0.02, is_ready=False)
    plant.wait_sound(job_id)
    assert finished.items() <= plant.finished(job_id).items(), "a finished request ran again"


@pytest.mark.parametrize("victim", ["the run", "its worker"])
def test_a_run_goes_on_where_it_was_killed(small: MakePlant, tmp_path: Path, victim: str) -> None:
    """The run itself by the same command again, its worker by the run."""
    plant = small()
    source, output = plant.write(70), tmp_path / "out.jsonl"
    command = ["run", str(source), "-o", str(output)]
    running = plant.cli.start(*command)
    listed = wait_until(lambda: json.loads(plant.cli.run("list", "--json").stdout), "the job is there")
    job_id = str(listed[0]["id"])
    plant.wait_results(job_id, 8)
    finished = plant.finished(job_id)
    if victim == "the run":
        running.kill()
        running.wait()
        assert not output.exists()
        again = plant.cli.run(*command)
        assert again.returncode == 0, again.stderr
        assert "was submitted before" in again.stderr
    else:
        os.kill(plant.worker_pids()[0], signal.SIGKILL)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 0, said
    assert_job_is_sound(plant.database, job_id)
    assert finished.items() <= plant.finished(job_id).items(), "a finished request ran again"
    assert [line["index"] for line in read_results(output)] == list(range(70))
