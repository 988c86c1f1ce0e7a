"""Leases: how a worker gets a chunk, keeps it, writes its results, and how it ends.

Each function is one transaction. Every write names the lease; when the lease has passed on, nothing is
written and the caller is told so, so a worker that was frozen or cut off can do no harm when it returns.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError

from db import bulk, transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError, WrongStateError
from db.outcomes import page_without_result
from db.states import CLAIMABLE_STATES, JobState, ResultStatus, WorkerState
from db.tables import (
    HAS_QUEUED_CHUNK,
    HAS_RUNNING_CHUNK,
    IS_CLAIMABLE,
    IS_QUEUED,
    IS_RUNNING,
    chunks,
    job_workers,
    jobs,
    now_s,
    requests,
    results,
    workers,
)
from db.transitions import LEASE_COLUMNS, Lease, Tally

_CANDIDATE_JOBS = 5
_RESULT_COLUMNS = (
    "job_id",
    "index",
    "status",
    "result",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "error_code",
    "error_message",
    "attempt",
    "finished_at",
    "position",
    "content_key",
    "reused_from",
)


@dataclass(frozen=True)
class PendingRequest:
    """A request without a result; `body` is its JSON text."""

    index: int
    body: str


@dataclass(frozen=True)
class NewResult:
    """One outcome. Either `result` (JSON text) is set, or the error's code and message are.

    `content_key`: what was asked for, where asking again would give the same. `reused_from`: JOB:INDEX of the request
    that was generated, where this one was not.
    """

    index: int
    result: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    num_retries: int = 0
    content_key: str | None = None
    reused_from: str | None = None

    @property
    def status(self) -> ResultStatus:
        return ResultStatus.FAILED if self.result is None else ResultStatus.SUCCEEDED


@dataclass(frozen=True)
class Record:
    """Results of one leased chunk; with `is_last` they are all that it still lacked, and the chunk is done."""

    lease: Lease
    results: Sequence[NewResult]
    is_last: bool


@dataclass(frozen=True)
class Renewal:
    """What a heartbeat learnt: leases that are gone, and held leases whose job is being cancelled."""

    lost: frozenset[str]
    cancelling: frozenset[str]


@dataclass(frozen=True)
class Progress:
    """What a worker has written since its start, and its rate of late."""

    num_results: int
    completion_tokens: int
    completion_tokens_per_s: float


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
    lease_id: str | None = None,
) -> Lease | None:
    """Lease the best queued chunk of this card (or of `job_id` alone); None when there is none.

    Best is: highest priority, then the job with the fewest chunks running, then the oldest. So an urgent job
    goes first, equal jobs share, and a big job cannot starve a small one.

    After a DatabaseUnavailableError the caller cannot know whether the commit went through: `find` tells, by the
    `lease_id` (of `new_lease_id`) that it gave. A second call claims another chunk.
    """
    lease_id = lease_id or new_lease_id()
    with database.read() as tx:
        if job_id is None:
            candidates = tx.execute(_CANDIDATES, {"card_name": card_name}).all()
        else:
            wanted = {"card_name": card_name, "job_id": job_id}
            candidates = tx.execute(_CANDIDATES_OF_ONE_JOB, wanted).all()
    for candidate in candidates:
        # a transaction each: two claims that held several jobs' rows could wait for each other
        with database.write() as tx:
            lease = _claim_from(tx, candidate.id, candidate.state, worker_id, lease_s, lease_id)
        if lease is not None:
            return replace(lease, priority=candidate.priority)
    return None


def _candidates(*, of_one_job: bool) -> Select[tuple[str, str, int]]:
    """The best few jobs of `card_name` (and of these `job_id` alone). In two parts, so that neither looks at every
    job there is: those of which no chunk runs, in the index's own order, and those of the chunks that run, which are
    as few as the workers' slots."""
    running = (
        select(chunks.c.job_id, func.count().label("num_running"))
        .where(IS_RUNNING)
        .group_by(chunks.c.job_id)
        .subquery()
    )
    is_candidate = [IS_CLAIMABLE, jobs.c.card_name == bindparam("card_name"), HAS_QUEUED_CHUNK]
    if of_one_job:
        is_candidate.append(jobs.c.id == bindparam("job_id"))
    columns = (jobs.c.id, jobs.c.state, jobs.c.priority, jobs.c.created_at)
    best_first = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
    limit: ColumnElement[int] = literal_column(str(_CANDIDATE_JOBS))
    idle = (
        select(*columns, literal_column("0").label("num_running"))
        .where(*is_candidate, ~HAS_RUNNING_CHUNK)
        .order_by(*best_first)
        .limit(limit)
        .subquery()
    )
    busy = select(*columns, running.c.num_running).join(running, running.c.job_id == jobs.c.id)
    both = union_all(select(idle), busy.where(*is_candidate)).subquery()
    return (
        select(both.c.id, both.c.state, both.c.priority)
        .order_by(both.c.priority.desc(), both.c.num_running, both.c.created_at, both.c.id)
        .limit(limit)
    )


# made once: a worker claims so often that making them would cost more than running them
_CANDIDATES = _candidates(of_one_job=False)
_CANDIDATES_OF_ONE_JOB = _candidates(of_one_job=True)
_PENDING = page_without_result(requests.c.body)


def _claim_from(
    tx: Connection, job_id: str, state: str, worker_id: str, lease_s: float, lease_id: str
) -> Lease | None:
    # The job first, then the chunk (the lock order). A share is enough once the job runs, so that
    # claims of one job do not wait for each other, while a cancel waits for them.
    is_first = state == JobState.QUEUED
    locked = select(jobs.c.state).where(jobs.c.id == job_id)
    locked = locked.with_for_update(key_share=True) if is_first else locked.with_for_update(read=True)
    now = tx.execute(locked).scalar()
    if (now == JobState.QUEUED and not is_first) or now not in CLAIMABLE_STATES:
        return None
    chunk_id = tx.execute(
        select(chunks.c.id)
        .where(chunks.c.job_id == job_id, IS_QUEUED)
        .order_by(chunks.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar()
    if chunk_id is None:
        return None
    if now == JobState.QUEUED:
        transitions.start_job(tx, job_id)
    return transitions.claim_chunk(tx, chunk_id, worker_id, lease_s, lease_id)


def new_lease_id() -> str:
    """One that no other claim has."""
    return uuid.uuid4().hex


def find(database: Database, lease_id: str) -> Lease | None:
    """The lease of a claim that went through, while it lives; None when there is none."""
    held = select(*LEASE_COLUMNS, jobs.c.priority).join(jobs, jobs.c.id == chunks.c.job_id)
    with database.read() as tx:
        row = tx.execute(held.where(chunks.c.lease_id == lease_id)).one_or_none()
    return None if row is None else transitions.lease_of(row)


def load_requests(database: Database, lease: Lease) -> list[PendingRequest]:
    """The chunk's requests that have no result yet, in input order."""
    with database.read() as tx:
        return pending_requests(tx, lease)


def pending_requests(tx: Connection, lease: Lease) -> list[PendingRequest]:
    """`load_requests` inside a transaction that the caller has open."""
    bounds = {
        "job_id": lease.job_id,
        "first": lease.first_index,
        "end": lease.first_index + lease.num_requests,
    }
    rows = tx.execute(_PENDING, bounds).all()
    return [PendingRequest(index, body) for index, body in rows]


def renew(
    database: Database,
    worker_id: str,
    leases: Sequence[Lease],
    lease_s: float,
    progress: Progress | None = None,
) -> Renewal:
    """Put off the end of `leases` to `lease_s` from now, and leave a heartbeat in the worker's row, with its progress.

    A worker that was taken for gone is ready again.
    """
    ids = [lease.lease_id for lease in leases]
    with database.write() as tx:
        _beat(tx, worker_id, progress)
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


def _beat(tx: Connection, worker_id: str, progress: Progress | None) -> None:
    told = {} if progress is None else vars(progress)
    beat = update(workers).where(workers.c.id == worker_id).values(heartbeat_at=now_s(), **told)
    if tx.execute(beat.returning(workers.c.state)).scalar() == WorkerState.GONE:
        # it was frozen or cut off, and the sweeper gave it up
        transitions.ready_worker(tx, worker_id)


def note_worker(database: Database, job_id: str, worker_id: str) -> None:
    """Keep that this worker runs something of a job. Safe to call again; nothing happens when the job is gone."""
    # the keys refuse a pair that is there, and a job that is not
    with suppress(IntegrityError), database.write() as tx:
        tx.execute(insert(job_workers).values(job_id=job_id, worker_id=worker_id))


def record(database: Database, records: Sequence[Record], *, is_repeat: bool = False) -> frozenset[str]:
    """Write results of leased chunks, and end those that are whole; the ids of leases that are lost, for which
    nothing was written.

    All or nothing. After a DatabaseUnavailableError the caller cannot know whether the commit went through, and may
    call again with the same records and `is_repeat`: results that are there already are left as they are.
    """
    job_ids = sorted({one.lease.job_id for one in records})
    with database.write() as tx:
        states = {job_id: _lock_job_if_there(tx, job_id) for job_id in job_ids}
        held, now = _hold_all(tx, [one.lease.lease_id for one in records])
        mine = [one for one in records if one.lease.lease_id in held]
        if is_repeat:
            mine = [replace(one, results=_missing(tx, one)) for one in mine]
        for job_id, num_left in write_and_count(tx, mine, now).items():
            state = states[job_id]
            if state is not None and (num_left == 0 or state is JobState.CANCELLING):
                transitions.close_job_if_over(tx, job_id, state)
    return frozenset(one.lease.lease_id for one in records) - held


def write_and_count(tx: Connection, records: Sequence[Record], now: float) -> dict[str, int]:
    """Write results, and add them to the sums of their jobs and chunks; how many requests of each job have none yet."""
    tallies = [tally_of(one.results) for one in records]
    by_job: dict[str, Tally] = {}
    for one, tally in zip(records, tallies, strict=True):
        by_job[one.lease.job_id] = by_job.get(one.lease.job_id, Tally()) + tally
    # first, since the sums tell the positions
    counted = {job_id: transitions.count_results(tx, job_id, tally) for job_id, tally in by_job.items()}
    _write_results(tx, records, {job_id: first for job_id, (first, _) in counted.items()}, now)
    for one, tally in zip(records, tallies, strict=True):
        if one.is_last:
            transitions.finish_chunk(tx, one.lease, tally)
        elif one.results:
            transitions.record_chunk(tx, one.lease, tally)
    return {job_id: num_left for job_id, (_, num_left) in counted.items()}


def _lock_job_if_there(tx: Connection, job_id: str) -> JobState | None:
    try:
        return transitions.lock_job(tx, job_id)
    except NotFoundError:
        return None


def _hold_all(tx: Connection, lease_ids: Sequence[str]) -> tuple[frozenset[str], float]:
    """Lock the chunks of those leases that still live: which they are, and the time by the database's clock."""
    held = (
        select(chunks.c.lease_id, now_s())
        .where(chunks.c.lease_id.in_(lease_ids))
        .order_by(chunks.c.id)
        .with_for_update()
    )
    rows = tx.execute(held).all()
    return frozenset(row[0] for row in rows), max((row[1] for row in rows), default=0.0)


def _missing(tx: Connection, record: Record) -> list[NewResult]:
    there = set(
        tx.execute(
            select(results.c.index).where(
                results.c.job_id == record.lease.job_id,
                results.c.index.in_([result.index for result in record.results]),
            )
        ).scalars()
    )
    return [result for result in record.results if result.index not in there]


def release(database: Database, lease: Lease) -> None:
    """Give an unfinished chunk back; a job that is being cancelled ends with its last one."""
    with database.write() as tx, _fenced():
        state = transitions.lock_job(tx, lease.job_id)
        transitions.release_chunk(tx, lease)
        transitions.close_job_if_over(tx, lease.job_id, state)


def isolate(database: Database, lease: Lease) -> None:
    """Write down that a suspect chunk runs alone from now on. A second call is harmless."""
    with database.write() as tx, _fenced():
        transitions.isolate_chunk(tx, lease)


def _write_results(
    tx: Connection, records: Sequence[Record], first_positions: Mapping[str, int], now: float
) -> None:
    """Insert results, finished `now`, from each job's first position on; the caller holds their chunks, and has added
    them to their jobs' sums, which told the positions."""
    positions = {job_id: count(first) for job_id, first in first_positions.items()}
    rows = [
        (
            one.lease.job_id,
            result.index,
            result.status,
            result.result,
            result.finish_reason,
            result.prompt_tokens,
            result.completion_tokens,
            result.error_code,
            result.error_message,
            one.lease.attempt + result.num_retries,
            now,
            next(positions[one.lease.job_id]),
            result.content_key,
            result.reused_from,
        )
        for one in records
        for result in one.results
    ]
    if rows:
        bulk.insert_rows(tx, results, _RESULT_COLUMNS, rows)


def tally_of(batch: Sequence[NewResult]) -> Tally:
    num_succeeded = sum(result.status is ResultStatus.SUCCEEDED for result in batch)
    generated = [result for result in batch if result.reused_from is None]
    return Tally(
        num_succeeded,
        len(batch) - num_succeeded,
        sum(result.prompt_tokens or 0 for result in generated),
        sum(result.completion_tokens or 0 for result in generated),
        len(batch) - len(generated),
    )
