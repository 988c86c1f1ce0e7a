"""An arrow asks for more than the state: the row, the lease, and that the lease lives or is over."""

import pytest
from database.raw_rows import (
    LEASE_COLUMNS,
    clock,
    insert_chunk,
    insert_job,
    insert_worker,
    move_chunk,
    move_job,
    move_worker,
)
from database.rows import row_of
from sqlalchemy import update

from db import transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError
from db.states import CHUNK_ARROWS, JOB_ARROWS, WORKER_ARROWS, ChunkState, JobState, WorkerState
from db.tables import chunks, jobs, now_s, workers
from db.transitions import Lease


@pytest.mark.parametrize("arrow", JOB_ARROWS)
def test_a_job_that_is_missing_is_not_found(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx, pytest.raises(NotFoundError, match="no job job_missing"):
        move_job(tx, arrow, "job_missing")


def test_a_job_is_enqueued_whole(shared_database: Database) -> None:
    with shared_database.write() as tx:
        job_id = insert_job(tx, JobState.VALIDATING)
        transitions.enqueue_job(
            tx, job_id, num_requests=7, input_sha256="e" * 64, idempotency_key=f"key-{job_id}"
        )
        row = row_of(tx, jobs, job_id)
    assert row["num_requests"] == 7
    assert row["input_sha256"] == "e" * 64
    assert row["idempotency_key"] == f"key-{job_id}"
    assert row["submit_lease_until"] is None


def test_a_job_is_not_enqueued_after_its_submit_lease(shared_database: Database) -> None:
    with shared_database.write() as tx:
        job_id = insert_job(tx, JobState.VALIDATING)
        tx.execute(update(jobs).where(jobs.c.id == job_id).values(submit_lease_until=now_s() - 1))
        before = row_of(tx, jobs, job_id)
        with pytest.raises(LeaseLostError):
            move_job(tx, "enqueue", job_id)
        assert row_of(tx, jobs, job_id) == before


@pytest.mark.parametrize("chunk_state", [ChunkState.QUEUED, ChunkState.RUNNING])
@pytest.mark.parametrize(
    ("arrow", "job_state"),
    [("complete", JobState.IN_PROGRESS), ("end_cancel", JobState.CANCELLING)],
)
def test_a_job_does_not_end_while_a_chunk_is_open(
    shared_database: Database, arrow: str, job_state: JobState, chunk_state: ChunkState
) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, chunk_state, job_state=job_state)
        before = row_of(tx, jobs, lease.job_id)
        with pytest.raises(LeaseLostError):
            move_job(tx, arrow, lease.job_id)
        assert row_of(tx, jobs, lease.job_id) == before


@pytest.mark.parametrize("arrow", ["finish", "release", "requeue", "cancel"])
def test_a_chunk_that_is_given_up_holds_no_lease(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, lease_left_s=-1.0)
        move_chunk(tx, arrow, lease)
        row = row_of(tx, chunks, lease.chunk_id)
    assert {row[name] for name in LEASE_COLUMNS} == {None}


def test_a_claim_counts_the_attempt_and_says_what_is_leased(shared_database: Database) -> None:
    with shared_database.write() as tx:
        chunk = insert_chunk(tx, ChunkState.QUEUED)
        worker_id = insert_worker(tx, WorkerState.READY)
        lease = transitions.claim_chunk(tx, chunk.chunk_id, worker_id, 300.0)
        row, now = row_of(tx, chunks, chunk.chunk_id), clock(tx)
    assert lease == Lease(row["lease_id"], chunk.chunk_id, chunk.job_id, 0, 3, 2)
    assert lease.lease_id != chunk.lease_id
    assert (row["attempt"], row["worker_id"]) == (2, worker_id)
    assert row["lease_until"] == pytest.approx(now + 300.0, abs=60)


@pytest.mark.parametrize(("arrow", "attempt"), [("release", 0), ("requeue", 1)])
def test_an_attempt_counts_unless_the_worker_gave_the_chunk_back(
    shared_database: Database, arrow: str, attempt: int
) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, lease_left_s=-1.0)
        move_chunk(tx, arrow, lease)
        assert row_of(tx, chunks, lease.chunk_id)["attempt"] == attempt


@pytest.mark.parametrize("arrow", CHUNK_ARROWS)
def test_a_chunk_that_is_missing_is_not_found(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx, pytest.raises(NotFoundError, match="no chunk 999999"):
        move_chunk(tx, arrow, Lease("l" * 32, 999_999, "job_missing", 0, 3, 1))


@pytest.mark.parametrize("arrow", ["finish", "release", "requeue", "cancel"])
def test_a_running_chunk_does_not_move_under_another_lease(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, lease_left_s=-1.0)
        before = row_of(tx, chunks, lease.chunk_id)
        other = Lease("o" * 32, lease.chunk_id, lease.job_id, 0, 3, 1)
        with pytest.raises(LeaseLostError):
            move_chunk(tx, arrow, other)
        assert row_of(tx, chunks, lease.chunk_id) == before


def test_a_chunk_is_not_requeued_before_its_lease_is_over(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, lease_left_s=60.0)
        before = row_of(tx, chunks, lease.chunk_id)
        with pytest.raises(LeaseLostError):
            transitions.requeue_chunk(tx, lease)
        assert row_of(tx, chunks, lease.chunk_id) == before


def test_a_queued_chunk_is_not_cancelled_under_the_lease_it_had(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.QUEUED)
        before = row_of(tx, chunks, lease.chunk_id)
        with pytest.raises(LeaseLostError):
            transitions.cancel_chunk(tx, lease)
        assert row_of(tx, chunks, lease.chunk_id) == before


@pytest.mark.parametrize("state", [ChunkState.RUNNING, ChunkState.DONE, ChunkState.CANCELLED])
def test_cancelling_a_job_leaves_alone_what_is_not_queued(
    shared_database: Database, state: ChunkState
) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, state)
        before = row_of(tx, chunks, lease.chunk_id)
        transitions.cancel_job(tx, lease.job_id)
        assert row_of(tx, chunks, lease.chunk_id) == before


def test_cancelling_a_job_leaves_other_jobs_alone(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease, other = insert_chunk(tx, ChunkState.QUEUED), insert_chunk(tx, ChunkState.QUEUED)
        before = row_of(tx, chunks, other.chunk_id)
        transitions.cancel_job(tx, lease.job_id)
        assert row_of(tx, chunks, other.chunk_id) == before


@pytest.mark.parametrize("arrow", WORKER_ARROWS)
def test_a_worker_that_is_missing_is_not_found(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx, pytest.raises(NotFoundError, match="no worker w_missing"):
        move_worker(tx, arrow, "w_missing")


def test_a_worker_that_spoke_of_late_is_not_lost(shared_database: Database) -> None:
    with shared_database.write() as tx:
        worker_id = insert_worker(tx, WorkerState.READY, silent_s=400.0)
        before = row_of(tx, workers, worker_id)
        with pytest.raises(LeaseLostError):
            transitions.lose_worker(tx, worker_id, 500.0)
        assert row_of(tx, workers, worker_id) == before
