"""What is read and never changed: jobs with their counts, results in pages, what can be claimed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, Select, bindparam, func, select, union_all

from db.database import Database
from db.errors import NotFoundError
from db.states import ALIVE_STATES, JobState, ResultStatus, WorkerState
from db.tables import (
    HAS_QUEUED_CHUNK,
    IS_CLAIMABLE,
    IS_QUEUED,
    IS_RUNNING,
    chunks,
    jobs,
    now_s,
    requests,
    results,
    the_time,
    workers,
)

# Rates of a job that runs are those of the last minute.
_RATE_WINDOW_S = 60.0
_PAGE_REQUESTS = 5_000


@dataclass(frozen=True)
class Counts:
    """Requests by outcome; `total` is the sum of the others."""

    pending: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        return self.pending + self.running + self.num_closed

    @property
    def num_closed(self) -> int:
        return self.succeeded + self.failed + self.cancelled + self.expired


@dataclass(frozen=True)
class Job:
    """A job with its sums. Times are seconds since 1970, UTC; rates are None while nothing was measured."""

    id: str
    name: str | None
    state: JobState
    priority: int
    card_name: str
    card_sha256: str
    input_name: str
    input_sha256: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    counts: Counts
    prompt_tokens: int
    completion_tokens: int
    requests_per_s: float | None
    completion_tokens_per_s: float | None

    @property
    def eta_s(self) -> float | None:
        """Time left at the present rate; None when over, or when nothing moves."""
        num_left = self.counts.pending + self.counts.running
        if self.state.is_final or not self.requests_per_s:
            return None
        return num_left / self.requests_per_s


@dataclass(slots=True)  # not frozen, which takes four times as long to make: there are millions
class Outcome:
    """One request with what came of it; `result` is JSON text."""

    index: int
    custom_id: str | None
    status: ResultStatus
    result: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True)
class Worker:
    id: str
    state: WorkerState
    card_name: str
    engine: str
    host: str
    pid: int
    heartbeat_age_s: float


def _visible() -> Select[tuple[object, ...]]:
    hidden = [state for state in JobState if not state.is_visible]
    return select(jobs).where(jobs.c.state.not_in(hidden))


def get_job(database: Database, job_id: str) -> Job:
    """One job; NotFoundError when there is none, or when its submit is not over."""
    with database.read() as tx:
        row = tx.execute(_visible().where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no job {job_id}; promptmill list shows the jobs there are")
        return _jobs(tx, [row])[0]


def list_jobs(database: Database, limit: int, states: Sequence[JobState] = ()) -> list[Job]:
    """The newest `limit` jobs, newest first."""
    statement = _visible().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if states:
        statement = statement.where(jobs.c.state.in_(states))
    with database.read() as tx:
        return _jobs(tx, tx.execute(statement).all())


def find_job_by_key(database: Database, idempotency_key: str) -> Job | None:
    with database.read() as tx:
        row = tx.execute(_visible().where(jobs.c.idempotency_key == idempotency_key)).one_or_none()
        return _jobs(tx, [row])[0] if row is not None else None


def find_unfinished_job(database: Database, input_sha256: str, card_sha256: str) -> Job | None:
    """The newest job of this very input and card that is still to do; None when there is none."""
    statement = (
        _visible()
        .where(
            jobs.c.input_sha256 == input_sha256,
            jobs.c.card_sha256 == card_sha256,
            jobs.c.state.in_((JobState.QUEUED, JobState.IN_PROGRESS)),
        )
        .order_by(jobs.c.created_at.desc())
        .limit(1)
    )
    with database.read() as tx:
        row = tx.execute(statement).one_or_none()
        return _jobs(tx, [row])[0] if row is not None else None


def get_card(database: Database, job_id: str) -> str:
    """The snapshot of the card that the job was submitted with."""
    with database.read() as tx:
        card: str = tx.execute(select(jobs.c.card).where(jobs.c.id == job_id)).scalar_one()
        return card


def _jobs(tx: Connection, rows: Sequence[Row[Any]]) -> list[Job]:
    """The rows as jobs. What a job has finished stands in its row; what runs is summed up here, over no more chunks
    than the workers have slots."""
    active = [row.id for row in rows if not JobState(row.state).is_final and row.started_at is not None]
    num_running: dict[str, int] = {}
    if active:
        num_open = func.sum(chunks.c.num_requests - chunks.c.num_succeeded - chunks.c.num_failed)
        running = select(chunks.c.job_id, num_open).where(chunks.c.job_id.in_(active), IS_RUNNING)
        num_running = {
            job_id: int(num) for job_id, num in tx.execute(running.group_by(chunks.c.job_id)).tuples()
        }
    return [_job(tx, row, num_running.get(row.id, 0)) for row in rows]


def _job(tx: Connection, row: Row[Any], num_running: int) -> Job:
    state = JobState(row.state)
    num_left = row.num_requests - row.num_succeeded - row.num_failed
    counts = Counts(
        pending=0 if state.is_final else num_left - num_running,
        running=num_running,
        succeeded=row.num_succeeded,
        failed=row.num_failed,
        cancelled=num_left if state is JobState.CANCELLED else 0,
        expired=num_left if state is JobState.EXPIRED else 0,
    )
    if row.started_at is None:
        num, tokens, elapsed_s = 0.0, 0.0, 0.0
    elif state.is_final:
        num, tokens = counts.succeeded + counts.failed, row.completion_tokens
        elapsed_s = row.finished_at - row.started_at
    else:
        num, tokens, elapsed_s = _recent(tx, row.id)
    return Job(
        id=row.id,
        name=row.name,
        state=state,
        priority=row.priority,
        card_name=row.card_name,
        card_sha256=row.card_sha256,
        input_name=row.input_name,
        input_sha256=row.input_sha256,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        counts=counts,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        requests_per_s=num / elapsed_s if num and elapsed_s > 0 else None,
        completion_tokens_per_s=tokens / elapsed_s if num and elapsed_s > 0 else None,
    )


def _recent(tx: Connection, job_id: str) -> tuple[float, float, float]:
    """Requests and completion tokens of the last minute, and how much of that minute work went on.

    Of the chunks that ran then, each with the share of its time that falls into the minute: their results, one by
    one, would be too many to look at.
    """
    now = tx.execute(select(now_s())).scalar_one()
    window = now - _RATE_WINDOW_S
    columns = (
        chunks.c.started_at,
        chunks.c.finished_at,
        chunks.c.num_succeeded + chunks.c.num_failed,
        chunks.c.completion_tokens,
    )
    of_job = [chunks.c.job_id == job_id, chunks.c.started_at.is_not(None)]
    finished = select(*columns).where(*of_job, chunks.c.finished_at > window)
    running = select(*columns).where(*of_job, IS_RUNNING)
    num, tokens, since = 0.0, 0.0, now
    for started_at, finished_at, num_results, num_tokens in tx.execute(union_all(finished, running)):
        end = finished_at or now
        begin = max(started_at, window)
        share = (end - begin) / (end - started_at) if end > started_at else 1.0
        num += num_results * share
        tokens += num_tokens * share
        since = min(since, begin)
    return num, tokens, now - since


# Two statements and not one join, which Postgres makes by looking up each result for itself.
_PAGE: dict[str, BindParameter[Any]] = {
    "job_id": bindparam("job_id"),
    "first": bindparam("first"),
    "end": bindparam("end"),
}
_PAGE_REQUESTS_OF = (
    select(requests.c.index, requests.c.custom_id)
    .where(
        requests.c.job_id == _PAGE["job_id"],
        requests.c.index >= _PAGE["first"],
        requests.c.index < _PAGE["end"],
    )
    .order_by(requests.c.index)
)
_PAGE_RESULTS_OF = (
    select(
        results.c.index,
        results.c.status,
        results.c.result,
        results.c.finish_reason,
        results.c.prompt_tokens,
        results.c.completion_tokens,
        results.c.error_code,
        results.c.error_message,
    )
    .where(
        results.c.job_id == _PAGE["job_id"], results.c.index >= _PAGE["first"], results.c.index < _PAGE["end"]
    )
    .order_by(results.c.index)
)
_STATUS_OF = {status.value: status for status in ResultStatus}
# What a request without a result comes to once its job is over: status, result's columns, error.
_NEVER_RAN = {
    state.value: (
        ResultStatus(state.value),
        None,
        None,
        None,
        None,
        state.value,
        f"the job {text} before this request ran",
    )
    for state, text in (
        (JobState.CANCELLED, "was cancelled"),
        (JobState.EXPIRED, "passed its deadline"),
    )
}


def iterate_outcomes(database: Database, job_id: str) -> Iterator[Outcome]:
    """Every request that has an outcome by now, in input order, in bounded memory.

    Each page is a transaction of its own, so that a long export holds up nobody.
    """
    with database.read() as tx:
        job = tx.execute(select(jobs.c.state, jobs.c.num_requests).where(jobs.c.id == job_id)).one_or_none()
    if job is None:
        return
    never_ran = _NEVER_RAN.get(job.state)
    for first in range(0, job.num_requests, _PAGE_REQUESTS):
        page = {"job_id": job_id, "first": first, "end": first + _PAGE_REQUESTS}
        with database.read() as tx:
            asked = tx.execute(_PAGE_REQUESTS_OF, page).all()
            outcome_of = {row[0]: row for row in tx.execute(_PAGE_RESULTS_OF, page).all()}
        for index, custom_id in asked:
            if (row := outcome_of.get(index)) is not None:
                yield Outcome(index, custom_id, _STATUS_OF[row[1]], *row[2:])
            elif never_ran is not None:
                yield Outcome(index, custom_id, *never_ran)


def list_finished(database: Database, older_than_s: float, limit: int) -> list[Job]:
    """The jobs that ended more than `older_than_s` ago, the oldest first."""
    statement = (
        _visible()
        .where(jobs.c.finished_at < the_time() - older_than_s)
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(limit)
    )
    with database.read() as tx:
        return _jobs(tx, tx.execute(statement).all())


def count_claimable(database: Database, card_name: str, limit: int) -> int:
    """Chunks of this card that could be claimed now, counted up to `limit`."""
    # job by job: the chunks of jobs that are over stay queued, and may be many
    candidates = (
        select(jobs.c.id)
        .where(IS_CLAIMABLE, jobs.c.card_name == card_name, HAS_QUEUED_CHUNK)
        .order_by(jobs.c.priority.desc(), jobs.c.created_at)
        .limit(limit)
    )
    num = 0
    with database.read() as tx:
        for job_id in tx.execute(candidates).scalars().all():
            queued = select(chunks.c.id).where(chunks.c.job_id == job_id, IS_QUEUED)
            queued = queued.order_by(chunks.c.id).limit(limit - num)
            num += tx.execute(select(func.count()).select_from(queued.subquery())).scalar_one()
            if num >= limit:
                break
    return num


def has_worker_loaded(database: Database, worker_id: str) -> bool:
    """Whether a worker got so far that its engine was loaded; False for one that is not there."""
    with database.read() as tx:
        state = tx.execute(select(workers.c.state).where(workers.c.id == worker_id)).scalar()
    return state in (WorkerState.READY, WorkerState.DRAINING)


def list_workers(database: Database, *, alive_only: bool = True) -> list[Worker]:
    """Workers, the latest heartbeat first."""
    statement = select(workers, (now_s() - workers.c.heartbeat_at).label("age")).order_by(
        workers.c.heartbeat_at.desc()
    )
    if alive_only:
        statement = statement.where(workers.c.state.in_(ALIVE_STATES))
    with database.read() as tx:
        rows = tx.execute(statement).all()
    return [
        Worker(
            row.id,
            WorkerState(row.state),
            row.card_name,
            row.engine,
            row.host,
            row.pid,
            row.age,
        )
        for row in rows
    ]
