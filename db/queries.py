"""What is read and never changed: jobs with their counts, what can be claimed, workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, true, union_all

from db.database import Database
from db.errors import NotFoundError, no_such_job
from db.labels import LABELS, LabelFilter, labels_of, newest_with
from db.states import ALIVE_STATES, InputFormat, JobState, WorkerState
from db.tables import (
    HAS_QUEUED_CHUNK,
    IS_CLAIMABLE,
    IS_QUEUED,
    IS_RUNNING,
    chunks,
    job_workers,
    jobs,
    now_s,
    the_time,
    workers,
)

# Rates of a job that runs are those of the last minute.
_RATE_WINDOW_S = 60.0

# What every job's id begins with; and what stands for the newest, which no id is.
ID_PREFIX = "job_"
LAST_JOB = "last"
_ID_CHARS = 32
_NUM_CANDIDATES = 6


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
    """A job with its sums; `sampling` and `selection` are JSON text. `num_reused` requests that succeeded were not
    generated: neither tokens nor their rate count them. Times are seconds since 1970, UTC; rates are None while nothing
    was measured. `ancestors` are the jobs that it runs requests of again: the first of all, and last its parent."""

    id: str
    name: str | None
    state: JobState
    priority: int
    card_name: str
    card_sha256: str
    input_name: str
    input_sha256: str
    input_format: InputFormat
    sampling: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    counts: Counts
    prompt_tokens: int
    completion_tokens: int
    requests_per_s: float | None
    completion_tokens_per_s: float | None
    selection: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    num_retried: int = 0
    ancestors: tuple[str, ...] = ()
    is_reusing: bool = False
    num_reused: int = 0

    @property
    def parent_id(self) -> str | None:
        return self.ancestors[-1] if self.ancestors else None

    @property
    def root_id(self) -> str:
        """Of its family: itself, if it was made of no other."""
        return self.ancestors[0] if self.ancestors else self.id

    @property
    def elapsed_s(self) -> float | None:
        """From its first claim to its end; None for a job that never ran, or is not over."""
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at

    @property
    def eta_s(self) -> float | None:
        """Time left at the present rate; None when over, or when nothing moves."""
        num_left = self.counts.pending + self.counts.running
        if self.state.is_final or not self.requests_per_s:
            return None
        return num_left / self.requests_per_s


@dataclass(frozen=True)
class Recipe:
    """How a worker runs a job: the snapshot of its card, the sampling defaults that the submit gave, as JSON text, and
    whether results of other jobs may be taken for its own."""

    card: str
    sampling: str | None
    is_reusing: bool


@dataclass(frozen=True)
class Worker:
    """`num_results` and `completion_tokens` are of its whole life; the rate is of the last minute before its last
    heartbeat, None before the first with a loaded engine. `num_chunks` is what it holds now."""

    id: str
    state: WorkerState
    card_name: str
    engine: str
    host: str
    pid: int
    started_at: float
    heartbeat_age_s: float
    num_chunks: int
    num_results: int
    completion_tokens: int
    completion_tokens_per_s: float | None


@dataclass(frozen=True)
class JobWorker:
    """A worker that ran something of a job; `details` is a JSON object, None before its engine was loaded."""

    id: str
    host: str
    started_at: float
    details: str | None


def _visible() -> Select[tuple[object, ...]]:
    hidden = [state for state in JobState if not state.is_visible]
    return select(jobs, LABELS).where(jobs.c.state.not_in(hidden))


def get_job(database: Database, job_id: str) -> Job:
    """One job; NotFoundError when there is none, or when its submit is not over."""
    with database.read() as tx:
        row = tx.execute(_visible().where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise no_such_job(job_id)
        return _jobs(tx, [row])[0]


def find_job_id(database: Database, said: str) -> str:
    """The id of the job that `said` means: an id, the beginning of just one (also without `job_`), or `last` for the
    newest. NotFoundError when it means none or several."""
    if said == LAST_JOB:
        newest = list_jobs(database, 1)
        if not newest:
            raise NotFoundError("there is no job yet; promptmill submit FILE makes one")
        return newest[0].id
    if not said.strip():  # an empty variable of a script, and not the beginning of whichever job there is
        raise no_such_job(said)
    found: Sequence[str] = ()
    for beginning in (said, f"{ID_PREFIX}{said}"):
        # a range, for the index; and the beginning once more, since a collation may order letters in its own way
        of_these = jobs.c.id.between(beginning, beginning + "z" * _ID_CHARS)
        begun = of_these & jobs.c.id.startswith(beginning, autoescape=True)
        statement = (
            _visible().with_only_columns(jobs.c.id).where(begun).order_by(jobs.c.id).limit(_NUM_CANDIDATES)
        )
        with database.read() as tx:
            found = tx.execute(statement).scalars().all()
        if beginning in found:
            return beginning
        if found:
            break
    if len(found) > 1:
        several = ", ".join(found[:-1] if len(found) == _NUM_CANDIDATES else found)
        more = " and more" if len(found) == _NUM_CANDIDATES else ""
        raise NotFoundError(f"{said} is the beginning of several jobs: {several}{more}; give more of the id")
    if not found:
        raise no_such_job(said)
    return found[0]


def list_jobs(
    database: Database, limit: int, states: Sequence[JobState] = (), labels: Sequence[LabelFilter] = ()
) -> list[Job]:
    """The newest `limit` jobs, newest first; of those with all of `labels`."""
    if labels:
        statement = newest_with(_visible(), labels).limit(limit)
    else:
        statement = _visible().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if states:
        statement = statement.where(jobs.c.state.in_(states))
    with database.read() as tx:
        return _jobs(tx, tx.execute(statement).all())


def list_descendants(database: Database, job: Job) -> list[Job]:
    """The jobs that run requests of `job` again, or of its descendants, in the order in which they were submitted."""
    statement = _visible().where(jobs.c.root_id == job.root_id).order_by(jobs.c.created_at, jobs.c.id)
    with database.read() as tx:
        family = _jobs(tx, tx.execute(statement).all())
    return [one for one in family if job.id in one.ancestors]


def find_job_by_key(database: Database, idempotency_key: str) -> Job | None:
    with database.read() as tx:
        row = tx.execute(_visible().where(jobs.c.idempotency_key == idempotency_key)).one_or_none()
        return _jobs(tx, [row])[0] if row is not None else None


def find_unfinished_job(
    database: Database,
    input_sha256: str,
    card_sha256: str,
    sampling: str | None = None,
    name: str | None = None,
    selection: str | None = None,
) -> Job | None:
    """The newest job of this very input, card, sampling and selection that is still to do, and of this name where one
    is given; None when there is none."""
    statement = (
        _visible()
        .where(
            jobs.c.input_sha256 == input_sha256,
            jobs.c.card_sha256 == card_sha256,
            jobs.c.sampling.is_not_distinct_from(sampling),
            jobs.c.selection.is_not_distinct_from(selection),
            true() if name is None else jobs.c.name == name,
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


def get_recipe(database: Database, job_id: str) -> Recipe:
    with database.read() as tx:
        columns = (jobs.c.card, jobs.c.sampling, jobs.c.is_reusing)
        return Recipe(*tx.execute(select(*columns).where(jobs.c.id == job_id)).one())


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
    if row.started_at is None or (state.is_final and row.num_retried):
        # nothing ran for much of the time that a retried job took
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
        input_format=InputFormat(row.input_format),
        sampling=row.sampling,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        counts=counts,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        requests_per_s=num / elapsed_s if num and elapsed_s > 0 else None,
        completion_tokens_per_s=tokens / elapsed_s if num and elapsed_s > 0 else None,
        selection=row.selection,
        labels=labels_of(row.labels),
        num_retried=row.num_retried,
        ancestors=tuple((row.ancestors or "").split()),
        is_reusing=row.is_reusing,
        num_reused=row.num_reused,
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


def list_job_workers(database: Database, job_id: str) -> list[JobWorker]:
    """The workers that ran anything of a job, the first one first."""
    statement = (
        select(workers.c.id, workers.c.host, workers.c.started_at, workers.c.details)
        .join(job_workers, job_workers.c.worker_id == workers.c.id)
        .where(job_workers.c.job_id == job_id)
        .order_by(workers.c.started_at, workers.c.id)
    )
    with database.read() as tx:
        return [JobWorker(*row) for row in tx.execute(statement)]


def list_workers(database: Database, *, alive_only: bool = True) -> list[Worker]:
    """Workers, the latest heartbeat first."""
    statement = select(workers, (now_s() - workers.c.heartbeat_at).label("age")).order_by(
        workers.c.heartbeat_at.desc()
    )
    if alive_only:
        statement = statement.where(workers.c.state.in_(ALIVE_STATES))
    # of all workers: what runs are no more chunks than these have slots
    held = select(chunks.c.worker_id, func.count()).where(IS_RUNNING).group_by(chunks.c.worker_id)
    with database.read() as tx:
        rows = tx.execute(statement).all()
        num_chunks = dict(tx.execute(held).tuples().all())
    return [
        Worker(
            row.id,
            WorkerState(row.state),
            row.card_name,
            row.engine,
            row.host,
            row.pid,
            row.started_at,
            row.age,
            num_chunks.get(row.id, 0),
            row.num_results,
            row.completion_tokens,
            row.completion_tokens_per_s,
        )
        for row in rows
    ]
