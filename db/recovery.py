"""What mends the state after faults. Each function is safe with many callers at once, and returns what it did."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from db import leases, transitions
from db.database import Database
from db.errors import LeaseLostError, WrongStateError
from db.leases import NewResult
from db.states import ChunkState, JobState, WorkerState
from db.tables import chunks, jobs, now_s, workers
from db.transitions import Lease

# A worker is gone after this many lease times without a heartbeat.
_SILENT_LEASES = 3
_DELETE_ROWS = 5_000


@dataclass(frozen=True)
class Recovery:
    num_requeued: int = 0
    num_given_up: int = 0
    num_workers_lost: int = 0
    num_submits_cleared: int = 0

    @property
    def did_anything(self) -> bool:
        return self != Recovery()


def run_once(database: Database, lease_s: float, max_attempts: int) -> Recovery:
    """One round: expired leases, silent workers, submits that died."""
    num_requeued, num_given_up = _expire_leases(database, max_attempts)
    return Recovery(
        num_requeued,
        num_given_up,
        _lose_workers(database, lease_s * _SILENT_LEASES),
        _clear_submits(database),
    )


def _expire_leases(database: Database, max_attempts: int) -> tuple[int, int]:
    with database.read() as tx:
        rows = tx.execute(
            select(chunks).where(chunks.c.state == ChunkState.RUNNING, chunks.c.lease_until < now_s())
        ).all()
    num_requeued = num_given_up = 0
    for row in rows:
        lease = Lease(
            row.lease_id,
            row.id,
            row.job_id,
            row.first_index,
            row.num_requests,
            row.attempt,
        )
        try:
            if _expire_lease(database, lease, max_attempts) is ChunkState.DONE:
                num_given_up += 1
            else:
                num_requeued += 1
        except (LeaseLostError, WrongStateError):
            continue  # its worker renewed it, or another sweeper came first
    return num_requeued, num_given_up


def _expire_lease(database: Database, lease: Lease, max_attempts: int) -> ChunkState:
    with database.write() as tx:
        job_state = transitions.lock_job(tx, lease.job_id)
        _hold_expired(tx, lease)
        if job_state is JobState.CANCELLING:
            transitions.cancel_chunk(tx, lease)
            chunk_state = ChunkState.CANCELLED
        elif lease.attempt < max_attempts:
            transitions.requeue_chunk(tx, lease)
            chunk_state = ChunkState.QUEUED
        else:
            _fail_rest(tx, lease)
            transitions.finish_chunk(tx, lease)
            chunk_state = ChunkState.DONE
        transitions.close_job_if_over(tx, lease.job_id, job_state)
    return chunk_state


def _hold_expired(tx: Connection, lease: Lease) -> None:
    expired = (
        select(chunks.c.id)
        .where(chunks.c.lease_id == lease.lease_id, chunks.c.lease_until < now_s())
        .with_for_update()
    )
    if tx.execute(expired).scalar() is None:
        raise LeaseLostError(f"the lease on chunk {lease.chunk_id} was renewed")


def _fail_rest(tx: Connection, lease: Lease) -> None:
    """Its worker died at every attempt: what has no result by now fails, so that the job can end."""
    message = f"the worker died at each of {lease.attempt} attempts at this chunk"
    rest = [
        NewResult(request.index, error_code="engine_crash", error_message=message)
        for request in leases.pending_requests(tx, lease)
    ]
    leases.write_results(tx, lease, rest)


def _lose_workers(database: Database, silent_s: float) -> int:
    alive = (WorkerState.STARTING, WorkerState.READY, WorkerState.DRAINING)
    with database.read() as tx:
        silent = tx.execute(
            select(workers.c.id).where(
                workers.c.state.in_(alive), workers.c.heartbeat_at < now_s() - silent_s
            )
        ).scalars()
        ids = list(silent)
    num_lost = 0
    for worker_id in ids:
        try:
            with database.write() as tx:
                transitions.lose_worker(tx, worker_id, silent_s)
            num_lost += 1
        except (WrongStateError, LeaseLostError):
            continue  # it spoke up, or another sweeper came first
    return num_lost


def _clear_submits(database: Database) -> int:
    with database.read() as tx:
        over = tx.execute(
            select(jobs.c.id).where(jobs.c.state == JobState.VALIDATING, jobs.c.submit_lease_until < now_s())
        ).scalars()
        ids = list(over)
    return sum(discard_staged_job(database, job_id) for job_id in ids)


def discard_staged_job(database: Database, job_id: str) -> bool:
    """Delete a job that never left validating, in steps that do not lock others out. Safe to call again.

    False when somebody else deleted it, or when it is not validating: then it stays as it is. That is how a
    submit fares that lost the answer to its commit, while the commit went through.
    """
    with database.write() as tx:
        # from here on its submit, should it still live, can neither renew nor enqueue it
        if not transitions.abandon_submit(tx, job_id):
            return False
    while True:
        with database.write() as tx:
            if not transitions.delete_rows(tx, job_id, _DELETE_ROWS):
                return transitions.delete_staged_job(tx, job_id)
