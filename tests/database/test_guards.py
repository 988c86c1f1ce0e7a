"""An arrow asks for more than the state: the row, the lease, and that the lease lives or is over."""

from dataclasses import asdict, replace

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
from sqlalchemy import select, update

from db import leases, transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError, WrongStateError
from db.states import JOB_ARROWS, WORKER_ARROWS, ChunkState, JobState, WorkerState
from db.tables import chunks, jobs, now_s, workers
from db.transitions import Lease, Tally

# Arrows of a chunk that take the holder's lease.
_LEASED = ["finish", "release", "requeue", "split"]


@pytest.mark.parametrize("arrow", JOB_ARROWS)
def test_a_job_that_is_missing_is_not_found(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx, pytest.raises(NotFoundError, match="no job job_missing"):
        move_job(tx, arrow, "job_missing")


def test_a_job_is_enqueued_whole(shared_database: Database) -> None:
    with shared_database.write() as tx:
        job_id = insert_job(tx, JobState.VALIDATING)
        transitions.enqueue_job(
            tx, job_id, num_requests=7, num_failed=2, input_sha256="e" * 64, idempotency_key=f"key-{job_id}"
        )
        row = row_of(tx, jobs, job_id)
    assert (row["num_requests"], row["num_failed"]) == (7, 2)
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


@pytest.mark.parametrize("job_state", [JobState.QUEUED, JobState.IN_PROGRESS])
def test_a_job_does_not_complete_while_a_request_has_no_result(
    shared_database: Database, job_state: JobState
) -> None:
    with shared_database.write() as tx:
        job_id = insert_job(tx, job_state)
        counts = {"num_requests": 7, "num_succeeded": 4, "num_failed": 2}
        tx.execute(update(jobs).where(jobs.c.id == job_id).values(counts))
        before = row_of(tx, jobs, job_id)
        with pytest.raises(LeaseLostError):
            move_job(tx, "complete", job_id)
        assert row_of(tx, jobs, job_id) == before
        assert transitions.count_results(tx, job_id, Tally(num_succeeded=1)) == (7, 0)
        move_job(tx, "complete", job_id)


def test_a_cancel_does_not_end_while_a_chunk_runs(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, job_state=JobState.CANCELLING)
        before = row_of(tx, jobs, lease.job_id)
        with pytest.raises(LeaseLostError):
            move_job(tx, "end_cancel", lease.job_id)
        assert row_of(tx, jobs, lease.job_id) == before
        move_chunk(tx, "release", lease)
        move_job(tx, "end_cancel", lease.job_id)


def test_results_are_added_to_the_sums_of_their_job_and_chunk_which_tell_the_position(
    shared_database: Database,
) -> None:
    tally = Tally(num_succeeded=2, num_failed=1, prompt_tokens=30, completion_tokens=50)
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING)
        tx.execute(update(jobs).where(jobs.c.id == lease.job_id).values(num_requests=9))
        tx.execute(update(chunks).where(chunks.c.id == lease.chunk_id).values(num_succeeded=0))
        assert [transitions.count_results(tx, lease.job_id, tally) for _ in range(2)] == [(1, 6), (4, 3)]
        transitions.record_chunk(tx, lease, tally)
        job, chunk = row_of(tx, jobs, lease.job_id), row_of(tx, chunks, lease.chunk_id)
        with pytest.raises(LeaseLostError):
            transitions.record_chunk(tx, replace(lease, lease_id="o" * 32), tally)
        assert row_of(tx, chunks, lease.chunk_id) == chunk
    assert {name: (job[name], chunk[name]) for name in asdict(tally)} == {
        name: (2 * value, value) for name, value in asdict(tally).items()
    }


@pytest.mark.parametrize("deadline_at", [None, "later"])
def test_a_job_does_not_expire_before_its_deadline_nor_without_one(
    shared_database: Database, deadline_at: str | None
) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING)
        later = None if deadline_at is None else now_s() + 60
        tx.execute(update(jobs).where(jobs.c.id == lease.job_id).values(deadline_at=later))
        before = row_of(tx, jobs, lease.job_id), row_of(tx, chunks, lease.chunk_id)
        with pytest.raises(LeaseLostError):
            transitions.expire_job(tx, lease.job_id)
        assert (row_of(tx, jobs, lease.job_id), row_of(tx, chunks, lease.chunk_id)) == before


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.DELETING])
def test_only_a_job_that_is_deleting_is_erased(shared_database: Database, state: JobState) -> None:
    with shared_database.write() as tx:
        job_id = insert_job(tx, state)
        before = row_of(tx, jobs, job_id)
        with pytest.raises(WrongStateError):
            transitions.erase_job(tx, job_id)
        assert row_of(tx, jobs, job_id) == before
        assert not transitions.erase_job(tx, "job_missing")


@pytest.mark.parametrize("arrow", _LEASED)
def test_a_chunk_that_is_given_up_holds_no_lease_and_is_not_alone(
    shared_database: Database, arrow: str
) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, lease_left_s=-1.0, is_alone=True)
        move_chunk(tx, arrow, lease)
        row = row_of(tx, chunks, lease.chunk_id)
    assert {row[name] for name in LEASE_COLUMNS} == {None}
    # once a suspect, always one
    assert (row["is_suspect"], row["is_alone"]) == (True, False)


def test_a_job_that_expires_ends_the_lease_of_a_suspect_that_is_alone(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, is_alone=True)
        transitions.expire_job(tx, lease.job_id)
        row = row_of(tx, chunks, lease.chunk_id)
    assert {row[name] for name in LEASE_COLUMNS} == {None}
    assert not row["is_alone"]


def test_a_claim_counts_the_attempt_and_says_what_is_leased(shared_database: Database) -> None:
    with shared_database.write() as tx:
        chunk = insert_chunk(tx, ChunkState.QUEUED)
        worker_id = insert_worker(tx, WorkerState.READY)
        lease = transitions.claim_chunk(tx, chunk.chunk_id, worker_id, 300.0, leases.new_lease_id())
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


@pytest.mark.parametrize("arrow", ["claim", *_LEASED])
def test_a_chunk_that_is_missing_is_not_found(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx, pytest.raises(NotFoundError, match="no chunk 999999"):
        move_chunk(tx, arrow, Lease("l" * 32, 999_999, "job_missing", 0, 3, 1))


@pytest.mark.parametrize("arrow", _LEASED)
def test_a_running_chunk_does_not_move_under_another_lease(shared_database: Database, arrow: str) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, lease_left_s=-1.0)
        before = row_of(tx, chunks, lease.chunk_id)
        other = Lease("o" * 32, lease.chunk_id, lease.job_id, 0, 3, 1)
        with pytest.raises(LeaseLostError):
            move_chunk(tx, arrow, other)
        assert row_of(tx, chunks, lease.chunk_id) == before


def test_a_split_keeps_the_attempts_and_leaves_its_results_with_their_parts(
    shared_database: Database,
) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING)
        move_chunk(tx, "split", lease)
        parts = tx.execute(select(chunks).where(chunks.c.job_id == lease.job_id).order_by(chunks.c.id)).all()
    assert [part.id == lease.chunk_id for part in parts] == [True, False]
    assert [(part.first_index, part.num_requests, part.num_succeeded) for part in parts] == [
        (0, 2, 2),
        (2, 1, 1),
    ]
    assert {(part.state, part.attempt, part.is_suspect, part.is_alone) for part in parts} == {
        (ChunkState.QUEUED, 1, True, False)
    }


@pytest.mark.parametrize("state", ChunkState)
def test_only_a_suspect_that_somebody_holds_is_isolated(shared_database: Database, state: ChunkState) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, state)
        before = row_of(tx, chunks, lease.chunk_id)
        with pytest.raises(LeaseLostError):
            transitions.isolate_chunk(tx, lease)
        assert row_of(tx, chunks, lease.chunk_id) == before


def test_a_suspect_is_isolated_by_the_holder_of_its_lease_alone(shared_database: Database) -> None:
    with shared_database.write() as tx:
        lease = insert_chunk(tx, ChunkState.RUNNING, is_alone=True)
        tx.execute(update(chunks).where(chunks.c.id == lease.chunk_id).values(is_alone=False))
        before = row_of(tx, chunks, lease.chunk_id)
        with pytest.raises(LeaseLostError):
            transitions.isolate_chunk(tx, replace(lease, lease_id="o" * 32))
        assert row_of(tx, chunks, lease.chunk_id) == before
        for _ in range(2):
            transitions.isolate_chunk(tx, lease)
            assert row_of(tx, chunks, lease.chunk_id) == {**before, "is_alone": True}


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
