"""One raw row in any state, as its CHECKs allow, and each arrow by its name."""

import uuid

from sqlalchemy import Connection, insert, select

from db import leases, transitions
from db.states import ChunkState, JobState, WorkerState
from db.tables import chunks, jobs, now_s, workers
from db.transitions import Lease, Part, Tally

LEASE_COLUMNS = {"lease_id", "lease_until", "worker_id"}


def insert_job(tx: Connection, state: JobState) -> str:
    """Past its deadline since 1970, so that every arrow's guards are met."""
    job_id = uuid.uuid4().hex
    is_staged = state is JobState.VALIDATING
    tx.execute(
        insert(jobs).values(
            id=job_id,
            state=state,
            card_name="tiny",
            card_sha256="c" * 64,
            card="name: tiny",
            input_name="input.jsonl",
            input_sha256=None if is_staged else "i" * 64,
            idempotency_key=None if is_staged else f"first-{job_id}",
            deadline_at=1.0,
            submit_lease_until=now_s() + 600 if is_staged else None,
            created_at=now_s(),
            finished_at=1.0 if state.is_final else None,
        )
    )
    return job_id


def move_job(tx: Connection, arrow: str, job_id: str) -> None:
    if arrow == "enqueue":
        transitions.enqueue_job(
            tx, job_id, num_requests=7, num_failed=2, input_sha256="e" * 64, idempotency_key=uuid.uuid4().hex
        )
    else:
        getattr(transitions, f"{arrow}_job")(tx, job_id)


def insert_chunk(
    tx: Connection,
    state: ChunkState,
    *,
    lease_left_s: float = 300.0,
    is_alone: bool = False,
    job_state: JobState = JobState.IN_PROGRESS,
) -> Lease:
    """A chunk in a job of its own, with all its results counted, and the lease that it has or had.

    With `is_alone` it is a suspect that runs alone.
    """
    job_id, worker_id = insert_job(tx, job_state), insert_worker(tx, WorkerState.READY)
    lease_id = uuid.uuid4().hex
    is_running = state is ChunkState.RUNNING
    chunk_id = tx.execute(
        insert(chunks)
        .values(
            job_id=job_id,
            first_index=0,
            num_requests=3,
            num_succeeded=3,
            state=state,
            attempt=1,
            is_suspect=is_alone,
            is_alone=is_alone,
            lease_id=lease_id if is_running else None,
            lease_until=now_s() + lease_left_s if is_running else None,
            worker_id=worker_id if is_running else None,
        )
        .returning(chunks.c.id)
    ).scalar_one()
    return Lease(lease_id, chunk_id, job_id, 0, 3, 1)


def move_chunk(tx: Connection, arrow: str, lease: Lease) -> None:
    if arrow == "claim":
        transitions.claim_chunk(
            tx, lease.chunk_id, insert_worker(tx, WorkerState.READY), 300.0, leases.new_lease_id()
        )
    elif arrow == "split":
        transitions.split_chunk(tx, lease, [Part(0, 2, Tally(2)), Part(2, 1, Tally(1))])
    elif arrow == "retry":
        transitions.retry_chunk(tx, lease.chunk_id, Tally(1))
    else:
        getattr(transitions, f"{arrow}_chunk")(tx, lease)


def insert_worker(tx: Connection, state: WorkerState, *, silent_s: float = 1_000.0) -> str:
    worker_id = uuid.uuid4().hex
    tx.execute(
        insert(workers).values(
            id=worker_id,
            state=state,
            card_name="tiny",
            engine="echo",
            host="host",
            pid=1,
            started_at=now_s() - 2_000.0,
            heartbeat_at=now_s() - silent_s,
        )
    )
    return worker_id


def move_worker(tx: Connection, arrow: str, worker_id: str) -> None:
    if arrow == "lose":
        transitions.lose_worker(tx, worker_id, 500.0)
    else:
        getattr(transitions, f"{arrow}_worker")(tx, worker_id)


def clock(tx: Connection) -> float:
    return float(tx.execute(select(now_s())).scalar_one())
