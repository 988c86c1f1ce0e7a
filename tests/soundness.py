"""The one check that every test of faults ends in."""

from sqlalchemy import func, select

from db import queries
from db.database import Database
from db.outcomes import Outcome, iterate_outcomes
from db.states import ChunkState
from db.tables import chunks, jobs, requests, results


def assert_job_is_sound(database: Database, job_id: str) -> list[Outcome]:
    """Each request of a finished job has exactly one outcome, no lease lives, and all counts agree.

    Returns the outcomes, in input order.
    """
    job = queries.get_job(database, job_id)
    assert job.state.is_final, f"{job_id} is {job.state}"
    outcomes = list(iterate_outcomes(database, job_id))
    with database.read() as tx:
        num_requests = tx.execute(
            select(func.count()).select_from(requests).where(requests.c.job_id == job_id)
        ).scalar_one()
        positions = list(
            tx.execute(
                select(results.c.position).where(results.c.job_id == job_id).order_by(results.c.position)
            ).scalars()
        )
        recorded, num_retried = tx.execute(
            select(jobs.c.num_requests, jobs.c.num_retried).where(jobs.c.id == job_id)
        ).one()
        num_leases = tx.execute(
            select(func.count())
            .select_from(chunks)
            .where(
                chunks.c.job_id == job_id,
                (chunks.c.state == ChunkState.RUNNING) | chunks.c.lease_id.is_not(None),
            )
        ).scalar_one()
        counted = tx.execute(
            select(
                func.sum(chunks.c.num_requests),
                func.sum(chunks.c.num_succeeded),
                func.sum(chunks.c.num_failed),
            ).where(chunks.c.job_id == job_id)
        ).one()
    assert num_leases == 0, "a chunk of a finished job is leased"
    assert tuple(counted) == (job.counts.total, job.counts.succeeded, job.counts.failed), "the sums differ"
    assert [outcome.index for outcome in outcomes] == list(range(num_requests)), "an index is lost or doubled"
    assert job.counts.total == num_requests == recorded
    assert job.counts.succeeded + job.counts.failed == len(positions)
    assert len(set(positions)) == len(positions), "a position is doubled"
    # without a retry there is no gap; with one, as many as results were taken back
    assert set(positions) <= set(range(1, len(positions) + num_retried + 1)), "a position is lost"
    by_status = dict.fromkeys(("succeeded", "failed", "cancelled", "expired"), 0)
    for outcome in outcomes:
        by_status[outcome.status] += 1
    assert by_status == {name: getattr(job.counts, name) for name in by_status}
    generated = [outcome for outcome in outcomes if outcome.reused_from is None]
    assert job.num_reused == len(outcomes) - len(generated)
    assert job.prompt_tokens == sum(outcome.prompt_tokens or 0 for outcome in generated)
    assert job.completion_tokens == sum(outcome.completion_tokens or 0 for outcome in generated)
    return outcomes
