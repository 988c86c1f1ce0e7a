"""What mends the state after faults. Each function is safe with many callers at once, and returns what it did."""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import ColumnElement, Connection, and_, literal_column, select

from db import leases, transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError, WrongStateError
from db.leases import NewResult, Record
from db.states import ALIVE_STATES, JobState
from db.tables import (
    HAS_ALL_RESULTS,
    HAS_RUNNING_CHUNK,
    IS_CLAIMABLE,
    IS_RUNNING,
    chunks,
    jobs,
    now_s,
    results,
    the_time,
    workers,
)
from db.transitions import LEASE_COLUMNS, Lease, Part

# A worker is gone after this many lease times without a heartbeat.
_SILENT_LEASES = 3
_ERASE_ROWS = 5_000
_EXPIRE_JOBS = 100
_NUM_PARTS = 8


@dataclass(frozen=True)
class Recovery:
    """What one round did. `num_given_up` chunks hold a request that failed with engine_crash."""

    num_requeued: int = 0
    num_split: int = 0
    num_given_up: int = 0
    num_jobs_closed: int = 0
    num_jobs_expired: int = 0
    num_jobs_erased: int = 0
    num_workers_lost: int = 0

    @property
    def did_anything(self) -> bool:
        return self != Recovery()


class _Death(Enum):
    """What became of a chunk whose worker died."""

    REQUEUED = "requeued"
    SPLIT = "split"
    GIVEN_UP = "given up"


def run_once(
    database: Database, lease_s: float, max_attempts: int, *, spare_leases: bool = False
) -> Recovery:
    """One round of everything that mends. `spare_leases` leaves expired leases alone: right after the database
    was away, because their workers live and could not renew them."""
    deaths = Counter({} if spare_leases else _expire_leases(database, max_attempts))
    return Recovery(
        num_requeued=deaths[_Death.REQUEUED],
        num_split=deaths[_Death.SPLIT],
        num_given_up=deaths[_Death.GIVEN_UP],
        num_jobs_closed=_close_jobs(database),
        num_jobs_expired=_expire_jobs(database),
        num_jobs_erased=_erase_jobs(database),
        num_workers_lost=_lose_workers(database, lease_s * _SILENT_LEASES),
    )


def worker_died(database: Database, worker_id: str, max_attempts: int) -> Recovery:
    """Take the chunks of a worker whose process is known to be dead, without waiting for its leases to expire.

    For its supervisor, and for itself once its engine is dead: whoever calls must know that it writes no more.
    """
    deaths = _bury(database, chunks.c.worker_id == worker_id, max_attempts)
    with contextlib.suppress(WrongStateError, NotFoundError), database.write() as tx:
        transitions.stop_worker(tx, worker_id)
    return Recovery(
        num_requeued=deaths[_Death.REQUEUED],
        num_split=deaths[_Death.SPLIT],
        num_given_up=deaths[_Death.GIVEN_UP],
    )


def end_cancel_without_workers(database: Database, job_id: str) -> None:
    """Cancel the chunks of a cancelling job whose workers are not heard of any more: perhaps no worker runs that
    would sweep. Nothing happens to a job in another state."""
    with database.read() as tx:
        state = tx.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar()
    if state == JobState.CANCELLING:
        _bury(database, and_(chunks.c.job_id == job_id, chunks.c.lease_until < the_time()), max_attempts=1)


def _expire_leases(database: Database, max_attempts: int) -> Counter[_Death]:
    return _bury(database, chunks.c.lease_until < the_time(), max_attempts)


def _bury(database: Database, is_dead: ColumnElement[bool], max_attempts: int) -> Counter[_Death]:
    """Put back every running chunk for which `is_dead` holds, each in a transaction of its own."""
    with database.read() as tx:
        rows = tx.execute(select(*LEASE_COLUMNS).where(IS_RUNNING, is_dead)).all()
    deaths: Counter[_Death] = Counter()
    for row in rows:
        # renewed, or another sweeper came first, or its job is over and deleted since
        with contextlib.suppress(LeaseLostError, WrongStateError, NotFoundError):
            deaths[_put_back(database, transitions.lease_of(row), is_dead, max_attempts)] += 1
    return deaths


def _put_back(database: Database, lease: Lease, is_dead: ColumnElement[bool], max_attempts: int) -> _Death:
    with database.write() as tx:
        job_state = transitions.lock_job(tx, lease.job_id)
        lease = _hold(tx, lease, is_dead)
        death = _judge(tx, lease, job_state, max_attempts)
        transitions.close_job_if_over(tx, lease.job_id, job_state)
    return death


def _hold(tx: Connection, lease: Lease, is_dead: ColumnElement[bool]) -> Lease:
    """Lock the chunk's row while `is_dead` holds; the lease as it stands now, since it may have become alone."""
    held = select(*LEASE_COLUMNS).where(chunks.c.lease_id == lease.lease_id, is_dead).with_for_update()
    row = tx.execute(held).one_or_none()
    if row is None:
        raise LeaseLostError(f"the lease on chunk {lease.chunk_id} was renewed")
    return transitions.lease_of(row)


def _judge(tx: Connection, lease: Lease, job_state: JobState, max_attempts: int) -> _Death:
    """A chunk may lose its worker now and then. Once it did so often, it is split and its parts run alone; what
    kills its worker while alone is guilty, and is split on, down to the one request that fails."""
    is_proven = lease.is_suspect and lease.is_alone
    is_due = not lease.is_suspect and lease.attempt >= max_attempts
    if job_state is JobState.CANCELLING or (not is_proven and not is_due):
        transitions.requeue_chunk(tx, lease)
        return _Death.REQUEUED
    pending = [request.index for request in leases.pending_requests(tx, lease)]
    if not pending:  # its worker died between its last result and its end
        transitions.finish_chunk(tx, lease)
        return _Death.REQUEUED
    if is_proven and len(pending) == 1:
        message = f"the worker died while this request ran alone (attempt {lease.attempt})"
        failed = [NewResult(pending[0], error_code="engine_crash", error_message=message)]
        now = tx.execute(select(now_s())).scalar_one()
        leases.write_and_count(tx, [Record(lease, failed, is_last=True)], now)
        return _Death.GIVEN_UP
    transitions.split_chunk(tx, lease, _parts(tx, lease, pending))
    return _Death.SPLIT


def _parts(tx: Connection, lease: Lease, pending: Sequence[int]) -> list[Part]:
    """Up to `_NUM_PARTS` parts with as many pending requests each. Eight and not two, since every round costs an
    engine's start: three rounds find one request among 512."""
    size = math.ceil(len(pending) / _NUM_PARTS)
    firsts = [lease.first_index, *pending[size::size]]
    ends = [*firsts[1:], lease.first_index + lease.num_requests]
    rows = tx.execute(
        select(
            results.c.index,
            results.c.result,
            results.c.prompt_tokens,
            results.c.completion_tokens,
            results.c.reused_from,
        ).where(
            results.c.job_id == lease.job_id,
            results.c.index >= lease.first_index,
            results.c.index < lease.first_index + lease.num_requests,
        )
    ).all()
    there = [
        NewResult(
            index,
            result,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            reused_from=reused_from,
        )
        for index, result, prompt_tokens, completion_tokens, reused_from in rows
    ]
    return [
        Part(first, end - first, leases.tally_of([one for one in there if first <= one.index < end]))
        for first, end in zip(firsts, ends, strict=True)
    ]


def _close_jobs(database: Database) -> int:
    """Jobs that are over while they are not closed; none, unless something went wrong."""
    with database.read() as tx:
        whole = tx.execute(select(jobs.c.id).where(IS_CLAIMABLE, HAS_ALL_RESULTS)).scalars().all()
        cancelling = select(jobs.c.id).where(jobs.c.state == JobState.CANCELLING, ~HAS_RUNNING_CHUNK)
        ids = [*whole, *tx.execute(cancelling).scalars()]
    num_closed = 0
    for job_id in ids:
        with contextlib.suppress(NotFoundError, WrongStateError), database.write() as tx:
            state = transitions.lock_job(tx, job_id)
            num_closed += transitions.close_job_if_over(tx, job_id, state) is not state
    return num_closed


def _expire_jobs(database: Database) -> int:
    """Jobs past their deadline, those that are longest past it first; what is left is for the next round."""
    due = select(jobs.c.id).where(IS_CLAIMABLE, jobs.c.deadline_at < the_time())
    # The limit keeps Postgres to the index: it takes a comparison with a time that it does not know to hold for a
    # third of all rows, and would read them all.
    due = due.order_by(jobs.c.deadline_at).limit(literal_column(str(_EXPIRE_JOBS)))
    with database.read() as tx:
        ids = list(tx.execute(due).scalars())
    num_expired = 0
    for job_id in ids:
        with contextlib.suppress(LeaseLostError, WrongStateError, NotFoundError), database.write() as tx:
            transitions.expire_job(tx, job_id)
            num_expired += 1
    return num_expired


def _lose_workers(database: Database, silent_s: float) -> int:
    with database.read() as tx:
        silent = tx.execute(
            select(workers.c.id).where(
                workers.c.state.in_(ALIVE_STATES), workers.c.heartbeat_at < the_time() - silent_s
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


def _erase_jobs(database: Database) -> int:
    """Submits that died, and jobs whose deletion was cut short."""
    with database.read() as tx:
        over = list(
            tx.execute(
                select(jobs.c.id).where(
                    jobs.c.state == JobState.VALIDATING, jobs.c.submit_lease_until < the_time()
                )
            ).scalars()
        )
        deleting = list(tx.execute(select(jobs.c.id).where(jobs.c.state == JobState.DELETING)).scalars())
    return sum(discard_staged_job(database, job_id) for job_id in over) + sum(
        erase_job(database, job_id) for job_id in deleting
    )


def discard_staged_job(database: Database, job_id: str) -> bool:
    """Delete a job that never left validating. Safe to call again.

    False when somebody else deleted it, or when it is not validating: then it stays as it is. That is how a
    submit fares that lost the answer to its commit, while the commit went through.
    """
    try:
        with database.write() as tx:
            transitions.abandon_job(tx, job_id)
    except (NotFoundError, WrongStateError):
        return False
    return erase_job(database, job_id)


def erase_job(database: Database, job_id: str) -> bool:
    """Delete the rows of a deleting job, in steps that do not lock others out; False when somebody else did."""
    while True:
        with database.write() as tx:
            if not transitions.erase_rows(tx, job_id, _ERASE_ROWS):
                return transitions.erase_job(tx, job_id)
