"""A job past its deadline ends, running chunks and all; what was written by then stays."""

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    cancel,
    chunk_rows,
    chunk_states,
    claim,
    commit,
    expire,
    failure,
    finish_all,
    job_row,
    pass_deadline,
    record,
    register,
    result_rows,
    stage,
    submit,
    success,
    successes,
)
from soundness import assert_job_is_sound
from sqlalchemy import select

from db import leases, queries, recovery
from db.database import Database
from db.errors import LeaseLostError, WrongStateError
from db.leases import Renewal
from db.queries import Counts
from db.recovery import Recovery
from db.states import ChunkState, JobState
from db.tables import now_s
from jobs import control

_NOTHING = Recovery()


def _sweep(database: Database, *, spare_leases: bool = False) -> Recovery:
    return recovery.run_once(database, LEASE_S, max_attempts=3, spare_leases=spare_leases)


def test_a_deadline_counts_from_the_submit(database: Database) -> None:
    submit(database, "due", deadline_s=3600.0)
    submit(database, "endless")
    with database.read() as tx:
        now = tx.execute(select(now_s())).scalar_one()
    assert job_row(database, "due")["deadline_at"] == pytest.approx(now + 3600.0, abs=60)
    assert job_row(database, "endless")["deadline_at"] is None


def test_a_job_past_its_deadline_expires_with_its_queued_and_its_running_chunks(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=10, bad=[9], deadline_s=60.0)
    done, running = claim(database), claim(database)
    record(database, done, [success(0), failure(1)], is_last=True)
    record(database, running, [success(2)], is_last=False)
    assert _sweep(database) == _NOTHING
    pass_deadline(database, job_id)
    assert _sweep(database) == Recovery(num_jobs_expired=1)
    assert chunk_states(database, job_id) == [ChunkState.DONE, *[ChunkState.QUEUED] * 4]
    job = queries.get_job(database, job_id)
    assert job.state is JobState.EXPIRED
    assert job.finished_at is not None
    assert job.counts == Counts(succeeded=2, failed=2, expired=6)
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.error_code for outcome in outcomes] == [
        None,
        "engine_error",
        None,
        *["expired"] * 6,
        "invalid_json",
    ]
    assert [outcome.status for outcome in outcomes[3:9]] == ["expired"] * 6
    assert "deadline" in str(outcomes[3].error_message)
    assert _sweep(database) == _NOTHING


def test_a_job_that_never_ran_expires_too(database: Database) -> None:
    job_id = submit(database, deadline_s=-1.0)
    assert _sweep(database, spare_leases=True) == Recovery(num_jobs_expired=1)
    assert {outcome.status for outcome in assert_job_is_sound(database, job_id)} == {"expired"}


def test_what_comes_after_the_deadline_is_refused(database: Database) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    pass_deadline(database, job_id)
    assert _sweep(database).num_jobs_expired == 1
    before = chunk_rows(database, job_id)
    for is_last in (False, True):
        with pytest.raises(LeaseLostError):
            record(database, lease, successes(lease), is_last=is_last)
    with pytest.raises(LeaseLostError):
        leases.release(database, lease)
    with pytest.raises(LeaseLostError):
        leases.isolate(database, lease)
    assert leases.renew(database, "w1", [lease], LEASE_S) == Renewal(frozenset({lease.lease_id}), frozenset())
    assert leases.claim(database, "w1", CARD, LEASE_S) is None
    assert recovery.worker_died(database, "w1", max_attempts=1) == _NOTHING
    assert chunk_rows(database, job_id) == before
    assert result_rows(database, job_id) == []
    assert_job_is_sound(database, job_id)


def test_a_job_that_nobody_looked_at_since_its_deadline_may_still_complete(database: Database) -> None:
    """The sweeper ends jobs, not the clock."""
    register(database)
    job_id = submit(database)
    pass_deadline(database, job_id)
    finish_all(database)
    assert _sweep(database) == _NOTHING
    assert job_row(database, job_id)["state"] == JobState.COMPLETED
    assert_job_is_sound(database, job_id)


def test_a_job_without_a_deadline_or_with_a_later_one_never_expires(database: Database) -> None:
    register(database)
    submit(database, "endless", num_requests=2)
    submit(database, "later", num_requests=2, deadline_s=3600.0)
    for _ in range(2):
        assert _sweep(database) == _NOTHING
        claim(database)
    assert {job.state for job in queries.list_jobs(database, 9)} == {JobState.IN_PROGRESS}


def test_a_job_that_is_staged_past_its_deadline_expires_once_it_is_whole(database: Database) -> None:
    stage(database, "job_a", deadline_s=-1.0)
    assert _sweep(database) == _NOTHING
    assert commit(database, "job_a")
    assert _sweep(database) == Recovery(num_jobs_expired=1)
    assert_job_is_sound(database, "job_a")


def test_a_cancelling_job_past_its_deadline_ends_as_cancelled(database: Database) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    cancel(database, job_id)
    pass_deadline(database, job_id)
    assert _sweep(database) == _NOTHING
    assert job_row(database, job_id)["state"] == JobState.CANCELLING
    expire(database, lease)
    assert _sweep(database) == Recovery(num_requeued=1)
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    assert queries.get_job(database, job_id).counts == Counts(cancelled=4)
    assert {outcome.status for outcome in assert_job_is_sound(database, job_id)} == {"cancelled"}


def test_a_job_that_expired_is_not_cancelled(database: Database) -> None:
    job_id = submit(database, deadline_s=-1.0)
    _sweep(database)
    before = job_row(database, job_id)
    with pytest.raises(WrongStateError, match="expired"):
        control.cancel(database, job_id)
    assert job_row(database, job_id) == before


def test_a_suspect_that_runs_alone_expires_with_its_job(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    expire(database, claim(database))
    recovery.run_once(database, LEASE_S, max_attempts=1)
    leases.isolate(database, alone := claim(database))
    assert alone.is_suspect
    pass_deadline(database, job_id)
    assert _sweep(database) == Recovery(num_jobs_expired=1)
    assert chunk_states(database, job_id) == [ChunkState.QUEUED, ChunkState.QUEUED]
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("num_due", [1, 3])
def test_jobs_expire_each_for_itself(database: Database, num_due: int) -> None:
    for number in range(num_due):
        submit(database, f"due_{number}", deadline_s=-1.0)
    submit(database, "other", deadline_s=3600.0)
    assert _sweep(database) == Recovery(num_jobs_expired=num_due)
    assert job_row(database, "other")["state"] == JobState.QUEUED
