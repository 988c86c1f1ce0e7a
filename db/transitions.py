"""The only writer of state columns: one function an arrow of `states`, each one guarded UPDATE.

An update that matches no row wrote nothing, and says why: NotFoundError, WrongStateError (with the state
found and those expected), or LeaseLostError where the arrow needs a lease.

Lock order, always: the job's row, then its chunks. `lock_job` is called first by whatever may close the job
or put a chunk back, so that a cancel never passes a chunk that is on its way back to queued.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from db.errors import LeaseLostError, NotFoundError, WrongStateError
from db.states import (
    CHUNK_ARROWS,
    JOB_ARROWS,
    WORKER_ARROWS,
    Arrow,
    ChunkState,
    JobState,
    WorkerState,
)
from db.tables import chunks, jobs, now_s, requests, results, workers

_NO_LEASE = {"lease_id": None, "lease_until": None, "worker_id": None, "is_alone": False}
_OPEN_CHUNK = (ChunkState.QUEUED, ChunkState.RUNNING)


@dataclass(frozen=True)
class Lease:
    """The right to write one chunk's results; `lease_id` is the fence."""

    lease_id: str
    chunk_id: int
    job_id: str
    first_index: int
    num_requests: int
    attempt: int
    is_suspect: bool = False
    is_alone: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a chunk that is split: its range and the sums over the results that it has already."""

    first_index: int
    num_requests: int
    num_succeeded: int
    num_failed: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class NewJob:
    """What a submit knows of its job before it reads the first line."""

    id: str
    card_name: str
    card_sha256: str
    card: str
    input_name: str
    name: str | None = None
    priority: int = 0
    deadline_s: float | None = None


def _move(
    tx: Connection,
    table: Table,
    what: str,
    key: Any,
    arrow: Arrow[Any],
    *guards: ColumnElement[bool],
    **values: Any,
) -> None:
    moved = tx.execute(
        update(table)
        .where(table.c.id == key, table.c.state.in_(arrow.sources), *guards)
        .values(state=arrow.target, **values)
    )
    if moved.rowcount == 0:
        _refuse(tx, table, what, key, arrow)


def _refuse(tx: Connection, table: Table, what: str, key: Any, arrow: Arrow[Any]) -> None:
    state = tx.execute(select(table.c.state).where(table.c.id == key)).scalar()
    if state is None:
        raise NotFoundError(f"there is no {what} {key}")
    if state in arrow.sources:
        raise LeaseLostError(f"the lease on {what} {key} has passed to somebody else")
    raise WrongStateError(f"{what} {key}", state, frozenset(arrow.sources))


# --- jobs -----------------------------------------------------------------------------------------------------


def stage_job(tx: Connection, job: NewJob, submit_lease_s: float) -> None:
    """(new) -> validating: a job that only its submit sees."""
    tx.execute(
        insert(jobs).values(
            id=job.id,
            name=job.name,
            state=JobState.VALIDATING,
            priority=job.priority,
            card_name=job.card_name,
            card_sha256=job.card_sha256,
            card=job.card,
            input_name=job.input_name,
            created_at=now_s(),
            submit_lease_until=now_s() + submit_lease_s,
            deadline_at=None if job.deadline_s is None else now_s() + job.deadline_s,
        )
    )


def renew_submit(tx: Connection, job_id: str, submit_lease_s: float) -> None:
    """Keep a validating job from the sweeper. First in every transaction that adds lines, so that
    a submit that slept past its lease adds none: then LeaseLostError."""
    renewed = tx.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.VALIDATING, _submit_lives())
        .values(submit_lease_until=now_s() + submit_lease_s)
    )
    if renewed.rowcount == 0:
        raise LeaseLostError(
            "this submit paused for longer than its lease and was cleared away; submit again"
        )


def abandon_job(tx: Connection, job_id: str) -> None:
    """validating -> deleting: its submit, should it still live, can neither add to it nor make it visible."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["abandon"], submit_lease_until=None)


def delete_job(tx: Connection, job_id: str) -> None:
    """completed, cancelled or expired -> deleting: invisible at once; `erase_rows` does the rest."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["delete"], finished_at=None, idempotency_key=None)


def _submit_lives() -> ColumnElement[bool]:
    return jobs.c.submit_lease_until > now_s()


def enqueue_job(
    tx: Connection,
    job_id: str,
    *,
    num_requests: int,
    input_sha256: str,
    idempotency_key: str | None,
) -> None:
    """validating -> queued: the job is whole and visible from here on.

    Raises sqlalchemy's IntegrityError when another job took the idempotency key first.
    """
    _move(
        tx,
        jobs,
        "job",
        job_id,
        JOB_ARROWS["enqueue"],
        _submit_lives(),
        num_requests=num_requests,
        input_sha256=input_sha256,
        idempotency_key=idempotency_key,
        submit_lease_until=None,
    )


def start_job(tx: Connection, job_id: str) -> None:
    """queued -> in_progress, at the first claim."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["start"], started_at=now_s())


def complete_job(tx: Connection, job_id: str) -> None:
    """queued or in_progress -> completed; refused while a chunk is open."""
    _move(
        tx,
        jobs,
        "job",
        job_id,
        JOB_ARROWS["complete"],
        _has_no_open_chunk(),
        finished_at=now_s(),
    )


def cancel_job(tx: Connection, job_id: str) -> None:
    """queued or in_progress -> cancelling; its queued chunks are cancelled, the running ones end by themselves."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["cancel"])
    tx.execute(
        update(chunks)
        .where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.QUEUED)
        .values(state=CHUNK_ARROWS["cancel"].target, finished_at=now_s())
    )


def end_cancel_job(tx: Connection, job_id: str) -> None:
    """cancelling -> cancelled; refused while a chunk is open."""
    _move(
        tx,
        jobs,
        "job",
        job_id,
        JOB_ARROWS["end_cancel"],
        _has_no_open_chunk(),
        finished_at=now_s(),
    )


def expire_job(tx: Connection, job_id: str) -> None:
    """queued or in_progress -> expired, past its deadline by the database's clock.

    Its chunks expire with it, also those that run: their leases end, and later writes are refused.
    """
    _move(
        tx,
        jobs,
        "job",
        job_id,
        JOB_ARROWS["expire"],
        jobs.c.deadline_at < now_s(),
        finished_at=now_s(),
    )
    is_open = (chunks.c.job_id == job_id) & chunks.c.state.in_(CHUNK_ARROWS["expire"].sources)
    lock_chunks(tx, is_open)
    tx.execute(
        update(chunks)
        .where(is_open)
        .values(state=CHUNK_ARROWS["expire"].target, finished_at=now_s(), **_NO_LEASE)
    )


def _has_no_open_chunk() -> ColumnElement[bool]:
    return ~select(chunks.c.id).where(chunks.c.job_id == jobs.c.id, chunks.c.state.in_(_OPEN_CHUNK)).exists()


def lock_chunks(tx: Connection, which: ColumnElement[bool]) -> None:
    """Take running chunks by their ids, as whoever changes several of them must: an update takes them in any
    order, and two such (a renewal and a deadline) could wait for each other."""
    tx.execute(select(chunks.c.id).where(which).order_by(chunks.c.id).with_for_update()).all()


def lock_job(tx: Connection, job_id: str) -> JobState:
    """Take the job's row until the transaction ends, and say its state (SQLite: the write lock is held already)."""
    statement = select(jobs.c.state).where(jobs.c.id == job_id).with_for_update(key_share=True)
    state = tx.execute(statement).scalar()
    if state is None:
        raise NotFoundError(f"there is no job {job_id}")
    return JobState(state)


def close_job_if_over(tx: Connection, job_id: str, state: JobState) -> JobState:
    """Complete or end the cancel of a job whose last chunk is closed; the caller holds `lock_job`."""
    is_open = select(chunks.c.id).where(chunks.c.job_id == job_id, chunks.c.state.in_(_OPEN_CHUNK)).limit(1)
    if state.is_final or not state.is_visible or tx.execute(is_open).scalar() is not None:
        return state
    if state is JobState.CANCELLING:
        end_cancel_job(tx, job_id)
        return JobState.CANCELLED
    complete_job(tx, job_id)
    return JobState.COMPLETED


def erase_rows(tx: Connection, job_id: str, limit: int) -> bool:
    """Delete up to `limit` requests of a deleting job and their results; False when none was left."""
    first = tx.execute(select(func.min(requests.c.index)).where(requests.c.job_id == job_id)).scalar()
    if first is None:
        return False
    for table in (results, requests):
        tx.execute(
            delete(table).where(
                table.c.job_id == job_id,
                table.c.index >= first,
                table.c.index < first + limit,
            )
        )
    # Not the number deleted: that is 0 when another sweeper was faster, whatever is left behind these rows.
    return True


def erase_job(tx: Connection, job_id: str) -> bool:
    """Delete a deleting job, after `erase_rows` said False. False when it is gone already;
    a job in any other state stays."""
    state = tx.execute(select(jobs.c.state).where(jobs.c.id == job_id).with_for_update()).scalar()
    if state is None:
        return False
    if state != JobState.DELETING:
        raise WrongStateError(f"job {job_id}", state, frozenset({JobState.DELETING}))
    tx.execute(delete(chunks).where(chunks.c.job_id == job_id))
    tx.execute(delete(jobs).where(jobs.c.id == job_id))
    return True


# --- chunks ---------------------------------------------------------------------------------------------------


def claim_chunk(tx: Connection, chunk_id: int, worker_id: str, lease_s: float) -> Lease:
    """queued -> running under a fresh lease; counts the attempt."""
    lease_id = uuid.uuid4().hex
    _move(
        tx,
        chunks,
        "chunk",
        chunk_id,
        CHUNK_ARROWS["claim"],
        lease_id=lease_id,
        lease_until=now_s() + lease_s,
        worker_id=worker_id,
        attempt=chunks.c.attempt + 1,
        started_at=now_s(),
    )
    row = tx.execute(select(chunks).where(chunks.c.id == chunk_id)).one()
    return lease_of(row)


def lease_of(row: Row[Any]) -> Lease:
    """The lease in a row of a running chunk."""
    return Lease(
        row.lease_id,
        row.id,
        row.job_id,
        row.first_index,
        row.num_requests,
        row.attempt,
        row.is_suspect,
        row.is_alone,
    )


def _move_leased(
    tx: Connection, lease: Lease, arrow: str, *guards: ColumnElement[bool], **values: Any
) -> None:
    _move(
        tx,
        chunks,
        "chunk",
        lease.chunk_id,
        CHUNK_ARROWS[arrow],
        chunks.c.lease_id == lease.lease_id,
        *guards,
        **_NO_LEASE,
        **values,
    )


def finish_chunk(tx: Connection, lease: Lease) -> None:
    """running -> done; the CHECK refuses it unless every request has its result."""
    _move_leased(tx, lease, "finish", finished_at=now_s())


def release_chunk(tx: Connection, lease: Lease) -> None:
    """running -> queued, by the worker itself: it was not the chunk's fault, so the attempt does not count."""
    _move_leased(tx, lease, "release", attempt=chunks.c.attempt - 1)


def requeue_chunk(tx: Connection, lease: Lease) -> None:
    """running -> queued, after its worker's death; the attempt counts. The caller knows of the death."""
    _move_leased(tx, lease, "requeue")


def split_chunk(tx: Connection, lease: Lease, parts: Sequence[Part]) -> None:
    """running -> queued, as suspects: the chunk keeps the first of `parts`, the others become chunks of their own.

    The parts follow each other and cover the chunk; each has a request without a result.
    """
    first, *others = (vars(part) for part in parts)
    _move_leased(tx, lease, "split", is_suspect=True, **first)
    if others:
        tx.execute(
            insert(chunks),
            [
                {
                    **part,
                    "job_id": lease.job_id,
                    "state": CHUNK_ARROWS["split"].target,
                    "attempt": lease.attempt,
                    "is_suspect": True,
                }
                for part in others
            ],
        )


def cancel_chunk(tx: Connection, lease: Lease) -> None:
    """running -> cancelled, in a job that is cancelling; requests without a result count as cancelled."""
    _move_leased(tx, lease, "cancel", finished_at=now_s())


def isolate_chunk(tx: Connection, lease: Lease) -> None:
    """Mark that a suspect runs alone in its worker from now on: no move, but only the lease's holder may."""
    marked = tx.execute(
        update(chunks)
        .where(chunks.c.id == lease.chunk_id, chunks.c.lease_id == lease.lease_id, chunks.c.is_suspect)
        .values(is_alone=True)
    )
    if marked.rowcount == 0:
        raise LeaseLostError(f"the lease on chunk {lease.chunk_id} has passed to somebody else")


# --- workers --------------------------------------------------------------------------------------------------


def register_worker(tx: Connection, worker_id: str, card_name: str, engine: str, host: str, pid: int) -> None:
    """(new) -> starting."""
    tx.execute(
        insert(workers).values(
            id=worker_id,
            state=WorkerState.STARTING,
            card_name=card_name,
            engine=engine,
            host=host,
            pid=pid,
            started_at=now_s(),
            heartbeat_at=now_s(),
        )
    )


def ready_worker(tx: Connection, worker_id: str) -> None:
    """starting -> ready, or gone -> ready when a frozen worker wakes."""
    _move(tx, workers, "worker", worker_id, WORKER_ARROWS["ready"], heartbeat_at=now_s())


def drain_worker(tx: Connection, worker_id: str) -> None:
    """It claims nothing more."""
    _move(tx, workers, "worker", worker_id, WORKER_ARROWS["drain"], heartbeat_at=now_s())


def stop_worker(tx: Connection, worker_id: str) -> None:
    """It has given back what it held."""
    _move(tx, workers, "worker", worker_id, WORKER_ARROWS["stop"], heartbeat_at=now_s())


def lose_worker(tx: Connection, worker_id: str, silent_s: float) -> None:
    """-> gone, by the sweeper, after `silent_s` without a heartbeat."""
    _move(
        tx,
        workers,
        "worker",
        worker_id,
        WORKER_ARROWS["lose"],
        workers.c.heartbeat_at < now_s() - silent_s,
    )
