"""Postgres crashed, restarted and away: what is finished waits in memory, and nothing runs twice."""

from plant import LEASE_S, MakePlant, Plant
from servers import Postgres, wait_until
from sqlalchemy import func, select, update

from db import queries, recovery
from db.tables import chunks, jobs, metadata, now_s, requests, results

_NUM_BIG = 60_000
_AWAY_S = 30.0


def test_a_crash_and_restart_in_a_row_runs_nothing_again(big: MakePlant, postgres: Postgres) -> None:
    plant = big()
    fleet = [plant.start_worker(is_ready=False) for _ in range(2)]
    job_id = plant.submit(200)
    for worker in fleet:
        worker.wait_ready()
    plant.wait_results(job_id, 16)
    for _ in range(2):
        num_finished = plant.job(job_id).counts.num_closed
        postgres.crash()
        postgres.come_back()
        plant.wait_results(job_id, num_finished + 16)
    plant.wait_sound(job_id)
    assert plant.num_rerun(job_id) == 0
    assert not any("Traceback" in worker.log for worker in fleet)


def test_away_for_half_a_minute_and_ten_leases_runs_nothing_again(big: MakePlant, postgres: Postgres) -> None:
    """Every lease has expired by the time it is back; each worker lives, and gets the time to say so."""
    plant = big()
    fleet = [plant.start_worker(is_ready=False) for _ in range(2)]
    job_id = plant.submit(150)
    for worker in fleet:
        worker.wait_ready()
    plant.wait_results(job_id, 16)
    postgres.crash()
    refused = plant.cli.run("status", job_id)
    assert refused.returncode == 6
    assert "is not available" in refused.stderr
    assert "Traceback" not in refused.stderr
    _stay_away(plant, _AWAY_S)
    postgres.come_back()
    plant.wait_sound(job_id)
    assert plant.num_rerun(job_id) == 0
    for worker in fleet:
        assert worker.supervisor.poll() is None
        assert "trying again in" in worker.log, "the worker says what it waits for"
        assert "Traceback" not in worker.log


def _stay_away(plant: Plant, away_s: float) -> None:
    """Time itself is the fault here: the database's clock goes on while it is away."""
    done = plant.cli.run("wait", "job_0", "--timeout", str(away_s))
    assert done.returncode == 6, done.stderr


def test_a_worker_that_stops_meanwhile_leaves_its_leases_to_expire(
    big: MakePlant, postgres: Postgres
) -> None:
    plant = big(echo_latency_s=0.5)
    worker = plant.start_worker()
    job_id = plant.submit(60)
    plant.wait_results(job_id, 8)
    postgres.crash()
    worker.supervisor.terminate()
    assert worker.supervisor.wait(15) == 0
    postgres.come_back()
    plant.start_worker(echo_latency_s=0.02)
    plant.wait_sound(job_id)


def test_killed_in_the_middle_of_a_submit_nothing_is_visible(big: MakePlant, postgres: Postgres) -> None:
    plant = big()
    submitting = plant.cli.start("submit", str(plant.write(_NUM_BIG)))
    wait_until(lambda: _num_requests(plant) > 0, "lines are on their way in")
    postgres.crash()
    printed, said = submitting.communicate(timeout=60)
    postgres.come_back()
    visible = queries.list_jobs(plant.database, 10)
    if submitting.returncode == 0:
        # it was over before the crash
        assert [(job.id, job.counts.total) for job in visible] == [(printed.strip(), _NUM_BIG)]
        return
    assert submitting.returncode == 6, said
    assert "is not available" in said
    assert "Traceback" not in said
    assert visible == []
    with plant.database.write() as tx:  # age it, instead of waiting for the submit's lease
        tx.execute(update(jobs).values(submit_lease_until=now_s() - 1))
    assert recovery.run_once(plant.database, LEASE_S, 2).num_jobs_erased == 1
    with plant.database.read() as tx:
        for table in (requests, results, chunks, jobs):
            assert tx.execute(select(func.count()).select_from(metadata.tables[table.name])).scalar() == 0
    job_id = plant.submit(20)
    plant.start_worker()
    plant.wait_sound(job_id)


def _num_requests(plant: Plant) -> int:
    with plant.database.read() as tx:
        return tx.execute(select(func.count()).select_from(requests)).scalar_one()


def test_a_run_waits_for_its_database(big: MakePlant, postgres: Postgres) -> None:
    """`promptmill run` outlives the outage as its worker does."""
    plant = big()
    output = plant.home / "out.jsonl"
    running = plant.cli.start("run", str(plant.write(100)), "-o", str(output))
    job_id = wait_until(lambda: [job.id for job in queries.list_jobs(plant.database, 1)], "the job")[0]
    plant.wait_results(job_id, 8)
    postgres.crash()
    _stay_away(plant, LEASE_S + 1)
    postgres.come_back()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    plant.wait_sound(job_id)
    assert plant.num_rerun(job_id) == 0
    assert len(output.read_text().splitlines()) == 100


def test_a_worker_that_starts_without_its_database_says_so_and_exits_with_6(
    big: MakePlant, postgres: Postgres
) -> None:
    """So that systemd, Docker or Kubernetes start it again later."""
    plant = big()
    job_id = plant.submit(20)
    postgres.crash()
    done = plant.cli.run("worker", "--restart-engine", timeout_s=60)
    assert done.returncode == 6, done.stderr
    assert "is not available" in done.stderr
    assert "Traceback" not in done.stderr
    postgres.come_back()
    plant.start_worker()
    plant.wait_sound(job_id)
