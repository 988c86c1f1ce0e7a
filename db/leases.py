"""Leases: how a worker gets a chunk, keeps it, writes its results, and how it ends.

Each function is one transaction. Every write names the lease; when the lease has passed on, nothing is
written and LeaseLostError is raised, so a worker that was frozen or cut off can do no harm when it returns.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Row, func, insert, select, update

from db import transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError, WrongStateError
from db.states import ChunkState, JobState, ResultStatus, WorkerState
from db.tables import chunks, jobs, now_s, requests, results, workers
from db.transitions import Lease

_CANDIDATE_JOBS = 5


@dataclass(frozen=True)
class PendingRequest:
    """A request without a result; `body` is its JSON text."""

    index: int
    body: str


@dataclass(frozen=True)
class NewResult:
    """One outcome. Either `result` (JSON text) is set, or the error's code and message are."""

    index: int
    result: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    num_retries: int = 0

    @property
    def status(self) -> ResultStatus:
        return ResultStatus.FAILED if self.result is None else ResultStatus.SUCCEEDED


@dataclass(frozen=True)
class Renewal:
    """What a heartbeat learnt: leases that are gone, and held leases whose job is being cancelled."""

    lost: frozenset[str]
    cancelling: frozenset[str]


@contextmanager
def _fenced() -> Iterator[None]:
    """For the holder of a lease it is all one: whatever is in the way, the chunk is no longer its own."""
    try:
        yield
    except (WrongStateError, NotFoundError) as error:
        raise LeaseLostError(str(error)) from error


def claim(
    database: Database,
    worker_id: str,
    card_name: str,
    lease_s: float,
    job_id: str | None = None,
) -> Lease | None:
    """Lease the best queued chunk of this card (or of `job_id` alone); None when there is none.

    Best is: highest priority, then the job with the fewest chunks running, then the oldest. So an urgent job
    goes first, equal jobs share, and a big job cannot starve a small one.
    """
    with database.read() as tx:
        candidates = _candidates(tx, card_name, job_id)
    for candidate in candidates:
        # a transaction each: two claims that held several jobs' rows could wait for each other
        with database.write() as tx:
            lease = _claim_from(tx, candidate.id, candidate.state, worker_id, lease_s)
        if lease is not None:
            return lease
    return None


def _candidates(tx: Connection, card_name: str, job_id: str | None) -> Sequence[Row[tuple[str, str]]]:
    has_queued = (
        select(chunks.c.id)
        .where(chunks.c.job_id == jobs.c.id, chunks.c.state == ChunkState.QUEUED)
        .correlate(jobs)
        .exists()
    )
    num_running = (
        select(func.count())
        .select_from(chunks)
        .where(chunks.c.job_id == jobs.c.id, chunks.c.state == ChunkState.RUNNING)
        .correlate(jobs)
        .scalar_subquery()
    )
    statement = (
        select(jobs.c.id, jobs.c.state)
        .where(
            jobs.c.state.in_((JobState.QUEUED, JobState.IN_PROGRESS)),
            jobs.c.card_name == card_name,
            has_queued,
        )
        .order_by(jobs.c.priority.desc(), num_running, jobs.c.created_at, jobs.c.id)
        .limit(_CANDIDATE_JOBS)
    )
    if job_id is not None:
        statement = statement.where(jobs.c.id == job_id)
    return tx.execute(statement).all()


def _claim_from(tx: Connection, job_id: str, state: str, worker_id: str, lease_s: float) -> Lease | None:
    # The job first, then the chunk (the lock order). A share is enough once the job runs, so that
    # claims of one job do not wait for each other, while a cancel waits for them.
    is_first = state == JobState.QUEUED
    locked = select(jobs.c.state).where(jobs.c.id == job_id)
    locked = locked.with_for_update(key_share=True) if is_first else locked.with_for_update(read=True)
    now = tx.execute(locked).scalar()
    if (now == JobState.QUEUED and not is_first) or now not in (JobState.QUEUED, JobState.IN_PROGRESS):
        return None
    chunk_id = tx.execute(
        select(chunks.c.id)
        .where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.QUEUED)
        .order_by(chunks.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar()
    if chunk_id is None:
        return None
    if now == JobState.QUEUED:
        transitions.start_job(tx, job_id)
    return transitions.claim_chunk(tx, chunk_id, worker_id, lease_s)


def load_requests(database: Database, lease: Lease) -> list[PendingRequest]:
    """The chunk's requests that have no result yet, in input order."""
    with database.read() as tx:
        return pending_requests(tx, lease)


def pending_requests(tx: Connection, lease: Lease) -> list[PendingRequest]:
    """`load_requests` inside a transaction that the caller has open."""
    rows = tx.execute(
        select(requests.c.index, requests.c.body)
        .outerjoin(
            results,
            (results.c.job_id == requests.c.job_id) & (results.c.index == requests.c.index),
        )
        .where(
            requests.c.job_id == lease.job_id,
            requests.c.index >= lease.first_index,
            requests.c.index < lease.first_index + lease.num_requests,
            results.c.index.is_(None),
        )
        .order_by(requests.c.index)
    ).all()
    return [PendingRequest(index, body) for index, body in rows]


def renew(database: Database, worker_id: str, leases: Sequence[Lease], lease_s: float) -> Renewal:
    """Put off the end of `leases` to `lease_s` from now, and leave a heartbeat in the worker's row.

    A worker that was taken for gone is ready again.
    """
    ids = [lease.lease_id for lease in leases]
    with database.write() as tx:
        _beat(tx, worker_id)
        if not ids:
            return Renewal(frozenset(), frozenset())
        transitions.lock_chunks(tx, chunks.c.lease_id.in_(ids))
        tx.execute(update(chunks).where(chunks.c.lease_id.in_(ids)).values(lease_until=now_s() + lease_s))
        held: Mapping[str, str] = {
            row.lease_id: row.state
            for row in tx.execute(
                select(chunks.c.lease_id, jobs.c.state)
                .join(jobs, jobs.c.id == chunks.c.job_id)
                .where(chunks.c.lease_id.in_(ids))
            )
        }
    return Renewal(
        lost=frozenset(ids) - held.keys(),
        cancelling=frozenset(id_ for id_, state in held.items() if state == JobState.CANCELLING),
    )


def _beat(tx: Connection, worker_id: str) -> None:
    beat = update(workers).where(workers.c.id == worker_id).values(heartbeat_at=now_s())
    if tx.execute(beat.returning(workers.c.state)).scalar() == WorkerState.GONE:
        # it was frozen or cut off, and the sweeper gave it up
        transitions.ready_worker(tx, worker_id)


def record(database: Database, lease: Lease, batch: Sequence[NewResult], *, is_last: bool) -> None:
    """Write results of a leased chunk; with `is_last` the chunk is done, and its job closed if it was the last.

    All or nothing. After a DatabaseUnavailableError the caller cannot know whether the commit went through, and
    may call again with the same batch: results that are there already are left as they are.
    """
    with database.write() as tx, _fenced():
        state = transitions.lock_job(tx, lease.job_id) if is_last else None
        _hold(tx, lease)
        write_results(tx, lease, batch)
        if state is not None:
            transitions.finish_chunk(tx, lease)
            transitions.close_job_if_over(tx, lease.job_id, state)


def release(database: Database, lease: Lease) -> ChunkState:
    """Give an unfinished chunk back: to be claimed again, or as cancelled when its job is being cancelled."""
    with database.write() as tx, _fenced():
        state = transitions.lock_job(tx, lease.job_id)
        if state is JobState.CANCELLING:
            transitions.cancel_chunk(tx, lease)
            transitions.close_job_if_over(tx, lease.job_id, state)
            return ChunkState.CANCELLED
        transitions.release_chunk(tx, lease)
        return ChunkState.QUEUED


def isolate(database: Database, lease: Lease) -> None:
    """Write down that a suspect chunk runs alone from now on. A second call is harmless."""
    with database.write() as tx, _fenced():
        transitions.isolate_chunk(tx, lease)


def _hold(tx: Connection, lease: Lease) -> None:
    """Lock the chunk's row while its lease is still this one."""
    held = (
        select(chunks.c.id)
        .where(chunks.c.id == lease.chunk_id, chunks.c.lease_id == lease.lease_id)
        .with_for_update()
    )
    if tx.execute(held).scalar() is None:
        raise LeaseLostError(f"the lease on chunk {lease.chunk_id} has passed to somebody else")


def write_results(tx: Connection, lease: Lease, batch: Sequence[NewResult]) -> None:
    """Insert results and add them to the chunk's counts; the caller holds the chunk's row."""
    there = set()
    if batch:
        there = set(
            tx.execute(
                select(results.c.index).where(
                    results.c.job_id == lease.job_id,
                    results.c.index.in_([result.index for result in batch]),
                )
            ).scalars()
        )
    fresh = [result for result in batch if result.index not in there]
    if not fresh:
        return
    now = tx.execute(select(now_s())).scalar_one()
    tx.execute(
        insert(results),
        [
            {
                "job_id": lease.job_id,
                "index": result.index,
                "status": result.status,
                "result": result.result,
                "finish_reason": result.finish_reason,
                "prompt_tokens": result.prompt_tokens,
                "completion_tokens": result.completion_tokens,
                "error_code": result.error_code,
                "error_message": result.error_message,
                "attempt": lease.attempt + result.num_retries,
                "finished_at": now,
            }
            for result in fresh
        ],
    )
    num_succeeded = sum(result.status is ResultStatus.SUCCEEDED for result in fresh)
    tx.execute(
        update(chunks)
        .where(chunks.c.id == lease.chunk_id)
        .values(
            num_succeeded=chunks.c.num_succeeded + num_succeeded,
            num_failed=chunks.c.num_failed + len(fresh) - num_succeeded,
            prompt_tokens=chunks.c.prompt_tokens + sum(result.prompt_tokens or 0 for result in fresh),
            completion_tokens=chunks.c.completion_tokens
            + sum(result.completion_tokens or 0 for result in fresh),
        )
    )
