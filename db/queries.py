"""What is read and never changed: jobs with their counts, results in pages, what can be claimed."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, Select, and_, func, or_, select

from db.database import Database
from db.errors import NotFoundError
from db.states import ChunkState, JobState, ResultStatus, WorkerState
from db.tables import chunks, jobs, now_s, requests, results, workers

# Rates of a job that runs are those of the last minute.
_RATE_WINDOW_S = 60.0
_PAGE_REQUESTS = 2_000
_PAGE_CHUNKS = 200


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


@dataclass(frozen=True)
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
        return _with_sums(tx, [row])[0]


def list_jobs(database: Database, limit: int, states: Sequence[JobState] = ()) -> list[Job]:
    """The newest `limit` jobs, newest first."""
    statement = _visible().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if states:
        statement = statement.where(jobs.c.state.in_(states))
    with database.read() as tx:
        return _with_sums(tx, tx.execute(statement).all())


def find_job_by_key(database: Database, idempotency_key: str) -> Job | None:
    with database.read() as tx:
        row = tx.execute(_visible().where(jobs.c.idempotency_key == idempotency_key)).one_or_none()
        return _with_sums(tx, [row])[0] if row is not None else None


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
        return _with_sums(tx, [row])[0] if row is not None else None


def get_card(database: Database, job_id: str) -> str:
    """The snapshot of the card that the job was submitted with."""
    with database.read() as tx:
        card: str = tx.execute(select(jobs.c.card).where(jobs.c.id == job_id)).scalar_one()
        return card


def _with_sums(tx: Connection, rows: Sequence[Row[tuple[object, ...]]]) -> list[Job]:
    if not rows:
        return []
    sums: dict[str, list[Row[tuple[object, ...]]]] = {row.id: [] for row in rows}
    for part in tx.execute(
        select(
            chunks.c.job_id,
            chunks.c.state,
            func.sum(chunks.c.num_requests).label("num_requests"),
            func.sum(chunks.c.num_succeeded).label("num_succeeded"),
            func.sum(chunks.c.num_failed).label("num_failed"),
            func.sum(chunks.c.prompt_tokens).label("prompt_tokens"),
            func.sum(chunks.c.completion_tokens).label("completion_tokens"),
        )
        .where(chunks.c.job_id.in_(sums.keys()))
        .group_by(chunks.c.job_id, chunks.c.state)
    ):
        sums[part.job_id].append(part)
    return [_job(tx, row, sums[row.id]) for row in rows]


def _job(
    tx: Connection,
    row: Row[tuple[object, ...]],
    parts: Sequence[Row[tuple[object, ...]]],
) -> Job:
    open_by_state = {
        part.state: int(part.num_requests - part.num_succeeded - part.num_failed) for part in parts
    }
    counts = Counts(
        pending=open_by_state.get(ChunkState.QUEUED, 0),
        running=open_by_state.get(ChunkState.RUNNING, 0),
        succeeded=sum(int(part.num_succeeded) for part in parts),
        failed=sum(int(part.num_failed) for part in parts),
        cancelled=open_by_state.get(ChunkState.CANCELLED, 0),
        expired=open_by_state.get(ChunkState.EXPIRED, 0),
    )
    prompt_tokens = sum(int(part.prompt_tokens) for part in parts)
    completion_tokens = sum(int(part.completion_tokens) for part in parts)
    state = JobState(row.state)
    if row.started_at is None:
        num, tokens, elapsed_s = 0, 0, 0.0
    elif state.is_final:
        num, tokens = counts.succeeded + counts.failed, completion_tokens
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
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        requests_per_s=num / elapsed_s if num and elapsed_s > 0 else None,
        completion_tokens_per_s=tokens / elapsed_s if num and elapsed_s > 0 else None,
    )


def _recent(tx: Connection, job_id: str) -> tuple[int, int, float]:
    """Results and completion tokens of the last minute, and how much of that minute work went on."""
    recent = (
        select(chunks.c.first_index, chunks.c.num_requests, chunks.c.started_at)
        .where(
            chunks.c.job_id == job_id,
            or_(
                chunks.c.state == ChunkState.RUNNING,
                chunks.c.finished_at > now_s() - _RATE_WINDOW_S,
            ),
            chunks.c.started_at.is_not(None),
        )
        .subquery()
    )
    since = tx.execute(select(func.min(recent.c.started_at), now_s())).one()
    if since[0] is None:
        return 0, 0, 0.0
    elapsed_s = min(_RATE_WINDOW_S, since[1] - since[0])
    row = tx.execute(
        select(func.count(), func.coalesce(func.sum(results.c.completion_tokens), 0))
        .select_from(recent)
        .join(
            results,
            and_(
                results.c.job_id == job_id,
                results.c.index >= recent.c.first_index,
                results.c.index < recent.c.first_index + recent.c.num_requests,
            ),
        )
        .where(results.c.finished_at > since[1] - elapsed_s)
    ).one()
    return int(row[0]), int(row[1]), elapsed_s


def iterate_outcomes(database: Database, job_id: str) -> Iterator[Outcome]:
    """Every request that has an outcome by now, in input order, in bounded memory.

    Each page is a transaction of its own, so that a long export holds up nobody.
    """
    next_index = 0
    while True:
        with database.read() as tx:
            page = tx.execute(
                select(chunks.c.first_index, chunks.c.num_requests, chunks.c.state)
                .where(chunks.c.job_id == job_id, chunks.c.first_index >= next_index)
                .order_by(chunks.c.first_index)
                .limit(_PAGE_CHUNKS)
            ).all()
        if not page:
            return
        next_index = page[-1].first_index + page[-1].num_requests
        for first in range(page[0].first_index, next_index, _PAGE_REQUESTS):
            end = min(first + _PAGE_REQUESTS, next_index)
            yield from _outcomes(database, job_id, first, end, page)


def _outcomes(
    database: Database, job_id: str, first: int, end: int, page: Sequence[Row[tuple[int, int, str]]]
) -> Iterator[Outcome]:
    firsts = [row.first_index for row in page]
    with database.read() as tx:
        rows = tx.execute(
            select(
                requests.c.index,
                requests.c.custom_id,
                *(results.c[name] for name in _RESULT_COLUMNS),
            )
            .outerjoin(
                results,
                and_(
                    results.c.job_id == requests.c.job_id,
                    results.c.index == requests.c.index,
                ),
            )
            .where(
                requests.c.job_id == job_id,
                requests.c.index >= first,
                requests.c.index < end,
            )
            .order_by(requests.c.index)
        ).all()
    for index, custom_id, status, *rest in rows:
        if status is not None:
            yield Outcome(index, custom_id, ResultStatus(status), *rest)
            continue
        chunk_state = page[bisect_right(firsts, index) - 1].state
        if chunk_state in _NEVER_RAN:
            yield Outcome(index, custom_id, *_NEVER_RAN[chunk_state])


# What a request without a result comes to once its chunk is over: status, result's columns, error.
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
        (ChunkState.CANCELLED, "was cancelled"),
        (ChunkState.EXPIRED, "passed its deadline"),
    )
}
_RESULT_COLUMNS = (
    "status",
    "result",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "error_code",
    "error_message",
)


def list_finished(database: Database, older_than_s: float, limit: int) -> list[Job]:
    """The jobs that ended more than `older_than_s` ago, the oldest first."""
    statement = (
        _visible()
        .where(jobs.c.finished_at < now_s() - older_than_s)
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(limit)
    )
    with database.read() as tx:
        return _with_sums(tx, tx.execute(statement).all())


def count_claimable(database: Database, card_name: str, limit: int) -> int:
    """Chunks of this card that could be claimed now, counted up to `limit`."""
    queued = (
        select(chunks.c.id)
        .join(jobs, jobs.c.id == chunks.c.job_id)
        .where(
            chunks.c.state == ChunkState.QUEUED,
            jobs.c.card_name == card_name,
            jobs.c.state.in_((JobState.QUEUED, JobState.IN_PROGRESS)),
        )
        .limit(limit)
        .subquery()
    )
    with database.read() as tx:
        return tx.execute(select(func.count()).select_from(queued)).scalar_one()


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
        statement = statement.where(workers.c.state.not_in((WorkerState.STOPPED, WorkerState.GONE)))
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
