"""SIGKILL in the middle of a rerun's submit, and of a retry: nothing half-stored, and the next call goes on."""

from plant import MakePlant, Plant
from servers import wait_until
from sqlalchemy import func, literal, select, update

from db import queries, recovery
from db.tables import chunks, jobs, now_s, requests, results

# enough for many steps of a retry, and for several of a submit
_NUM = 30_000


def _broken(plant: Plant, num_requests: int) -> str:
    """A completed job whose requests all failed: a worker would take minutes."""
    job_id = plant.submit(num_requests)
    with plant.database.write() as tx:
        values = [literal(value) for value in ("failed", "engine_error", "it broke", 1, 1.0)]
        columns = (requests.c.job_id, requests.c.index, requests.c.index + 1)
        rows = select(*columns, *values).where(requests.c.job_id == job_id)
        names = [
            "job_id",
            "index",
            "position",
            "status",
            "error_code",
            "error_message",
            "attempt",
            "finished_at",
        ]
        tx.execute(results.insert().from_select(names, rows))
        of_job = chunks.c.job_id == job_id
        tx.execute(update(chunks).where(of_job).values(num_failed=chunks.c.num_requests, state="done"))
        over = {
            "num_failed": num_requests,
            "state": "completed",
            "started_at": now_s(),
            "finished_at": now_s(),
        }
        tx.execute(update(jobs).where(jobs.c.id == job_id).values(over))
    return job_id


def _num_failed(plant: Plant, job_id: str) -> int:
    return plant.job(job_id).counts.failed


def test_a_retry_that_is_killed_leaves_a_job_that_goes_on(make_plant: MakePlant) -> None:
    plant = make_plant(chunk_num_requests=10)
    job_id = _broken(plant, _NUM)
    retrying = plant.cli.start("retry", job_id)
    wait_until(lambda: _num_failed(plant, job_id) < _NUM, "a step is through", 20)
    retrying.kill()
    retrying.wait()
    left = _num_failed(plant, job_id)
    job = plant.job(job_id)
    assert 0 < left < _NUM, "it was killed too late"
    assert (job.state, job.num_retried, job.counts.pending) == ("queued", _NUM - left, _NUM - left)
    assert recovery.run_once(plant.database, 60.0, 3) == recovery.Recovery()
    done = plant.cli.run("retry", job_id)
    assert done.returncode == 0, done.stderr
    assert f"{left:,} requests run again" in done.stderr
    job = plant.job(job_id)
    assert (job.state, job.num_retried, job.counts.pending) == ("queued", _NUM, _NUM)
    plant.start_worker(echo_latency_s=0.0)
    plant.wait_results(job_id, 100)
    assert plant.cli.run("cancel", job_id).returncode == 0
    outcomes = plant.wait_sound(job_id)
    assert {outcome.status.value for outcome in outcomes} == {"succeeded", "cancelled"}


def test_a_rerun_that_is_killed_leaves_nothing(make_plant: MakePlant) -> None:
    plant = make_plant(chunk_num_requests=50)
    parent_id = _broken(plant, _NUM)
    rerunning = plant.cli.start("rerun", parent_id)
    wait_until(lambda: _num_rows(plant) > _NUM, "lines are stored", 20)
    rerunning.kill()
    rerunning.wait()
    assert [job.id for job in queries.list_jobs(plant.database, 9)] == [parent_id], "it was killed too late"
    with plant.database.write() as tx:  # age it, instead of waiting for the submit's lease
        tx.execute(update(jobs).where(jobs.c.id != parent_id).values(submit_lease_until=now_s() - 1))
    assert recovery.run_once(plant.database, 60.0, 3).num_jobs_erased == 1
    assert _num_rows(plant) == _NUM
    done = plant.cli.run("rerun", parent_id)
    assert done.returncode == 0, done.stderr
    assert plant.job(done.stdout.strip()).counts.pending == _NUM
    plant.wait_sound(parent_id)


def _num_rows(plant: Plant) -> int:
    with plant.database.read() as tx:
        return tx.execute(select(func.count()).select_from(requests)).scalar_one()
